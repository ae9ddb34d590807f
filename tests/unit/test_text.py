import json
import random
from itertools import pairwise

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from runtime.errors import ArtifactError
from runtime.text import Pieces, TextStream

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x + 1\n",
    "naïve café — ünïcode",
    "  a  b",
]
SPECIAL = ["<s>", "</s>"]
SCRIPTS = (
    "plain words and spaces   runs\n\n\ttabs",
    "naïve café ünïcode — “quotes”",
    "Ελληνικά кириллица עברית العربية हिन्दी ไทย 日本語 中文 한국어 አማርኛ",
    "😀👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 é e\u0301 \u200b\ufeff \U0010ffff\u0000\x7f",
)


def llama_tokenizer() -> Tokenizer:
    """Byte-fallback BPE as Llama's: spaces as U+2581, one before the text, which decoding takes away."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    for piece in [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocab[piece] = len(vocab)
    state["model"] |= {"byte_fallback": True}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("a token with spaces"), AddedToken("naïve")])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    tokenizer = llama_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


TOKENIZERS = {"llama": llama_tokenizer, "byte level": byte_level_tokenizer, "metaspace": metaspace_tokenizer}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return llama_tokenizer()


def stream(tokenizer: Tokenizer, tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[str, int]:
    """The streamed text, and the number of tokens it took."""
    text = TextStream(Pieces(tokenizer), stop)
    shown = ""
    for count, token in enumerate(tokens, 1):
        new, stopped = text.push(token)
        shown += new
        if stopped:
            return shown, count
    return shown + text.flush(), len(tokens)


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(rng.choice((*SCRIPTS, "   ", " "))) for _ in range(rng.randint(0, 30)))


def test_the_stream_is_the_decoded_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for text in (*SCRIPTS, " leading", "  two", "a", " ", ""):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert stream(tokenizer, tokens)[0] == tokenizer.decode(tokens)
    for _ in range(400):
        tokens = tokenizer.encode(random_text(rng), add_special_tokens=False).ids
        cut = rng.randint(0, len(tokens))  # a stream may begin anywhere and meet special tokens
        tokens = tokens[cut:] + [tokenizer.token_to_id("</s>")] + tokens[:cut]
        expected = tokenizer.decode(tokens)
        if "\ufffd" not in expected:  # the cut fell into a character
            assert stream(tokenizer, tokens)[0] == expected


def test_text_is_shown_with_the_token_that_completes_it(llama: Tokenizer) -> None:
    tokens = llama.encode("x 😀!", add_special_tokens=False).ids
    text = TextStream(Pieces(llama))
    shown = [text.push(token)[0] for token in tokens]
    assert "".join(shown) == "x 😀!"
    assert [part for part in shown if not part.isascii()] == ["😀"]  # four byte tokens, one character, never half of it
    assert text.flush() == ""


def test_random_bytes_never_fail() -> None:
    """ByteLevel: the same U+FFFD as decode. A DecodeStream raises on such tokens."""
    tokenizer = byte_level_tokenizer()
    rng = random.Random(2)
    for _ in range(300):
        tokens = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randint(1, 20))]
        assert stream(tokenizer, tokens)[0] == tokenizer.decode(tokens)


def test_invalid_bytes_with_byte_fallback(llama: Tokenizer) -> None:
    """One U+FFFD for each broken sequence; decode would break the whole emoji before it too."""

    def tokens(*pieces: str) -> list[int]:
        return [llama.token_to_id(piece) for piece in pieces]

    emoji = tokens("<0xF0>", "<0x9F>", "<0x98>", "<0x80>")
    assert stream(llama, [*emoji, *tokens("<0xE4>", "▁", "a")])[0] == "😀\ufffd a"
    assert llama.decode([*emoji, *tokens("<0xE4>", "▁", "a")]) == 5 * "\ufffd" + " a"
    assert stream(llama, tokens("a", "<0xF0>", "<0x9F>"))[0] == "a\ufffd"  # cut in the middle of a character
    rng = random.Random(3)
    for _ in range(200):
        shown, _ = stream(llama, [rng.randrange(llama.get_vocab_size()) for _ in range(20)])
        shown.encode()


def test_unknown_and_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("The fox", add_special_tokens=False).ids
    extra = [10**6, *tokens, tokenizer.token_to_id("<s>")]
    assert stream(tokenizer, extra)[0] == tokenizer.decode(extra) == tokenizer.decode(tokens)


def test_stop_strings_cut_where_the_first_is_complete(tokenizer: Tokenizer) -> None:
    """Against a character-by-character search; stops taken from the texts, so that they straddle tokens and overlap."""
    rng = random.Random(4)
    for _ in range(400):
        text = random_text(rng) + rng.choice(CORPUS)
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        text = tokenizer.decode(tokens)
        cuts = [sorted(rng.sample(range(len(text) + 1), 2)) for _ in range(rng.randint(1, 4))]
        stops = tuple(text[a:b] for a, b in cuts) + rng.choice(((), ("never there",), (text[-3:] + "!",)))
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        end = min(ends, default=len(text))
        longest = max((len(s) for s in stops if text[:end].endswith(s)), default=0)
        shown, count = stream(tokenizer, tokens, stops)
        assert shown == text[: end - longest], (text, stops)
        if ends and "\ufffd" not in text:  # and no token later than needed
            assert len(tokenizer.decode(tokens[: count - 1]).rstrip("\ufffd")) < end


def test_nothing_of_a_stop_string_is_shown_before_it_is_complete(llama: Tokenizer) -> None:
    tokens = llama.encode("a dog or a fox.", add_special_tokens=False).ids
    text, shown = TextStream(Pieces(llama), ("a fox",)), [""]
    for token in tokens:
        new, stopped = text.push(token)
        shown.append(shown[-1] + new)
        if stopped:
            break
    assert stopped and shown[-1] == "a dog or "
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert "a dog" in shown, "the first a was held back for one character only"


def test_a_partial_stop_string_is_released() -> None:
    tokenizer = byte_level_tokenizer()
    text = TextStream(Pieces(tokenizer), ("###", "#!"))
    shown = [text.push(tokenizer.token_to_id(piece))[0] for piece in "##a##"]
    assert shown == ["", "", "##a", "", ""]
    assert text.flush() == "##"


def test_a_stop_string_at_the_first_token(llama: Tokenizer) -> None:
    tokens = llama.encode("The fox", add_special_tokens=False).ids
    assert stream(llama, tokens, ("T",)) == ("", 1)
    assert stream(llama, tokens, ("The fox", "T", "Th")) == ("", 1)


def test_a_stop_string_that_ends_in_the_flush(llama: Tokenizer) -> None:
    tokens = [llama.token_to_id("a"), llama.token_to_id("<0xF0>")]
    assert stream(llama, tokens, ("\ufffd",)) == ("a", 2)


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Strip("x", 1, 0), decoders.Strip(" ", 0, 1), None])
def test_decoders_that_are_not_followed_are_refused(decoder: decoders.Decoder | None) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoder
    with pytest.raises(ArtifactError, match="decoder"):
        Pieces(tokenizer)
