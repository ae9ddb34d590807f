"""Llama 3's kind of tokenizer, byte-level BPE with merges, from what a GGUF file holds of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from export.pieces import Kind
from runtime.errors import CheckpointError

# What llama.cpp calls it, and how it cuts a text before merging (tokenizer.json of meta-llama/Meta-Llama-3-8B).
NAMES = ("llama-bpe", "llama3", "llama-v3")
_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_tokenizer(
    where: Path, texts: Sequence[str], kinds: Sequence[Kind], merges: Sequence[str], around: Mapping[str, str | None]
) -> Tokenizer:
    """`merges` as "left right", the first ones first; `around`: the tokens "bos" and "eos" put around a text.

    Raises CheckpointError for merges of what is no token.
    """
    ids = {text: i for i, text in enumerate(texts)}
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise CheckpointError(
                f"{where}: tokenizer.ggml.merges has {merge!r}, expected two tokens that make a third"
            )
        pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(ids, pairs, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(_CUTS), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    for text, kind in zip(texts, kinds, strict=True):
        if kind == Kind.CONTROL:
            tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind == Kind.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(text, normalized=False)])
    tokens = [(token, ids[token]) for token in around.values() if token is not None]
    if tokens:
        form = " ".join(part for part in (around["bos"], "$A", around["eos"]) if part is not None)
        tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=tokens)
    return tokenizer
