"""A sentencepiece BPE vocabulary, from a `tokenizer.model` or a GGUF file's metadata, as a tokenizer.json.

The tokens of a text without special tokens are those of sentencepiece itself. Special and added tokens are looked for
first, as transformers and llama.cpp do (sentencepiece alone would spell them out).

sentencepiece merges, again and again, the neighbours that make the piece of the highest score, the leftmost of equals;
tokenizers merges by rank. So the ranks are the order of scores (Kudo and Richardson, SentencePiece, 2018).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from runtime.errors import CheckpointError

SPACE = "▁"
BPE = 2  # of sentencepiece's model types
PROBES, PROBE_PIECES = 100, 40  # texts that a conversion is checked with, and the pieces of each


class Kind(IntEnum):
    """What a piece is; the numbers of sentencepiece's ModelProto, and of GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Pieces:
    """The vocabulary by id. `prefix`: a space goes before a text, and is taken away again when it is decoded."""

    where: Path
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[Kind, ...]
    prefix: bool

    @property
    def ids(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.texts)}


@dataclass(frozen=True, slots=True)
class Usage:
    """How a checkpoint uses its pieces. `begin`, `end`: tokens put around every raw text.

    `legacy`: the space goes before the text after each special token as well, as transformers did at first.
    `added`: tokens by id, in the vocabulary or after it.
    """

    begin: str | None
    end: str | None
    legacy: bool
    added: Mapping[int, AddedToken]


def read_model(path: Path) -> Pieces:
    """A `tokenizer.model`; raises CheckpointError for one that is not Llama's kind. Needs sentencepiece."""
    proto = _proto(path)
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    settings: dict[str, tuple[Any, Any]] = {  # name: (found, right)
        "trainer_spec.model_type": (trainer.model_type, BPE),
        "trainer_spec.treat_whitespace_as_suffix": (trainer.treat_whitespace_as_suffix, False),
        "normalizer_spec.precompiled_charsmap": (len(normalizer.precompiled_charsmap), 0),
        "normalizer_spec.remove_extra_whitespaces": (normalizer.remove_extra_whitespaces, False),
        "normalizer_spec.escape_whitespaces": (normalizer.escape_whitespaces, True),
        "denormalizer_spec.precompiled_charsmap": (len(proto.denormalizer_spec.precompiled_charsmap), 0),
    }
    for name, (found, right) in settings.items():
        if found != right:
            raise CheckpointError(
                f"{path}: {name} is {found}, expected {right}, as Llama's tokenizers have it (BPE of unchanged text): "
                "add the tokenizer.json that the model was published with"
            )
    return Pieces(
        path,
        tuple(piece.piece for piece in proto.pieces),
        tuple(piece.score for piece in proto.pieces),
        tuple(Kind(piece.type) for piece in proto.pieces),
        normalizer.add_dummy_prefix,
    )


def _proto(path: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2 as schema
    except ImportError:
        raise CheckpointError(
            f"{path} takes sentencepiece to read: `make export` installs it, or pip install 'gorgon[sentencepiece]'"
        ) from None
    proto: Any = vars(schema)["ModelProto"]()  # protobuf makes the class at run time: it has no static type
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # of protobuf, which is not ours to import
        raise CheckpointError(f"{path} is damaged or no sentencepiece model: {error}; fetch it again") from None
    if not proto.pieces:
        raise CheckpointError(f"{path} is damaged or no sentencepiece model: it has no pieces; fetch it again")
    return proto


def to_tokenizer(pieces: Pieces, usage: Usage) -> Tokenizer:
    """The tokenizer of these pieces; raises CheckpointError for pieces that it cannot follow."""
    ids = pieces.ids
    if len(ids) != len(pieces.texts):
        twice = next(text for i, text in enumerate(pieces.texts) if ids[text] != i)
        raise CheckpointError(f"{pieces.where}: {twice!r} is there twice, expected every piece once")
    unknown = next((text for text, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind == Kind.UNKNOWN), None)
    fallback = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    if not fallback and unknown is None:
        raise CheckpointError(f"{pieces.where} has neither bytes nor an unknown token: what is not in it has no token")
    merges = _merges(pieces, ids)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    _add_tokens(tokenizer, pieces, usage.added)
    _set_spaces(tokenizer, pieces.prefix, usage.legacy)
    around = [token for token in (usage.begin, usage.end) if token is not None]
    if around:
        form = " ".join([usage.begin or "", "$A", usage.end or ""]).strip()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=form, special_tokens=[(token, _id_of(tokenizer, pieces.where, token)) for token in around]
        )
    return tokenizer


def _merges(pieces: Pieces, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, those of the highest score first."""
    mergeable = {Kind.NORMAL, Kind.UNUSED}
    found = []
    for whole, (text, kind) in enumerate(zip(pieces.texts, pieces.kinds, strict=True)):
        if kind not in mergeable:
            continue
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None and {pieces.kinds[left], pieces.kinds[right]} <= mergeable:
                if kind == Kind.UNUSED:
                    raise CheckpointError(
                        f"{pieces.where}: {text!r} is an unused piece that other pieces make, which is not honoured: "
                        "add the tokenizer.json that the model was published with"
                    )
                found.append((-pieces.scores[whole], whole, left, right))
    return [(pieces.texts[left], pieces.texts[right]) for _, _, left, right in sorted(found)]


def _add_tokens(tokenizer: Tokenizer, pieces: Pieces, added: Mapping[int, AddedToken]) -> None:
    """Special and user-defined pieces are found in a text before all else; added ones too, which may be new."""
    own = {
        i: AddedToken(text, normalized=False, special=kind != Kind.USER_DEFINED)
        for i, (text, kind) in enumerate(zip(pieces.texts, pieces.kinds, strict=True))
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    }
    for i, token in sorted((own | dict(added)).items()):
        content, right = token.content, pieces.texts[i] if i < len(pieces.texts) else None
        if right is not None and content != right:
            raise CheckpointError(f"{pieces.where}: token {i} is {right!r}, the added tokens say {content!r}")
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if (got := tokenizer.token_to_id(content)) != i:
            raise CheckpointError(
                f"{pieces.where} has {len(pieces.texts)} pieces, so the added token {content!r} gets id {got}; the "
                f"added tokens say {i}: expected ids without gaps"
            )


def _set_spaces(tokenizer: Tokenizer, prefix: bool, legacy: bool) -> None:
    """Spaces become ▁, with one more in front: of each text between special tokens (legacy), or of the first only.

    tokenizers' Metaspace puts none before a text that begins with its replacement, where sentencepiece does. So spaces
    are replaced first, and the Metaspace that only puts the space has the space itself as its replacement.
    """
    steps: list[Any] = [normalizers.Replace(Regex(" "), SPACE)]
    if prefix and legacy:
        steps.insert(0, normalizers.Prepend(SPACE))
    elif prefix:
        first = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
        shown = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, shown])
    tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _id_of(tokenizer: Tokenizer, where: Path, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise CheckpointError(f"{where} has no token {token!r}, which is to be put around every text")
    return int(found)


def check_against_sentencepiece(tokenizer: Tokenizer, pieces: Pieces) -> None:
    """Raises CheckpointError if random texts of the vocabulary's pieces get other tokens than sentencepiece's."""
    from sentencepiece import SentencePieceProcessor

    theirs: Any = SentencePieceProcessor(model_file=str(pieces.where))
    for text in _probes(pieces):
        ours, right = tokenizer.encode(text, add_special_tokens=False).ids, theirs.encode(text)
        if ours != right:
            raise CheckpointError(
                f"{pieces.where}: converted, it gives {text!r} the tokens {ours}, sentencepiece itself {right}: add "
                "the tokenizer.json that the model was published with"
            )


def _probes(pieces: Pieces) -> Iterator[str]:
    """Reproducible texts of pieces, and of what no piece is; none with a special token in it."""
    random = np.random.default_rng(0)
    found: Sequence[str] = [
        text.replace(SPACE, " ") for text, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind == Kind.NORMAL
    ]
    apart = [
        text for text, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind not in (Kind.NORMAL, Kind.BYTE)
    ]
    for _ in range(PROBES):
        chosen = [found[i] for i in random.integers(0, len(found), PROBE_PIECES)] + [" ", "  ", "\n", "\t", "ﷺ", "🜲"]
        text = "".join(chosen[i] for i in random.permutation(len(chosen)))
        if not any(token and token in text for token in apart):
            yield text
