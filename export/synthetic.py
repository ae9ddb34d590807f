"""`python -m export.synthetic NAME --out DIR`: a checkpoint of a published model's true shape, with random weights.

For tests and benchmarks of what the shape alone decides: formats, sizes, memory, milliseconds. Every tensor's values
follow from the seed and its name, whatever the file layout; they are drawn and written piece by piece, so that memory
does not grow with the model. The tokenizer is a real one: the demo model's, cut or filled up to the vocabulary's size.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from export.checkpoint import EMBEDDING, INDEX, expected_shapes
from export.checkpoint import FILE as SINGLE
from export.config import FILE as CONFIG
from export.config import ModelConfig
from export.demo.dialogue import BOS, CHAT_TEMPLATE, EOS, UNK
from export.heads import NAMES as HEADS_NAMES
from export.tensors import Shape
from export.tokenizer import FILE as TOKENIZER
from export.tokenizer import SETTINGS
from runtime.errors import ConfigurationError, GorgonError

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 32000,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

# config.json as published by lmsys/vicuna-*-v1.3 and TinyLlama/TinyLlama-1.1B-Chat-v1.0; `tiny` is for tests.
SHAPES: Mapping[str, dict[str, Any]] = {
    "vicuna-7b": _LLAMA | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "vicuna-13b": _LLAMA | {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "tinyllama-1.1b": _LLAMA | {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    },
    "tiny": _LLAMA | {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 600, "max_position_embeddings": 256, "initializer_range": 0.15,
    },
}  # fmt: skip

DTYPES: Mapping[str, tuple[Any, str]] = {
    "float16": (np.float16, "F16"),  # of numpy, of safetensors
    "bfloat16": (ml_dtypes.bfloat16, "BF16"),
}
HEADS = 5  # as published for vicuna
PIECE = 1 << 22  # values drawn at a time
DEMO_TOKENIZER = Path(__file__).parent / "demo" / "model" / TOKENIZER
GIB = 1 << 30

Progress = Callable[[int], object]  # told the bytes that were written


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor to be drawn from a normal distribution."""

    name: str
    shape: Shape
    mean: float
    std: float

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def pieces(self, seed: int) -> Iterator[np.ndarray]:
        """The values in order, flat float32 pieces."""
        random = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        for start in range(0, self.size, PIECE):
            values = random.standard_normal(min(PIECE, self.size - start), np.float32)
            values *= np.float32(self.std)
            values += np.float32(self.mean)
            yield values


def model_weights(config: ModelConfig, std: float) -> list[Weight]:
    """Every tensor of the checkpoint: norms around 1, all others around 0.

    The embedding is of the scale of all layers' sum, each of which adds 1/sqrt(2 * layers) of what `std` makes of it
    (Radford et al., GPT-2, 2019): a model of std alone is chaotic and turns rounding of weights into other logits.
    """
    weights = []
    for name, shape in expected_shapes(config).items():
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        own = 1.0 if name == EMBEDDING else std / (2 * config.layers) ** 0.5 if adds else std
        weights.append(Weight(name, shape, 1.0 if name.endswith("norm.weight") else 0.0, own))
    return weights


def head_weights(config: ModelConfig, heads: int, std: float) -> list[Weight]:
    """Medusa heads in layout v1, one layer each."""
    hidden, vocab = config.hidden, config.vocab
    shapes: dict[str, Shape] = {}
    for h in range(heads):
        shapes[f"{h}.0.linear.weight"] = (hidden, hidden)
        shapes[f"{h}.0.linear.bias"] = (hidden,)
        shapes[f"{h}.1.weight"] = (vocab, hidden)
    return [Weight(name, shape, 0.0, std) for name, shape in shapes.items()]


def write_safetensors(path: Path, weights: Sequence[Weight], dtype: str, seed: int, progress: Progress) -> None:
    """One safetensors file, tensor after tensor; `path` appears when it is whole.

    The format: eight bytes with the header's length, the header as JSON with every tensor's place, the values.
    """
    kind, name = DTYPES[dtype]
    width, offset = np.dtype(kind).itemsize, 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for weight in weights:
        end = offset + weight.size * width
        header[weight.name] = {"dtype": name, "shape": list(weight.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights:
            for piece in weight.pieces(seed):
                file.write(piece.astype(kind).view(np.uint8).data)
                progress(piece.size * width)
    part.rename(path)


def write_model(
    directory: Path, weights: Sequence[Weight], dtype: str, seed: int, shard: int, progress: Progress
) -> None:
    """model.safetensors, or several files of at most `shard` bytes (or one tensor) and, after them, their index."""
    width = np.dtype(DTYPES[dtype][0]).itemsize
    shards: list[list[Weight]] = [[]]
    filled = 0
    for weight in weights:
        size = weight.size * width
        if shards[-1] and filled + size > shard:
            shards.append([])
            filled = 0
        shards[-1].append(weight)
        filled += size
    if len(shards) == 1:
        write_safetensors(directory / SINGLE, weights, dtype, seed, progress)
        return
    places: dict[str, str] = {}
    for i, part in enumerate(shards, 1):
        file = f"{Path(SINGLE).stem}-{i:05}-of-{len(shards):05}.safetensors"
        write_safetensors(directory / file, part, dtype, seed, progress)
        places |= {weight.name: file for weight in part}
    total = sum(weight.size for weight in weights) * width
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def write_tokenizer(directory: Path, vocab: int, context: int) -> None:
    """The demo model's byte-fallback BPE with `vocab` entries: its first ones, then entries that no text gives."""
    raw = json.loads(DEMO_TOKENIZER.read_text("utf-8"))
    model = raw["model"]
    known = {piece: i for piece, i in model["vocab"].items() if i < vocab}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= known.keys()]
    model["vocab"] = known | {f"▁unused{i}": i for i in range(len(known), vocab)}
    (directory / TOKENIZER).write_text(json.dumps(raw, ensure_ascii=False, indent=1) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "unk_token": UNK,
        "clean_up_tokenization_spaces": False, "model_max_length": context, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (directory / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


def synthesize(
    name: str, out: Path, *, heads: int = HEADS, dtype: str = "float16", seed: int = 0, shard: int = 2 * GIB
) -> None:
    """Writes the checkpoint, its tokenizer and, unless `heads` is 0, its Medusa heads. Shows progress where it lasts.

    Raises ConfigurationError where `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} exists and is not an empty directory: remove it or choose another")
    out.mkdir(parents=True, exist_ok=True)
    raw = SHAPES[name] | {"dtype": dtype}
    (out / CONFIG).write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
    config = ModelConfig.read(out)
    write_tokenizer(out, config.vocab, config.context)
    std = float(raw["initializer_range"])
    model, extra = model_weights(config, std), head_weights(config, heads, std)
    total = sum(weight.size for weight in (*model, *extra)) * np.dtype(DTYPES[dtype][0]).itemsize
    with tqdm(
        total=total, desc=f"{out.name}: {name}", unit="B", unit_scale=True, delay=1, disable=None, file=sys.stderr
    ) as bar:
        if heads:
            write_safetensors(out / HEADS_NAMES[0], extra, dtype, seed, bar.update)
        write_model(out, model, dtype, seed, shard, bar.update)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m export.synthetic",
        description="Writes a checkpoint of a published model's true shape with random weights: config.json, "
        "safetensors, tokenizer, Medusa heads.",
    )
    add = top.add_argument
    add("name", choices=SHAPES, metavar="NAME", help=", ".join(SHAPES))
    add("--out", type=Path, required=True, metavar="DIR", help="the directory to make")
    add("--heads", type=int, default=HEADS, metavar="N", help="Medusa heads, 0 for none (%(default)s)")
    add("--dtype", choices=DTYPES, default="float16", help="of the tensors (%(default)s)")
    add("--seed", type=int, default=0, help="of the random weights (%(default)s)")
    add("--shard-gib", type=float, default=2.0, metavar="GIB", help="size of a file at most (%(default)s)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    top = parser()
    options = top.parse_args(arguments)
    for name, low in (("heads", 0), ("seed", 0), ("shard_gib", 1e-6)):
        if not getattr(options, name) >= low:
            top.error(f"--{name.replace('_', '-')} is {getattr(options, name)}: expected at least {low}")
    try:
        synthesize(
            options.name, options.out, heads=options.heads, dtype=options.dtype, seed=options.seed,
            shard=int(options.shard_gib * GIB),
        )  # fmt: skip
    except (GorgonError, OSError) as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, GorgonError) else 1
    files = sorted(path for path in options.out.iterdir() if path.suffix == ".safetensors")
    size = sum(path.stat().st_size for path in files) / GIB
    print(f"{options.out}: {options.name}, {options.heads} Medusa heads, {len(files)} files of tensors, {size:.2f} GiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
