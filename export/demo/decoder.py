"""The decoder of pydoc-chat as training runs it: Llama's arithmetic over rows that share one prefix.

Every training row begins with the same system text. It is computed once a batch: the tokens of the prefix and of all
rows go through the linear layers in one piece, and the rows attend to the prefix's keys and values and to themselves.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of config.json that size the model."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class Layer(nn.Module):
    """One decoder layer; parameter names are those of transformers without the self_attn and mlp levels."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, dim = shape.hidden_size, shape.head_dim
        heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.heads, self.kv_heads, self.dim, self.eps = heads, kv_heads, dim, shape.rms_norm_eps
        self.q_proj = nn.Linear(hidden, heads * dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(heads * dim, hidden, bias=False)
        self.gate_proj = nn.Linear(hidden, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, hidden, bias=False)
        self.input_layernorm = nn.Parameter(torch.ones(hidden))
        self.post_attention_layernorm = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor, rows: int, prefix: int, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [prefix + rows * width, hidden], rotations [prefix + rows * width, 1, dim],
        mask [width, prefix + width] added to the scores."""
        normed = functional.rms_norm(x, x.shape[-1:], self.input_layernorm, self.eps)
        q = _rotate(self.q_proj(normed).view(-1, self.heads, self.dim), cos, sin)
        k = _rotate(self.k_proj(normed).view(-1, self.kv_heads, self.dim), cos, sin)
        v = self.v_proj(normed).view(-1, self.kv_heads, self.dim)
        first = _attend(q[None, :prefix], k[None, :prefix], v[None, :prefix], causal(prefix, prefix))
        q, k, v = q[prefix:].view(rows, -1, self.heads, self.dim), _rows(k, rows, prefix), _rows(v, rows, prefix)
        mixed = torch.cat([first.flatten(0, 1), _attend(q, k, v, mask).flatten(0, 1)])
        x = x + self.o_proj(mixed.flatten(1))
        normed = functional.rms_norm(x, x.shape[-1:], self.post_attention_layernorm, self.eps)
        x = x + self.down_proj(functional.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return x


def causal(queries: int, keys: int) -> Tensor:
    """[queries, keys] to add to scores: the queries are the last of the keys' positions and see no later one."""
    return torch.full((queries, keys), float("-inf")).triu(keys - queries + 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)


def _rows(x: Tensor, rows: int, prefix: int) -> Tensor:
    """Packed keys or values -> [rows, prefix + width, kv_heads, dim]."""
    return torch.cat([x[None, :prefix].expand(rows, -1, -1, -1), x[prefix:].view(rows, -1, *x.shape[1:])], dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [rows, width, heads, dim], k and v [rows, keys, kv_heads, dim], mask [width, keys] added to the scores.

    Written out: at these widths scaled_dot_product_attention trains slower on CPU.
    """
    rows, width, heads, dim = q.shape
    groups = k.shape[2]
    # Query heads of one key head lie side by side: [rows, kv_heads, width * group, dim].
    q = q.view(rows, width, groups, -1, dim).permute(0, 2, 1, 3, 4).reshape(rows, groups, -1, dim)
    scores = (q @ k.permute(0, 2, 3, 1)).view(rows, groups, width, -1, mask.shape[1]) * dim**-0.5 + mask[:, None]
    weights = scores.float().softmax(-1).to(v.dtype).flatten(2, 3)
    mixed: Tensor = weights @ v.transpose(1, 2)
    return mixed.view(rows, groups, width, -1, dim).permute(0, 2, 1, 3, 4).reshape(rows, width, heads, dim)


class Decoder(nn.Module):
    """Embedding, layers and final norm; the embedding is also the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, prefix: Tensor, rows: Tensor) -> Tensor:
        """The hidden states after the final norm, [rows, width, hidden].

        prefix [prefix] stands before every row; rows [rows, width] are padded on the right.
        """
        count, width = rows.shape
        length = len(prefix)
        positions = torch.cat([torch.arange(length), torch.arange(length, length + width).repeat(count)])
        half = torch.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        angles = (positions[:, None] / self.shape.rope_theta**half).repeat(1, 2)[:, None]
        cos, sin = angles.cos(), angles.sin()
        mask = causal(width, length + width)
        x = functional.embedding(torch.cat([prefix, rows.flatten()]), self.embed_tokens)
        for layer in self.layers:
            x = layer(x, count, length, cos, sin, mask)
        x = functional.rms_norm(x, x.shape[-1:], self.norm, self.shape.rms_norm_eps)
        return x[length:].view(count, width, -1)

    def named(self) -> dict[str, nn.Parameter]:
        """The parameters under the names of a Llama checkpoint."""
        tensors = {"model.embed_tokens.weight": self.embed_tokens, "model.norm.weight": self.norm}
        for index, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                level = "self_attn." if name[1:].startswith("_proj") else "mlp." if "_proj" in name else ""
                suffix = "" if name.endswith("weight") else ".weight"
                tensors[f"model.layers.{index}.{level}{name}{suffix}"] = parameter
        return tensors

    def checkpoint(self) -> dict[str, Tensor]:
        """What model.safetensors holds: the weights in fp16."""
        return {name: value.detach().to(torch.float16).contiguous() for name, value in self.named().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights of a checkpoint."""
        for name, parameter in self.named().items():
            parameter.data.copy_(tensors[name])

    def config(self, bos: int, eos: int) -> dict[str, object]:
        """config.json as transformers reads it."""
        return asdict(self.shape) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "dtype": "float16",
        }
