"""`python -m export.synthetic NAME --out DIR`: a checkpoint of a published model's true shape, with random weights.

For tests and benchmarks of what the shape alone decides: formats, sizes, memory, milliseconds. Every tensor's values
follow from the seed and its name, whatever the file layout; they are drawn and written piece by piece, so that memory
does not grow with the model. The tokenizer is a real one: the demo model's, cut or filled up to the vocabulary's size.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from export.checkpoint import FILES
from export.checkpoint import HEADS as HEADS_PREFIX
from export.config import FILE as CONFIG
from export.config import ModelConfig
from export.demo.dialogue import BOS, CHAT_TEMPLATE, EOS, UNK
from export.fields import Fields
from export.heads import OWN
from export.random_weights import Weight, head_weights, model_weights
from export.synthetic_pieces import write_sentencepiece
from export.tokenizer import FILE as TOKENIZER
from export.tokenizer import SENTENCEPIECE, SETTINGS
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
    "float32": (np.float32, "F32"),
}
GGUF_FORMS: Mapping[str, str] = {
    f"gguf-{kind.lower()}": kind
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_1", "Q4_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
}
FORMS = ("safetensors", "bin", *GGUF_FORMS)
HEADS = 5  # as published for vicuna
DEMO_TOKENIZER = Path(__file__).parent / "demo" / "model" / TOKENIZER
GIB = 1 << 30
TENSORS = (".safetensors", ".bin", ".pt", ".gguf")

Progress = Callable[[int], object]  # told the bytes that were written


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


def write_pickle(path: Path, weights: Sequence[Weight], dtype: str, seed: int, progress: Progress) -> None:
    """One file of torch.save, which takes all of its tensors at once. Needs torch."""
    import torch

    kind = DTYPES[dtype][0]
    tensors = {}
    for weight in weights:
        values = np.concatenate([piece.astype(kind) for piece in weight.pieces(seed)]).reshape(weight.shape)
        bits = values.view(np.int16 if values.itemsize == 2 else np.int32)  # torch does not know ml_dtypes' bfloat16
        tensors[weight.name] = torch.from_numpy(bits).view(getattr(torch, dtype))
        progress(values.nbytes)
    torch.save(tensors, path)


def write_model(
    directory: Path, weights: Sequence[Weight], dtype: str, seed: int, shard: int, progress: Progress, pickled: bool
) -> None:
    """One file, or several of at most `shard` bytes (or one tensor) and, after them, their index."""
    write, single, index = (write_pickle, *FILES[2:]) if pickled else (write_safetensors, *FILES[:2])
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
        write(directory / single, weights, dtype, seed, progress)
        return
    places: dict[str, str] = {}
    for i, part in enumerate(shards, 1):
        file = f"{Path(single).stem}-{i:05}-of-{len(shards):05}{Path(single).suffix}"
        write(directory / file, part, dtype, seed, progress)
        places |= {weight.name: file for weight in part}
    total = sum(weight.size for weight in weights) * width
    contents = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / index).write_text(json.dumps(contents, indent=1) + "\n", "utf-8")


def tokenizer_of(vocab: int) -> dict[str, Any]:
    """The demo model's byte-fallback BPE with `vocab` entries: its first ones, then entries that no text gives."""
    raw: dict[str, Any] = json.loads(DEMO_TOKENIZER.read_text("utf-8"))
    model = raw["model"]
    known = {piece: i for piece, i in model["vocab"].items() if i < vocab}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= known.keys()]
    model["vocab"] = known | {f"▁unused{i}": i for i in range(len(known), vocab)}
    return raw


def write_tokenizer(directory: Path, vocab: int, context: int, sentencepiece: bool = False) -> None:
    raw = tokenizer_of(vocab)
    if sentencepiece:
        write_sentencepiece(directory / SENTENCEPIECE, raw)
    else:
        (directory / TOKENIZER).write_text(json.dumps(raw, ensure_ascii=False, indent=1) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "unk_token": UNK,
        "clean_up_tokenization_spaces": False, "model_max_length": context, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (directory / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


def synthesize(
    name: str,
    out: Path,
    *,
    heads: int = HEADS,
    form: str = FORMS[0],
    dtype: str = "float16",
    seed: int = 0,
    shard: int = 2 * GIB,
    joined: bool = False,
    sentencepiece: bool = False,
) -> None:
    """Writes the checkpoint, its tokenizer and, unless `heads` is 0, its Medusa heads. Shows progress where it lasts.

    `joined`: the heads are among the model's tensors, as Medusa-2 has them. `sentencepiece`: the tokenizer is a
    tokenizer.model. Pickles take the memory of one file, the other forms that of one tensor. In a GGUF form the
    tokenizer and the config are in its file; `dtype` is then of the heads. Raises ConfigurationError where `out` holds
    something already, or the form cannot be so.
    """
    if form in GGUF_FORMS and (joined or sentencepiece):
        raise ConfigurationError(f"form {form} has its tokenizer inside and its heads outside: leave both as they are")
    if joined and not heads:
        raise ConfigurationError("there are no heads to be among the model's tensors: take some, or leave out --joined")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} exists and is not an empty directory: remove it or choose another")
    raw = SHAPES[name] | {"dtype": dtype}
    config = ModelConfig.of(Fields(out / CONFIG, raw), None)
    std = float(raw["initializer_range"])
    model, extra = model_weights(config, std), head_weights(config, heads, std)
    if form in GGUF_FORMS:
        from export.synthetic_gguf import check_widths, write_gguf  # needs the gguf package

        check_widths(model, form)
    out.mkdir(parents=True, exist_ok=True)
    total = sum(weight.size for weight in (*model, *extra)) * np.dtype(DTYPES[dtype][0]).itemsize
    with tqdm(
        total=total, desc=f"{out.name}: {name}", unit="B", unit_scale=True, delay=1, disable=None, file=sys.stderr
    ) as bar:
        if joined:
            model += [replace(weight, name=HEADS_PREFIX + weight.name) for weight in extra]
        elif heads:
            write, file = (write_pickle, OWN[1]) if form == "bin" else (write_safetensors, OWN[0])
            write(out / file, extra, dtype, seed, bar.update)
        if form in GGUF_FORMS:
            tokens = tokenizer_of(config.vocab)
            write_gguf(out / f"{name}.{GGUF_FORMS[form]}.gguf", config, model, form, tokens, seed, bar.update)
        else:
            (out / CONFIG).write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
            write_tokenizer(out, config.vocab, config.context, sentencepiece)
            write_model(out, model, dtype, seed, shard, bar.update, form == "bin")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m export.synthetic",
        description="Writes a checkpoint of a published model's true shape with random weights: config.json, "
        "tensors, tokenizer, Medusa heads.",
    )
    add = top.add_argument
    add("name", choices=SHAPES, metavar="NAME", help=", ".join(SHAPES))
    add("--out", type=Path, required=True, metavar="DIR", help="the directory to make")
    add("--heads", type=int, default=HEADS, metavar="N", help="Medusa heads, 0 for none (%(default)s)")
    add("--form", choices=FORMS, default=FORMS[0], metavar="FORM", help=f"{', '.join(FORMS)} (%(default)s)")
    add("--joined", action="store_true", help="the heads among the model's tensors, as Medusa-2 has them")
    add("--sentencepiece", action="store_true", help="the tokenizer as tokenizer.model, as vicuna has it")
    add("--dtype", choices=DTYPES, default="float16", help="of the tensors that the form leaves open (%(default)s)")
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
            options.name, options.out, heads=options.heads, form=options.form, dtype=options.dtype, seed=options.seed,
            shard=int(options.shard_gib * GIB), joined=options.joined, sentencepiece=options.sentencepiece,
        )  # fmt: skip
    except (GorgonError, OSError) as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, GorgonError) else 1
    files = sorted(path for path in options.out.iterdir() if path.suffix in TENSORS)
    size = sum(path.stat().st_size for path in files) / GIB
    print(f"{options.out}: {options.name}, {options.heads} Medusa heads, {len(files)} files of tensors, {size:.2f} GiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
