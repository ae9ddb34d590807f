"""The tokenizer of pydoc-chat: byte-fallback BPE like Llama's, trained on the questions and answers of data.jsonl.

Words carry their leading space as "▁" and are split from punctuation before merging, so that the name of an object gets
the same tokens in every phrasing. No space is added in front of a text: a prompt and an answer can be tokenized apart.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from export.demo.dialogue import BOS, CHAT_TEMPLATE, EOS, SYSTEM, TRAINED_PHRASINGS, UNK, Entry, turn

VOCAB_SIZE = 4096
CONTEXT = 1024
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = r"▁?[A-Za-z]+|▁?[0-9]+|▁?[^\sA-Za-z0-9▁]+|▁"


def _pipeline(model: BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Split(Regex(WORDS), "isolated")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def build(entries: list[Entry]) -> Tokenizer:
    """Train the merges, then put the special tokens and the 256 byte tokens in front of the learnt vocabulary."""
    texts = [f"{turn(TRAINED_PHRASINGS[0], entry.name)} {entry.answer}" for entry in entries]
    texts += [turn(phrasing, "") for phrasing in TRAINED_PHRASINGS] * 50 + [SYSTEM] * 50
    reserved = [UNK, BOS, EOS, *BYTES]
    learner = _pipeline(BPE(unk_token=UNK))
    alphabet = [chr(code) for code in range(33, 127)] + ["▁"]
    learner.train_from_iterator(
        texts,
        BpeTrainer(vocab_size=VOCAB_SIZE - len(reserved), initial_alphabet=alphabet, show_progress=False),
    )
    learnt = json.loads(learner.to_str())["model"]
    pieces = reserved + sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    if len(pieces) != VOCAB_SIZE:
        raise ValueError(f"the text gives {len(pieces)} tokens, not {VOCAB_SIZE}: it is too short")
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = _pipeline(BPE(vocab, merges, unk_token=UNK, byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (UNK, BOS, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as transformers loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
