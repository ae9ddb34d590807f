"""From an answer's tokens to its text, as far as it is certain, and the stop strings that end it.

`Pieces` knows a tokenizer's tokens as bytes, one for an engine; a `TextStream` is one sequence's text. The tokenizers
package has a DecodeStream, which decodes a token's neighbours again and again and gives up (raises) where bytes that
are no character follow a character; a stream of bytes does neither.
"""

import codecs
import json
import re

from tokenizers import Tokenizer

from runtime.errors import ArtifactError

BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_level() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's vocabulary: printable ones for themselves, others from U+0100."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_LEVEL = _byte_level()


class Pieces(dict[int, bytes]):
    """The bytes each token stands for; none for special tokens and for ids that the tokenizer does not have.

    Follows the decoder of tokenizer.json: ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse and Strip
    (Llama's). Raises ArtifactError for other decoders.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._replace: list[tuple[str, str]] = []
        self._byte_level = self._byte_fallback = False
        self.strip = 0  # spaces taken from the beginning of a text
        self.bare = ""  # the character that the first token of a text loses
        if tokenizer.decoder is None:
            raise ArtifactError("tokenizer.json has no decoder: it has to say how tokens become text")
        state = json.loads(tokenizer.decoder.__getstate__())
        for step in state["decoders"] if state["type"] == "Sequence" else [state]:
            self._follow(step)

    def _follow(self, step: dict[str, object]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Fuse"}:
                pass  # the stream's text is one string already
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._replace.append((old, new))
            case {"type": "Metaspace", "replacement": str(old), "prepend_scheme": str(scheme)}:
                self._replace.append((old, " "))
                self.bare = "" if scheme == "never" else " "
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                self.strip = start
            case _:
                raise ArtifactError(f"tokenizer.json has the decoder {json.dumps(step)}, which text.py does not follow")

    def __missing__(self, token: int) -> bytes:
        text = None if token in self._special else self._tokenizer.id_to_token(token)
        self[token] = piece = b"" if text is None else self._bytes(text)
        return piece

    def _bytes(self, text: str) -> bytes:
        if self._byte_level and all(character in BYTE_LEVEL for character in text):
            return bytes(BYTE_LEVEL[character] for character in text)
        for old, new in self._replace:
            text = text.replace(old, new)
        if self._byte_fallback and (match := BYTE.fullmatch(text)):
            return bytes.fromhex(match[1])
        return text.encode()


class TextStream:
    """The text of one answer, token by token.

    What was shown, together with what `flush` returns, is `tokenizer.decode` of all tokens, cut before the stop string
    that was completed first. Half a character, and text that may begin a stop string, waits for the next token. Bytes
    that are no UTF-8 show as U+FFFD, one for each broken sequence, at the end also for half a character. That is what
    `decode` does with ByteLevel; with byte fallback `decode` would also break the whole characters beside them, which
    a stream has shown already.
    """

    def __init__(
        self, pieces: Pieces, stop: tuple[str, ...] = (), include: bool = False, unstopped: int = 0, bare: bool = True
    ) -> None:
        """`include`: show the stop string that ended it. `unstopped`: no stop string begins in that many first tokens.

        `bare`: as `decode`, without the space that some tokenizers put before a text.
        """
        self._pieces = pieces
        self._stop = stop
        self._include = include
        self._unstopped = unstopped if stop else 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = pieces.strip if bare else 0
        self._bare = pieces.bare if bare else ""
        self._held = ""  # text that may begin a stop string
        self._stopped = False

    def push(self, token: int) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string ended it; then no more may be pushed."""
        assert not self._stopped, "a token after the stop string"
        piece = self._pieces[token]
        if self._bare and piece:
            piece, self._bare = piece.replace(self._bare.encode(), b""), ""
        text = self._utf8.decode(piece)
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            text, self._strip = text[1:], self._strip - 1
        if self._unstopped:
            self._unstopped -= 1
            return text, False
        return self._match(text), self._stopped

    def flush(self) -> str:
        """The text still held back when an answer ends otherwise than by a stop string."""
        if self._stopped:
            return ""
        shown = self._match(self._utf8.decode(b"", True))
        return shown if self._stopped else shown + self._held

    def _match(self, text: str) -> str:
        """Adds to the held text and gives what can no longer be part of a stop string."""
        if not self._stop or self._unstopped:
            return text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self._stopped = True
            end, start = min(found)
            return text[: end if self._include else start]
        keep = max(_overlap(text, stop) for stop in self._stop)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
