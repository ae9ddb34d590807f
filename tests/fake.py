"""A model without a model: a session whose next token is a hash of the tokens a node really sees.

It keeps a cache of token ids, written and moved exactly as a real one's keys and values are. A wrong ancestor,
position, commit or copy therefore changes the text, as it would with real attention.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime.cost import CostModel
from runtime.manifest import STEP_INPUTS, STEP_OUTPUTS, Manifest, capacity_of
from runtime.session import Batch, Draft, HostResult, Result

VOCAB = 97
EOS = 2
HEADS, TOP_K = 4, 5


def fake_manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "schema": 1, "name": "fake", "form": "ragged", "precision": "fp32", "layers": 1, "hidden": 1, "heads": 1,
        "kv_heads": 1, "head_dim": 64, "vocab": VOCAB, "context": 128, "capacity": capacity_of(128),
        "medusa_heads": HEADS, "draft_top_k": TOP_K, "head_accuracy": None, "bos": None, "eos": (EOS,),
        "chat_template": None, "special": {}, "even_tokens": False, "files": {},
        "inputs": (*STEP_INPUTS, "key_0", "value_0"), "outputs": (*STEP_OUTPUTS["ragged"], "new_key_0", "new_value_0"),
    }  # fmt: skip
    return Manifest(**(values | changes))  # type: ignore[arg-type]


def fake_tokenizer() -> Tokenizer:
    """Token i is the i-th printable character, three of them special."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(33 + i): i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def fake_cost(token: float = 2e-5, start: float = 1e-3) -> CostModel:
    """Steps of a millisecond, and some for each token."""
    points = [1, 2, 64, 4096]
    body = [start + token * n for n in points]
    return CostModel([1, 64], points, [body, body], vocabulary=[0.0] * len(points), heads=[start / 4] * 2)


def scores(context: Sequence[int], eos_rate: float) -> np.ndarray:
    """Logits [vocab] after `context`."""
    seed = zlib.crc32(np.asarray(context[-5:], np.int64).tobytes() + bytes([len(context) % 256]))
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(VOCAB) * 3).astype(np.float32)
    logits[[0, 1]] = -50
    logits[EOS] = 50 if rng.random() < eos_rate else -50
    return logits


def plain(prompt: Sequence[int], tokens: int, eos_rate: float, choose: Callable[[np.ndarray, int], int]) -> list[int]:
    """What plain decoding emits: the reference all engine runs are compared with."""
    context, answer = list(prompt), []
    while len(answer) < tokens:
        answer.append(choose(scores(context, eos_rate), len(answer)))
        context.append(answer[-1])
        if answer[-1] == EOS:
            break
    return answer


class FakeSession:
    provider = "fake"
    ordered = False

    def __init__(
        self, manifest: Manifest | None = None, rows: int = 8, eos_rate: float = 0.03, luck: float = 0.7, seed: int = 0
    ) -> None:
        self.manifest = manifest or fake_manifest()
        self.cache = np.full((rows, self.manifest.capacity), -1)
        self.last: list[list[int]] = [[] for _ in range(rows)]  # what each row's hidden state has seen
        self.fail_next: str | None = None
        self.runs = 0
        self._seen: list[list[int]] = []
        self._eos_rate, self._luck = eos_rate, luck
        self._rng = np.random.default_rng(seed)

    def run(self, batch: Batch) -> Result:
        self.runs += 1
        self._fail("run")
        assert batch.tokens.dtype == batch.depth.dtype == batch.wanted.dtype == np.int64
        start = np.cumsum(batch.count) - batch.count
        seen: list[list[int]] = []
        for row, (length, count) in enumerate(zip(batch.length, batch.count, strict=True)):
            assert count >= 1 and length + count <= self.manifest.capacity
            past = self.cache[row, :length]
            assert (past >= 0).all(), "a run reads slots that nobody committed"
            for node in range(count):
                visible = np.flatnonzero(batch.ancestors[row, node, :count])
                assert visible[-1] == node and len(visible) == batch.depth[start[row] + node] + 1
                if length == 0:
                    assert len(visible) == node + 1, "a row without a past must bring a chain"
                seen.append([*past.tolist(), *batch.tokens[start[row] + visible].tolist()])
            self.cache[row, length:] = -1
            self.cache[row, length : length + count] = batch.tokens[start[row] : start[row] + count]
        self._seen = [seen[i] for i in batch.wanted]
        logits = np.stack([scores(s, self._eos_rate) for s in self._seen])
        if self.fail_next == "nan":
            self.fail_next = None
            logits[batch.wanted < batch.count[0]] = np.nan
        return HostResult(logits.argmax(axis=1), logits)

    def heads(self, rows: list[int], depth: int) -> Draft:
        """Ranks at random, the right token first with probability `luck`."""
        self._fail("heads")
        tokens = np.zeros((len(rows), HEADS, TOP_K), np.int64)
        for i, row in enumerate(rows):
            context = list(self.last[row])
            context.append(self.right(context))
            for head in range(HEADS):
                right = self.right(context)
                context.append(right)
                ranks = self._rng.permutation(np.delete(np.arange(VOCAB), right))[: TOP_K - 1].tolist()
                ranks.insert(0 if self._rng.random() < self._luck else int(self._rng.integers(TOP_K)), right)
                tokens[i, head] = ranks
        logprobs = np.sort(np.log(self._rng.random(tokens.shape)), axis=-1)[..., ::-1].astype(np.float32)
        logprobs[0, :, 0] = 0.0  # certain heads: ties between a node and its child must not tear the tree
        return Draft(tokens[:, :depth], logprobs[:, :depth])

    def right(self, context: Sequence[int]) -> int:
        """What the heads take for the next token."""
        return int(scores(context, self._eos_rate).argmax())

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        assert path == sorted(set(path)) and path[0] == 0
        self._fail("commit")
        self.cache[row, length : length + len(path)] = self.cache[row, [length + slot for slot in path]]
        self.cache[row, length + len(path) :] = -1
        if last is not None:
            self.last[row] = list(self._seen[last])
            assert self.last[row] == self.cache[row, : length + len(path)].tolist(), "hidden state and cache disagree"

    def copy(self, source: int, target: int, length: int) -> None:
        assert (self.cache[target] == -1).all(), "a row in use is overwritten"
        self._fail("copy")
        self.cache[target, :length] = self.cache[source, :length]
        self.last[target] = self.last[source]

    def _fail(self, where: str) -> None:
        if self.fail_next == where:
            self.fail_next = None
            raise RuntimeError("the fake was told to fail")

    def release(self, row: int) -> None:
        self.cache[row] = -1
        self.last[row] = []
