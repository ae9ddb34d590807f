"""A converted sentencepiece vocabulary gives sentencepiece's own tokens, and its own text back."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer

from export.config import ModelConfig
from export.pieces import Pieces, Usage, check_against_sentencepiece, read_model, to_tokenizer
from export.tokenizer import TokenizerFiles
from runtime.errors import CheckpointError
from runtime.text import Pieces as Bytes
from runtime.text import TextStream
from tests.checkpoints import tiny_llama

LEARNT = (Path(__file__).parents[2] / "README.md").read_text() + (Path(__file__).parents[2] / "LICENSE").read_text()
SCRIPTS = """Ein Käse für Ærøskøbing, łódź, Ğüzel, naïve façade
Быстрая лиса
Η γρήγορη αλεπού
שועל מהיר
الثعلب السريع
तेज़ लोमड़ी
দ্রুত শিয়াল
விரைவான நரி
สุนัขจิ้งจอก
敏捷的棕色狐狸
すばしっこい茶色の狐
빠른 갈색 여우
ⴰⵡⴰⵍ
ᏣᎳᎩ
𐍈𐌰𐌹𐍂𐌽𐌰
ქართული
Հայերեն
አማርኛ
ភាសាខ្មែរ
བོད་སྐད
မြန်မာ
ᠮᠣᠩᠭᠣᠯ""".splitlines()
SPACES = "|| |  |   |\n|\n\n| \n |\t|a| a|  a|a |a  | a |a  b   c    d|\r\n|\u00a0nbsp\u2003em\u200bzero\ufeff"
CORPUS = [
    *SCRIPTS,
    " ".join(SCRIPTS),
    *SPACES.split("|"),
    *("▁", "▁▁a", "a▁b", " ▁", "▁ "),
    *("\x00\x01\x7f", "🙂", "👩\u200d👩\u200d👧 🇩🇪 👍🏽", "e\u0301 é ﬁ ½ Ⅷ ①", "0123456789", "3.14159 1,000,000 0x1F"),
    *("def f(x):\n    return x  # twice\n\n\n\tpass", "https://example.org/a?b=c&d=%20", "<0x0A>", "<0x41>b"),
    *("licenselicense license License LICENSE", "a" * 17, "x" * 300, " " * 50 + "x" + " " * 50),
    "[INST] <<SYS>>\nhi\n<</SYS>>\n\n [/INST]",
    LEARNT[:3000],
]


def train(directory: Path, **options: Any) -> Path:
    """A small `tokenizer.model` with Llama's settings, but for `options`."""
    directory.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    llama = {
        "model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "split_digits": True, "add_dummy_prefix": True,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
        "character_coverage": 0.99, "minloglevel": 2,
    }  # fmt: skip
    lines = [line for line in [*LEARNT.splitlines(), *SCRIPTS, "a  b   c    d     e"] if line.strip()]
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=iter(lines), model_writer=model, **(llama | options))
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


def change(directory: Path, edit: Callable[[Any], object]) -> Path:
    """Edits the model's protobuf."""
    proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]()
    proto.ParseFromString((directory / "tokenizer.model").read_bytes())
    edit(proto)
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())
    return directory


def theirs(directory: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def ours(directory: Path, **settings: Any) -> Tokenizer:
    """As an export converts it."""
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    vocab = 1200
    config = ModelConfig.read(tiny_llama(directory.parent / "config", vocab_size=vocab))
    return Tokenizer.from_str(TokenizerFiles.read(directory, config).text)


OPTIONS: dict[str, dict[str, Any]] = {
    "Llama's": {},
    "digits together": {"split_digits": False},
    "no prefix": {"add_dummy_prefix": False},
    "pieces across spaces": {"split_by_whitespace": False, "vocab_size": 900},
    "pieces across scripts": {"split_by_unicode_script": False, "split_by_number": False},
    "no bytes": {"byte_fallback": False, "character_coverage": 0.98},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("pieces") / "llama")


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_those_of_sentencepiece(tmp_path: Path, name: str, legacy: bool | None) -> None:
    directory = train(tmp_path / "model", **OPTIONS[name])
    tokenizer = ours(directory) if legacy is None else ours(directory, legacy=legacy)
    right = theirs(directory)
    for text in CORPUS:
        ids = right.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert tokenizer.encode(text).ids == [right.bos_id(), *ids]
        if right.unk_id() not in ids:
            assert tokenizer.decode(ids) == right.decode(ids) == text.replace("▁", " "), repr(text)


def test_random_texts(llama: Path) -> None:
    """Characters of every script in any order, and runs of a few: merges that compete."""
    tokenizer, right = ours(llama), theirs(llama)
    random = np.random.default_rng(0)
    characters = sorted(set("".join(CORPUS)))
    for length in (3, 10, 40) * 300:
        chosen = random.choice(characters, int(random.integers(2, len(characters))))
        text = "".join(random.choice(chosen[: random.integers(2, 30)], length))
        if "<" not in text:
            assert tokenizer.encode(text, add_special_tokens=False).ids == right.encode(text), repr(text)


def reversed_scores(proto: Any) -> None:
    normal = [piece for piece in proto.pieces if piece.type == 1]
    for piece, score in zip(normal, [other.score for other in reversed(normal)], strict=True):
        piece.score = score


def test_scores_decide_and_not_the_order_of_pieces(tmp_path: Path) -> None:
    directory = change(train(tmp_path / "model"), reversed_scores)
    tokenizer, right = ours(directory), theirs(directory)
    for text in CORPUS:
        assert tokenizer.encode(text, add_special_tokens=False).ids == right.encode(text), repr(text)


def test_every_piece_alone_decodes_alike(llama: Path) -> None:
    tokenizer, right = ours(llama), theirs(llama)
    for i in set(range(3, right.vocab_size())) - {right.piece_to_id("<0x20>")}:  # no text has it: a space is a piece
        assert tokenizer.decode([i]) == right.decode([i]), right.id_to_piece(i)
        pair = [i, 3 + (7 * i) % (right.vocab_size() - 3)]
        if not any(map(right.is_byte, pair)):  # bytes that are no character: decoders differ in how many U+FFFD
            assert tokenizer.decode(pair) == right.decode(pair)


def test_what_is_served_is_what_sentencepiece_decodes(llama: Path) -> None:
    """The runtime follows the decoder of the converted file."""
    tokenizer, right = ours(llama), theirs(llama)
    known = Bytes(tokenizer)
    for text in CORPUS:
        stream = TextStream(known)
        assert "".join([*(stream.push(i)[0] for i in right.encode(text)), stream.flush()]) == text.replace("▁", " ")


@pytest.mark.parametrize("legacy", [True, False])
def test_special_tokens_in_a_text(llama: Path, legacy: bool) -> None:
    """They cut the text: what is between is sentencepiece's, with a space in front of each part, or of the first."""
    tokenizer, right = ours(llama, legacy=legacy), theirs(llama)
    bare = sentencepiece.SentencePieceProcessor()
    proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]()
    proto.ParseFromString((llama / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    bare.LoadFromSerializedProto(proto.SerializeToString())
    texts = [
        "</s>", "<s>a", "a</s>", "a</s>b", "a </s> b", "a</s></s>b", "<s> a</s>\n<s>b </s>", "<unk> x", " </s>",
        "</s>  ",
        "USER: hi ASSISTANT: Hallo, Käse!</s>USER: 你好 ASSISTANT:", "a< /s>b</ s>", "<s></s><unk>",
    ]  # fmt: skip
    for text in texts:
        expected, at = [], 0
        while at < len(text):
            starts = [(text.find(token, at), token) for token in ("<s>", "</s>", "<unk>") if text.find(token, at) >= 0]
            start, token = min(starts, default=(len(text), ""))
            if part := text[at:start]:
                expected += (right if legacy or at == 0 else bare).encode(part)
            expected += [right.piece_to_id(token)] if token else []
            at = start + len(token)
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, repr(text)


def test_transformers_reads_the_converted_file_alike(llama: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = ours(llama)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded: Any = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in CORPUS:
        assert loaded(text).input_ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_what_is_put_around_a_text(llama: Path, bos: bool, eos: bool) -> None:
    tokenizer = ours(llama, add_bos_token=bos, add_eos_token=eos, eos_token={"content": "</s>"})
    ids = theirs(llama).encode("a b")
    assert tokenizer.encode("a b").ids == [1] * bos + ids + [2] * eos


def test_added_tokens(llama: Path, tmp_path: Path) -> None:
    """As tokenizer_config.json describes them, else from added_tokens.json; special where a map says so."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "tokenizer.model").write_bytes((llama / "tokenizer.model").read_bytes())
    (old / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 701, "<|im_start|>": 700, "<plain>": 702}))
    (old / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    )
    new = tmp_path / "new"
    new.mkdir()
    (new / "tokenizer.model").write_bytes((llama / "tokenizer.model").read_bytes())
    entries = {"700": "<|im_start|>", "701": "<|im_end|>", "702": "<plain>", "1": "<s>"}
    decoder = {
        i: {"content": t, "special": t != "<plain>", "lstrip": False, "rstrip": False, "single_word": False}
        for i, t in entries.items()
    }
    for tokenizer in (ours(old), ours(new, added_tokens_decoder=decoder)):
        text = "<|im_start|>user<plain><|im_end|>"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert (ids[0], ids[-2], ids[-1]) == (700, 702, 701)
        assert tokenizer.decode(ids) == "user<plain>"


def test_a_user_defined_piece_is_found_first(tmp_path: Path) -> None:
    directory = train(tmp_path / "model", user_defined_symbols=["<tool>"])
    tokenizer, right = ours(directory, legacy=False), theirs(directory)
    for text in ("a<tool>b", "a <tool> b", "x<tool>", "a<tool><tool>"):
        assert tokenizer.encode(text, add_special_tokens=False).ids == right.encode(text)
        assert tokenizer.decode(right.encode(text)) == text


def first_normal(proto: Any) -> Any:
    return next(piece for piece in proto.pieces if piece.type == 1 and len(piece.piece) == 2)


def competing(proto: Any) -> None:
    """All scores alike: the leftmost pair comes first, which ranks cannot say."""
    for piece in proto.pieces:
        piece.score = 0.0


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another kind": (lambda d: train(d, model_type="unigram"), "trainer_spec.model_type is 1, expected 2"),
    "a normalization": (
        lambda d: train(d, normalization_rule_name="nmt_nfkc"),
        "normalizer_spec.precompiled_charsmap is",
    ),
    "spaces removed": (
        lambda d: train(d, remove_extra_whitespaces=True),
        "normalizer_spec.remove_extra_whitespaces is True, expected False",
    ),
    "spaces after words": (
        lambda d: train(d, treat_whitespace_as_suffix=True),
        "trainer_spec.treat_whitespace_as_suffix is True",
    ),
    "unused pieces": (lambda d: change(train(d), lambda p: setattr(first_normal(p), "type", 5)), "is an unused piece"),
    "a piece twice": (
        lambda d: change(train(d), lambda p: setattr(p.pieces[-1], "piece", p.pieces[-2].piece)),
        "is there twice",
    ),
    "scores that ranks do not follow": (lambda d: change(train(d), competing), "sentencepiece itself"),
    "cut short": (
        lambda d: (train(d) / "tokenizer.model").write_bytes((d / "tokenizer.model").read_bytes()[:-9]),
        "is damaged or no sentencepiece model",
    ),
    "empty": (lambda d: (d / "tokenizer.model").write_bytes(b""), "has no pieces"),
    "a web page": (lambda d: (d / "tokenizer.model").write_bytes(b"<html></html>"), "no sentencepiece model"),
    "an added token elsewhere": (
        lambda d: (train(d) / "added_tokens.json").write_text('{"<new>": 900}'),
        "'<new>' gets id 700; the added tokens say 900",
    ),
    "an added token in another's place": (
        lambda d: (train(d) / "added_tokens.json").write_text('{"<new>": 5}'),
        "token 5 is '<0x02>', the added tokens say '<new>'",
    ),
    "added tokens that are none": (
        lambda d: (train(d) / "added_tokens.json").write_text('{"<new>": null}'),
        "expected added tokens with their ids",
    ),
    "more tokens than the model": (lambda d: train(d, vocab_size=1300), "has id 1299, the model's vocabulary ends at"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models(tmp_path: Path, name: str) -> None:
    damage, message = BAD[name]
    (tmp_path / "model").mkdir()
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError) as caught:
        ours(tmp_path / "model")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("settings", [{"legacy": "yes"}, {"add_bos_token": 1}, {"sp_model_kwargs": {"alpha": 0.1}}])
def test_settings_that_are_not_honoured(llama: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="tokenizer_config.json: .*expected"):
        ours(llama, **settings)


def test_no_prefix_by_the_settings(llama: Path) -> None:
    tokenizer = ours(llama, add_prefix_space=False)
    ids = tokenizer.encode("license", add_special_tokens=False).ids
    assert theirs(llama).id_to_piece(ids[0])[0] != "▁" and tokenizer.decode(ids) == "license"


def test_a_conversion_that_is_wrong_is_found(llama: Path) -> None:
    """The check that every export of a tokenizer.model makes."""
    pieces = read_model(llama / "tokenizer.model")
    usage = Usage("<s>", None, True, {})
    check_against_sentencepiece(to_tokenizer(pieces, usage), pieces)
    bare = Pieces(pieces.where, pieces.texts, pieces.scores, pieces.kinds, prefix=False)
    with pytest.raises(CheckpointError, match="sentencepiece itself"):
        check_against_sentencepiece(to_tokenizer(bare, usage), pieces)
    for settings in ({}, {"add_prefix_space": True}, {"add_prefix_space": None}):
        change(train(llama.parent / "competing"), competing)
        with pytest.raises(CheckpointError, match="sentencepiece itself"):
            ours(llama.parent / "competing", **settings)
    clash = {3: AddedToken("<other>", special=True)}
    with pytest.raises(CheckpointError, match="token 3 is '<0x00>', the added tokens say '<other>'"):
        to_tokenizer(pieces, Usage("<s>", None, True, clash))
