"""A synthetic checkpoint's vocabulary as sentencepiece and llama.cpp have it: pieces, their scores and their kinds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.pieces import BPE, Kind

Piece = tuple[str, float, Kind]


def pieces_of(tokenizer: Mapping[str, Any]) -> list[Piece]:
    """Of a tokenizer.json with byte fallback: scores are the ranks of the merges that make the pieces."""
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(tokenizer["model"]["merges"]):
        ranks.setdefault("".join(pair), rank)
    return [
        (text, -float(ranks.get(text, len(ranks))), _kind(i, text, special))
        for i, text in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))
    ]


def _kind(token: int, text: str, special: set[int]) -> Kind:
    if token in special:
        return Kind.UNKNOWN if token == 0 else Kind.CONTROL
    if text.startswith("<0x") and len(text) == 6:
        return Kind.BYTE
    return Kind.UNUSED if text.startswith("▁unused") else Kind.NORMAL


def write_sentencepiece(path: Path, tokenizer: Mapping[str, Any]) -> None:
    """A `tokenizer.model` with Llama's settings, but for the space before a text. Needs sentencepiece."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto: Any = vars(schema)["ModelProto"]()
    for text, score, kind in pieces_of(tokenizer):
        proto.pieces.add(piece=text, score=score, type=int(kind))
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = BPE, True, len(proto.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = "identity", False, False
    path.write_bytes(proto.SerializeToString())
