"""The decoder's graph, ragged form: packed tokens through the linear layers, attention row by row.

Attention is, in each layer, a Scan over the rows whose body is one GroupQueryAttention: the operator itself refuses
a batch of several rows with several new tokens and a past. The cache is [rows, 1, kv_heads, capacity, head_dim], so
that Scan's slices need no Squeeze; with one buffer bound as the Scan's input and output nothing is copied and the
cost follows the real lengths. The body cuts its row's nodes out of the packed projection and pads only its result.
Why one Scan serves decode and prefill rows alike: docs/decisions/0001-one-scan-a-layer.md.

Inputs   tokens int64 [tokens]        packed: row 0's nodes, then row 1's, ...
         depth int64 [tokens]         of each node below its row's committed tokens
         length int64 [rows]          committed tokens of each row
         count int64 [rows]           nodes of each row in this step
         ancestors bool [rows, nodes, nodes]  who sees whom, itself included; beyond a row's count ignored
         wanted int64 [wanted]        packed indices of the nodes whose logits are wanted
         key_i, value_i float [rows, 1, kv_heads, capacity, head_dim]
Outputs  logits float [wanted, vocab], argmax int64 [wanted], hidden float [wanted, hidden] after the final norm,
         new_key_i, new_value_i       the same memory as key_i, value_i

Beyond a row's count, one more place of its cache may be written. A row of length 0 must bring a chain: with an empty
past the operator counts positions itself.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from export.config import ModelConfig, inverse_frequencies
from export.emitter import BFLOAT16, BOOL, FLOAT, INT32, INT64, MICROSOFT, Emitter
from export.linear import linear
from export.progress import Say
from runtime.manifest import capacity_of

HIDDEN_SCORE = -1e9  # added to the score of a node that must not be seen; finite, so that no row turns to NaN
EXACT_EMBEDDING = ("fp32", "int8-block32")  # float16 does not hold the values of a block with a float16 scale
Tensor = Callable[[str], np.ndarray]


def lm_head_precision(precision: str) -> str:
    """The vocabulary product of an int4 model stays in int8: it decides the answer, and is flat in the nodes."""
    return "int8" if precision == "int4" else precision


def build_decoder(config: ModelConfig, tensor: Tensor, precision: str, directory: Path, progress: Say) -> None:
    """Writes decoder.onnx and decoder.onnx.data, holding no more than one layer's projection in memory."""
    with Emitter(directory / "decoder.onnx") as emitter:
        _Decoder(emitter, config, tensor, precision, progress).build()


class _Decoder:
    def __init__(self, emitter: Emitter, config: ModelConfig, tensor: Tensor, precision: str, progress: Say) -> None:
        self.emitter, self.config, self.tensor, self.precision = emitter, config, tensor, precision
        self.progress = progress
        self.capacity = capacity_of(config.context)
        self.cache_shape = [1, config.kv_heads, self.capacity, config.head_dim]

    def build(self) -> None:
        emit = self.emitter.node
        self._inputs()
        self._rotary()
        self._plan()
        x = self._embed()
        layer_out: str | None = None  # what the last layer adds to x, folded into the next norm
        for i in range(self.config.layers):
            self.progress(f"layer {i + 1} of {self.config.layers}")
            self.emitter.scope = f"layer_{i}/"
            normed, x = self._norm(x, layer_out, f"model.layers.{i}.input_layernorm.weight")
            attended = self._attention(i, normed)
            normed, x = self._norm(x, attended, f"model.layers.{i}.post_attention_layernorm.weight")
            layer_out = self._mlp(i, normed)
        self.progress("vocabulary")
        self.emitter.scope = ""
        normed, _ = self._norm(x, layer_out, "model.norm.weight")
        hidden = emit("Gather", normed, "wanted", axis=0, name="hidden")
        name = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        precision = lm_head_precision(self.precision)
        logits = linear(self.emitter, hidden, "lm_head", self.tensor(name), None, precision, result="logits")
        emit("ArgMax", logits, axis=-1, keepdims=0, name="argmax")
        self.emitter.output("logits", FLOAT, ["wanted", self.config.vocab])
        self.emitter.output("argmax", INT64, ["wanted"])
        self.emitter.output("hidden", FLOAT, ["wanted", self.config.hidden])
        self.emitter.save("decoder")

    def _inputs(self) -> None:
        for name, kind, shape in (
            ("tokens", INT64, ["tokens"]), ("depth", INT64, ["tokens"]), ("length", INT64, ["rows"]),
            ("count", INT64, ["rows"]), ("ancestors", BOOL, ["rows", "nodes", "nodes"]), ("wanted", INT64, ["wanted"]),
        ):  # fmt: skip
            self.emitter.input(name, kind, shape)
        for i in range(self.config.layers):
            for part in ("key", "value"):
                self.emitter.input(f"{part}_{i}", FLOAT, ["rows", *self.cache_shape])
                self.emitter.output(f"new_{part}_{i}", FLOAT, ["rows", *self.cache_shape])

    def _rotary(self) -> None:
        """cos and sin [capacity, head_dim / 2]: nodes past the context still have a position."""
        angle = np.arange(self.capacity)[:, None] * inverse_frequencies(self.config)
        self.cos = self.emitter.weight("cos", np.cos(angle).astype(np.float32))
        self.sin = self.emitter.weight("sin", np.sin(angle).astype(np.float32))

    def _plan(self) -> None:
        """What every layer's Scan needs of the step's inputs, computed once."""
        emit, const = self.emitter.node, self.emitter.constant
        row_axis, column_axis = const([0]), const([1])
        end = emit("CumSum", "count", const(0))
        start = emit("Sub", end, "count")
        tokens = emit("Shape", "tokens")  # [1]
        token = emit("Range", const(0), emit("Squeeze", tokens), const(1))
        # a token's row is the number of rows that end at or before it
        over = emit("LessOrEqual", emit("Unsqueeze", end, row_axis), emit("Unsqueeze", token, column_axis))
        row = emit("ReduceSum", emit("Cast", over, to=INT64), column_axis, keepdims=0)  # [tokens]
        position = emit("Add", emit("Gather", "length", row, axis=0), "depth")
        nodes = emit("Shape", "ancestors", start=1, end=2)
        first = emit("Sub", emit("Mul", row, nodes), emit("Gather", start, row, axis=0))
        self.unpad = emit("Add", first, token)  # [tokens]: each token's place in [rows * nodes]
        # A row alone with its root attends with two nodes where there is place for two: the token after it stands in,
        # the last one for the last row's. So a single query never takes the operator's other way to sum.
        self.stand_in = emit("Unsqueeze", emit("Concat", token, emit("Sub", tokens, const([1])), axis=0), row_axis)
        self.position = emit("Gather", position, self.stand_in, axis=0)  # [1, tokens + 1]
        seen = emit("Max", "count", emit("Min", nodes, const([2])))  # [rows]
        bias = emit("Where", "ancestors", const(0, np.float32), const(HIDDEN_SCORE, np.float32))
        total = emit("Cast", emit("Add", "length", seen), to=INT32)
        seen_column = emit("Unsqueeze", seen, column_axis)  # [rows, 1]
        start_column = emit("Unsqueeze", start, column_axis)
        past_column = emit("Unsqueeze", "length", column_axis)
        self.row_inputs = [
            (emit("Unsqueeze", bias, const([1, 2])), "bias", FLOAT, [1, 1, "nodes", "nodes"]),
            (start_column, "start", INT64, [1]),
            (emit("Add", start_column, seen_column), "end", INT64, [1]),
            (emit("Concat", seen_column, seen_column, axis=1), "square", INT64, [2]),
            (emit("Pad", past_column, const([0, 3, 0, 4])), "left", INT64, [8]),
            (emit("Pad", emit("Sub", nodes, seen_column), const([0, 4, 0, 1])), "right", INT64, [6]),
            (emit("Unsqueeze", emit("Sub", total, const(1, np.int32)), column_axis), "last", INT32, [1]),
            (total, "total", INT32, []),
        ]

    def _embed(self) -> str:
        """Gathered, never multiplied; beside quantized weights the table is kept in half the size."""
        half = self.precision not in EXACT_EMBEDDING
        table = self.tensor("model.embed_tokens.weight")
        if half:
            table = table.astype(np.float16)
        rows = self.emitter.node("Gather", self.emitter.weight("embed_tokens", table), "tokens", axis=0)
        return self.emitter.node("Cast", rows, to=FLOAT) if half else rows

    def _norm(self, x: str, added: str | None, name: str) -> tuple[str, str]:
        """RMS norm of x (+ added); returns the normed value and the sum."""
        weight, epsilon = self.emitter.weight(name, self.tensor(name)), self.config.norm_eps
        if added is None:
            return self.emitter.node("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon), x
        normed, _, _, total = self.emitter.nodes(
            "SkipSimplifiedLayerNormalization", x, added, weight, names=("", "-", "-", ""), domain=MICROSOFT,
            epsilon=epsilon,
        )  # fmt: skip
        return normed, total

    def _projection(self, x: str, prefix: str, parts: tuple[str, ...], has_bias: bool) -> str:
        """One product for several projections of the same input, side by side."""
        weight = np.concatenate([self.tensor(f"{prefix}.{part}.weight") for part in parts])
        bias = np.concatenate([self.tensor(f"{prefix}.{part}.bias") for part in parts]) if has_bias else None
        return linear(self.emitter, x, f"{prefix}.{'_'.join(parts)}", weight, bias, self.precision)

    def _attention(self, i: int, x: str) -> str:
        emit, config, prefix = self.emitter.node, self.config, f"model.layers.{i}.self_attn"
        packed = self._projection(x, prefix, ("q_proj", "k_proj", "v_proj"), config.attention_bias)
        packed = emit("Gather", packed, self.stand_in, axis=0)  # [1, tokens + 1, (heads + 2 kv_heads) * head_dim]
        names = [f"key_{i}", f"value_{i}", *(name for name, *_ in self.row_inputs)]
        padded = f"{self.emitter.scope}attended"
        self.emitter.scan(names, [padded, f"new_key_{i}", f"new_value_{i}"], self._row_body(i, packed))
        width = config.heads * config.head_dim
        flat = emit("Reshape", padded, self.emitter.constant([-1, width]))  # [rows * nodes, width]
        attended = self._absorb(emit("Gather", flat, self.unpad, axis=0))
        return self._projection(attended, prefix, ("o_proj",), config.attention_bias)

    def _absorb(self, attended: str) -> str:
        """Attention rounded to bfloat16 before a product that rounds to 8 bits anyway.

        A path with gaps is summed in another order, which moves attention by about 1e-7. Rounded, it is mostly the same
        bits again, and speculation exact: docs/decisions/0005-exactness.md.
        """
        if self.precision == "fp32":
            return attended
        return self.emitter.node("Cast", self.emitter.node("Cast", attended, to=BFLOAT16), to=FLOAT)

    def _row_body(self, i: int, packed: str) -> onnx.GraphProto:
        """One row: its nodes attend to its cache and to each other as the tree says."""
        config, const, node = self.config, self.emitter.constant, helper.make_node
        inside = lambda name: f"row_{i}/{name}"  # noqa: E731
        nodes = [
            node("Slice", [packed, inside("start"), inside("end"), const([1])], [inside("qkv")]),
            node("Slice", [self.position, inside("start"), inside("end"), const([1])], [inside("position")]),
            node("Slice", [inside("bias"), const([0, 0]), inside("square"), const([2, 3])], [inside("tree")]),
            # zeros on the left: every node sees the whole past
            node("Pad", [inside("tree"), inside("left")], [inside("mask")]),
            node(
                "GroupQueryAttention",
                [
                    inside("qkv"), "", "", inside("key"), inside("value"), inside("last"), inside("total"),
                    self.cos, self.sin, inside("position"), inside("mask"),
                ],
                [inside("attended"), inside("new_key"), inside("new_value")],
                domain=MICROSOFT, num_heads=config.heads, kv_num_heads=config.kv_heads, do_rotary=1,
            ),
            node("Pad", [inside("attended"), inside("right")], [inside("padded")]),
        ]  # fmt: skip
        value = lambda name, kind, shape: helper.make_tensor_value_info(inside(name), kind, shape)  # noqa: E731
        inputs = [value(part, FLOAT, self.cache_shape) for part in ("key", "value")]
        inputs += [value(name, kind, shape) for _, name, kind, shape in self.row_inputs]
        outputs = [value("padded", FLOAT, [1, "nodes", config.heads * config.head_dim])]
        outputs += [value(part, FLOAT, self.cache_shape) for part in ("new_key", "new_value")]
        return helper.make_graph(nodes, f"row_{i}", inputs, outputs)

    def _mlp(self, i: int, x: str) -> str:
        emit, prefix = self.emitter.node, f"model.layers.{i}.mlp"
        both = self._projection(x, prefix, ("gate_proj", "up_proj"), self.config.mlp_bias)
        gate, up = self.emitter.nodes("Split", both, names=("", ""), axis=-1, num_outputs=2)
        silu = emit("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
        return self._projection(emit("Mul", silu, up), prefix, ("down_proj",), self.config.mlp_bias)
