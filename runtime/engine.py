"""The engine: requests in, tokens out, one step at a time.

    schedule -> heads + draft -> run decoder -> verify -> commit -> emit

It owns the sequences and a session, and knows nothing of HTTP, threads or graph forms. One thread may use it.
"""

import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from runtime import memory
from runtime.admission import kv_bytes
from runtime.batch import Packer
from runtime.cost import CostModel
from runtime.emission import choose, emit, output_of, walk
from runtime.errors import ArtifactError, ConfigurationError, GorgonError, QueueFullError, RequestError, StepError
from runtime.grammar import Grammars
from runtime.manifest import Manifest
from runtime.pace import Pace
from runtime.params import CHUNKS, MAX_NODES, EngineConfig, SamplingParams
from runtime.profile import load_or_measure
from runtime.requests import Requests
from runtime.scheduler import Copy, Plan, Scheduler
from runtime.sequence import FinishReason, Output, Sequence
from runtime.session import Batch, Draft, Result, Session
from runtime.sessions import open_session
from runtime.speculation import Speculator
from runtime.stats import Decisions, Stats
from runtime.tree import Tree, accuracy_of
from runtime.verify import first_gap

MEANWHILE = 0.001  # seconds that a run takes, for others to get something done beside it

log = logging.getLogger(__name__)


class Engine:
    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        config: EngineConfig,
        cost: CostModel,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        manifest = session.manifest
        if config.context > manifest.context:
            raise ConfigurationError(
                f"context is {config.context}: {manifest.name} was exported for {manifest.context}"
            )
        self.config = replace(
            config, context=config.context or manifest.context, chunk=config.chunk or CHUNKS[manifest.form]
        )
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._requests = Requests(manifest, self.config, tokenizer)
        self.session = session
        held = partial(kv_bytes, manifest=manifest) if config.prefix_reuse else None
        self._scheduler = Scheduler(config.rows, config.kv_memory, held)
        self._packer = Packer(config.exact, manifest.even_tokens, max(self.config.chunk, MAX_NODES) + 1)
        self._decisions = Decisions()
        self._pace = Pace(cost, self._decisions)
        self._speculator = Speculator(
            accuracy_of(manifest), manifest.draft_top_k, manifest.eos, self._pace, self._heads, self._decisions
        )
        self._clock = clock
        self._stats = Stats()
        self._ready: list[Output] = []  # of sequences that ended without a step
        self._in_session = self._in_decoder = 0.0  # seconds of this step: with the heads, and without
        self._giving = 0.0  # seconds in which its tokens were chosen and handed out
        self._heads_took = float(cost.heads(1))  # seconds, when they last ran
        self._meanwhile: Callable[[], None] | None = None  # what is still to be called in this step

    @classmethod
    def from_artifact(
        cls,
        path: Path | str,
        config: EngineConfig | None = None,
        cost: CostModel | None = None,
        progress: Callable[[str], None] = log.info,
    ) -> "Engine":
        """Loads an artifact; without `cost`, measures its steps, or reads what was measured here before.

        From then on numpy's BLAS has one thread in this process.
        Raises ArtifactError or ConfigurationError.
        """
        config, directory = config or EngineConfig(), Path(path).resolve()
        manifest = Manifest.read(directory, config.verify)
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the package raises bare Exception
            raise ArtifactError(f"{directory / 'tokenizer.json'} does not load: {error}") from error
        memory.check(manifest, config)
        # numpy's products are small, and the threads of its BLAS spin on after one, on cores that the session needs
        threadpool_limits(1, user_api="blas")
        session = open_session(Path(path), manifest, config, progress)
        if cost is None:
            cost = load_or_measure(Path(path), session, config, progress)
        return cls(session, tokenizer, config, cost)

    @property
    def grammars(self) -> Grammars:
        return self._requests.grammars

    @property
    def has_work(self) -> bool:
        return bool(self._ready or self._scheduler.waiting or self._scheduler.running)

    def add(self, prompt: Items[int], params: SamplingParams) -> Sequence:
        """Queues a request. Raises PromptError, ContextError, MemoryBudgetError, ParameterError or QueueFullError."""
        sequence = self._requests.sequence(prompt, params, self._clock())
        if self._full:
            raise QueueFullError(
                f"{len(self._scheduler.waiting)} requests are waiting and the queue holds {self.config.queue}"
            )
        if sequence.limit == 0:
            self._ready.append(self._finish(sequence, "length"))
        else:
            self._scheduler.waiting.append(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> Output | None:
        """Ends a request early and frees its row; None if it had ended already."""
        if sequence.finish_reason is not None:
            return None
        return self._finish(sequence, "abort")

    def step(self, meanwhile: Callable[[], None] | None = None) -> list[Output]:
        """One step over all running sequences: what each of them was given. Does nothing when there is no work.

        `meanwhile` is called once, right before the model runs, if it does: while it runs, this thread does not hold
        the interpreter, and what another thread is told then does not hold up this one.
        """
        self._meanwhile = meanwhile
        outputs = self._step_once()
        self._about_to_run()
        return outputs

    def _step_once(self) -> list[Output]:
        begin = self._clock()
        outputs, self._ready = self._ready, []
        self._in_session = self._in_decoder = self._giving = 0.0
        chunk = self._pace.chunk(self._scheduler, self.config.chunk, self.config.prefill_slowdown)
        plan = self._scheduler.plan(chunk)
        if plan.sequences:
            for s in plan.sequences:
                if s.started is None:
                    s.started = begin
            prefilled, tokens, failed = self._stats.prefilled, self._stats.tokens, self._stats.failed_steps
            outputs += self._step(plan)
            tokens = self._stats.tokens - tokens
            self._stats.count_step(self._stats.prefilled - prefilled + tokens)
            host = self._clock() - begin - self._in_session
            self._stats.session_seconds += self._in_session
            self._stats.host_seconds += host
            rows = len(plan.sequences)
            if self._stats.failed_steps == failed:  # else it tells nothing of what steps take
                self._pace.spent(rows, host + self._in_session - self._in_decoder)
                if not any(plan.prefill):
                    drafted = self._speculator.drafted
                    self._pace.took(rows, drafted, self._in_session, host, tokens, self._giving)
        return outputs

    def generate(self, prompts: Iterable[Items[int]], params: SamplingParams) -> list[Sequence]:
        """Answers all prompts and returns their finished sequences, in order. If one is refused, none goes on."""
        sequences: list[Sequence] = []
        try:
            for prompt in prompts:
                while self._full:
                    self.step()
                sequences.append(self.add(prompt, params))
            for sequence in sequences:
                while sequence.finish_reason is None:
                    self.step()
        except BaseException:
            for sequence in sequences:
                self.abort(sequence)
            raise
        return sequences

    def forget(self) -> None:
        """Gives up the prefixes that are kept for later requests."""
        for row in self._scheduler.forget():
            self.session.release(row)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and what is in use now. Times are in seconds, memory in bytes."""
        scheduler, m = self._scheduler, self.manifest
        return {
            "model": m.name, "precision": m.precision, "form": m.form, "provider": self.session.provider,
            "rows": self.config.rows, "rows_in_use": len(scheduler.running),
            "waiting": len(scheduler.waiting), "queue": self.config.queue,
            "rows_held": len(scheduler.held), "kv_bytes_held": scheduler.kv_held,
            "kv_bytes_reserved": scheduler.kv_reserved, "kv_bytes_limit": scheduler.kv_limit,
            **self._stats.figures(), "drafting": self._decisions.figures(),
        }  # fmt: skip

    def check_integrity(self) -> None:
        """Raises AssertionError where rows, budget and sequences contradict each other."""
        self._scheduler.check_integrity()
        for sequence in self._scheduler.running:
            total = len(sequence.prompt) + len(sequence.tokens)
            assert sequence.length < total, "the cache is ahead of the text"
            assert sequence.prefilling or sequence.length == total - 1, "the cache lags behind the text"
            assert len(sequence.tokens) < sequence.limit, "a sequence outlived its limit"

    @property
    def _full(self) -> bool:
        return len(self._scheduler.waiting) >= self.config.queue + self._scheduler.free_rows

    def _step(self, plan: Plan) -> list[Output]:
        try:
            for change in plan.changes:
                if isinstance(change, Copy):
                    self.session.copy(change.source, change.target, change.length)
                else:
                    self.session.release(change.row)
            trees = self._speculator.draft(plan)
            works: list[tuple[int, list[int] | Tree]] = [
                (s.length, tree or s.prompt[s.length : s.length + n])
                for s, n, tree in zip(plan.sequences, plan.prefill, trees, strict=True)
            ]
            batch, first = self._packer.pack(works)
            if (temperature := _temperature(plan, batch, first)) is not None:
                batch = replace(batch, temperature=temperature)
            self._about_to_run()
            began = self._clock()
            result = self.session.run(batch)
            seconds = self._in_decoder = self._clock() - began
            self._in_session += seconds
            self._pace.ran(batch, plan.prefill.count(0), seconds)
        except Exception as error:  # whatever ONNX Runtime raises: this step is lost, the engine is not
            log.exception("a step of %d sequences failed", len(plan.sequences))
            self._stats.failed_steps += 1
            failure = StepError(f"{type(error).__name__}: {error}")
            ends = [self._finish(s, "error", failure) for s in plan.sequences]
            self._scheduler.forget()
            for row in range(self.config.rows):  # nobody runs, and what changed in the rows is unknown
                self.session.release(row)
            return ends
        outputs, began = [], self._clock()
        paths: list[list[int] | None] = [None] * len(trees)
        for row, (s, n, tree, at) in enumerate(zip(plan.sequences, plan.prefill, trees, first, strict=True)):
            emitted, shown = len(s.tokens), len(s.text)
            try:
                if tree is None:
                    output = self._prefilled(s, n, result, at)
                else:
                    output, paths[row] = self._decoded(s, tree, result, at)
            except Exception as error:  # such as logits that are no distribution: the other rows go on
                if not isinstance(error, RequestError):  # whose own fault it is
                    log.exception("sequence %d failed", s.id)
                if s.finish_reason is None:
                    self._finish(s, "error", StepError.of(error))
                output = output_of(s, emitted, [s.text[shown:]])
            if output is not None:
                outputs.append(output)
        self._giving = self._clock() - began
        self._speculator.verified(paths, plan)
        return outputs

    def _about_to_run(self) -> None:
        call, self._meanwhile = self._meanwhile, None
        if call is not None:
            call()

    def _heads(self, rows: list[int], depth: int) -> Draft:
        if self._heads_took >= MEANWHILE:
            self._about_to_run()
        began = self._clock()
        draft = self.session.heads(rows, depth)
        seconds = self._heads_took = self._clock() - began
        self._in_session += seconds
        self._pace.heads_ran(len(rows), depth / self.manifest.medusa_heads, seconds)
        return draft

    def _prefilled(self, s: Sequence, n: int, result: Result, at: int) -> Output | None:
        """Commits a chunk of prompt; the last one gives the first token."""
        assert s.row is not None
        self._stats.prefilled += n
        done = s.length + n == len(s.prompt)
        if s.length == s.cached:
            self._stats.reused += s.cached
        self.session.commit(s.row, s.length, list(range(n)), at if done else None)
        s.length += n
        if not done:
            return None
        s.first = self._clock()
        return self._emit(s, [choose(s, result, at, 0)])

    def _decoded(self, s: Sequence, tree: Tree, result: Result, at: int) -> tuple[Output, list[int]]:
        """Verifies a tree, emits what the model agrees with, and commits it unless the sequence ends.

        Returns the path of nodes that were accepted as well.
        """
        assert s.row is not None
        path, emitted = walk(s, tree, result, at)
        before = len(s.tokens)
        output = self._emit(s, emitted, tree, path)
        kept = len(s.tokens) - before
        accepted = min(len(path) - 1, kept)
        s.steps += 1
        s.drafted += len(tree.tokens) - 1
        s.accepted += accepted
        self._stats.count_tree(tree, accepted, kept)
        if s.row is not None:
            self.session.commit(s.row, s.length, path, at + path[-1])
            if not self.session.ordered and s.gap is None and (out := first_gap(path)) is not None:
                s.gap = s.length + out
            s.length += len(path)
        return output, path

    def _emit(self, s: Sequence, tokens: list[int], tree: Tree | None = None, path: Items[int] = ()) -> Output:
        """Gives a sequence tokens, up to the first that ends it; `path` of `tree` they come from."""
        before = len(s.tokens)
        pieces, reason = emit(s, tokens, self.manifest.eos)
        self._stats.tokens += len(s.tokens) - before
        if reason is not None:
            pieces[-1] += self._finish(s, reason).text
        return output_of(s, before, pieces, tree, path)

    def _finish(self, s: Sequence, reason: FinishReason, error: GorgonError | None = None) -> Output:
        """Ends a sequence; the text held back for a stop string comes out. Its row may be kept for its prefix."""
        s.finish_reason, s.error, s.ended = reason, error, self._clock()
        self._stats.finished[reason] += 1
        text = s.stream.flush()
        s.text += text
        for row in self._scheduler.remove(s, hold=reason != "error"):
            self.session.release(row)
        return Output(s, (), text, reason)


def _temperature(plan: Plan, batch: Batch, first: Items[int]) -> np.ndarray | None:
    """[wanted]: of each node that a plain draw may be made from; None where there is none."""
    drawn = [s.params.temperature if s.choice is None else 0.0 for s in plan.sequences]
    if not any(drawn):
        return None
    ends = [*first[1:], len(batch.wanted)]
    return np.repeat(np.array(drawn, np.float64), np.subtract(ends, first))
