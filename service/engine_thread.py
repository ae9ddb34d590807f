"""The thread that owns the engine and every sequence, and the queues between it and the event loop.

    event loop                              engine's thread
    submit, cancel  ── inbox (commands) ──> add, abort      between any two steps, in order
    Answer          <── told (calls) ────── step            one wake-up for all outputs of a step, as the model runs

Nothing else touches the engine: it is not thread-safe, and a step would hold up the event loop.
"""

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from runtime.admission import longest
from runtime.errors import NotReadyError, QueueFullError, StepError
from runtime.params import EngineConfig, SamplingParams
from runtime.prompts import Prompts
from service.answer import Answer, Piece
from service.errors import DeadlineError
from service.latencies import Latencies
from service.news import News
from service.trace import Trace

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.grammar import Grammars
    from runtime.sequence import Output

ENDS = 64  # requests over which the rate at which they end is measured
LONGEST_RETRY = 600  # seconds
COUNT_SECONDS = 0.02  # for which the engine's figures are true enough while nothing is told
JOIN_SECONDS = 5.0  # for the step that runs when the server stops

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Told:
    """What of an answer the event loop has not heard yet; touched on the engine's thread only.

    A small model's steps take less time than it takes to tell of each, so some wait for the next ones.
    """

    answer: Answer
    interval: float  # seconds between two times that it hears of it, but for the end
    held: list[Piece] = field(default_factory=list)
    due: float = 0.0  # by time.monotonic


class EngineThread:
    """Runs an engine for the event loop.

    At most rows + queue requests live at a time. Each ends exactly once: by the engine, by a failure of the engine
    itself, or by `end_all`.
    """

    def __init__(self, load: Callable[[], "Engine"], timeout: float = 0.0, interval: float = 0.0) -> None:
        """`timeout` in seconds ends an answer that is not complete by then, 0 none; `interval` as in WebConfig."""
        self.prompts: Prompts | None = None  # None: not loaded yet
        self.context = 0  # tokens of prompt and answer together
        self.longest = 0  # such tokens for which there is memory
        self.error: Exception | None = None  # what ended the engine, if anything did
        self.draining = False
        self.stats: dict[str, Any] = {}  # as of the last step that something was told of; replaced, never changed
        self.latencies = Latencies()
        self._load = load
        self._rows = 0
        self.limit = 0  # requests that may live at a time
        self._grammars: Grammars | None = None
        self._live: set[Answer] = set()
        self._timeout, self._interval = timeout, interval
        self._ends: deque[float] = deque(maxlen=ENDS)  # since somebody waits, first when that began
        self._answers: dict[int, Told] = {}  # the engine's thread: by sequence id
        self._told: list[Callable[[], None]] = []  # the engine's thread: what the loop hears next
        self._counted = 0.0  # the engine's thread: when `stats` were new
        self._inbox: queue.SimpleQueue[Callable[[Engine], None]] = queue.SimpleQueue()
        self._closing = False
        self._wake = threading.Lock()  # held while the loop is woken, so that it is not closed meanwhile
        self._deaf = False  # the loop is about to be closed
        # A daemon: nothing can interrupt a load or a step, and the process may have to leave before they end.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Called on the event loop's thread.

    @property
    def status(self) -> str:
        """ "loading", "ready", "draining" or "failed"."""
        if self.error is not None:
            return "failed"
        if self.draining:
            return "draining"
        return "loading" if self.prompts is None else "ready"

    @property
    def live(self) -> int:
        """Requests that the engine still has to end."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Requests beyond those that have, or are about to have, a row."""
        return max(0, len(self._live) - self._rows)

    def retry_after(self, requests: int) -> int:
        """Whole seconds, 1 to 600, in which so many requests will have ended if they go on to end as they do.

        Before any has ended, as if one did now.
        """
        if not self._ends:
            return 1
        each = (time.monotonic() - self._ends[0]) / max(1, len(self._ends) - 1)
        return min(LONGEST_RETRY, max(1, math.ceil(each * requests)))

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Ends what is live, and the thread after its step; a load is not waited for."""
        self.end_all("the server has stopped")
        self._closing = True
        self._inbox.put(lambda engine: None)  # wakes it
        try:
            await asyncio.to_thread(self._thread.join, 0.0 if self.prompts is None else JOIN_SECONDS)
        finally:
            with self._wake:
                self._deaf = True

    def ready(self) -> Prompts:
        """What turns bodies into prompts; raises NotReadyError unless requests are taken."""
        reasons = {"loading": "the model is loading", "draining": "the server is stopping"}
        if self.prompts is None or self.status != "ready":
            raise NotReadyError(reasons.get(self.status, f"the engine has stopped: {self.error}"))
        return self.prompts

    def check_room(self, requests: int = 1) -> None:
        """Raises NotReadyError or QueueFullError unless so many requests would be taken now."""
        self.ready()
        if len(self._live) + requests > self.limit:
            raise QueueFullError(
                f"{len(self._live)} requests run or wait, and this server takes {self.limit}: try again later",
                len(self._live) + requests - self.limit,
            )

    async def prepare(self, params: SamplingParams) -> None:
        """Compiles a grammar in a thread of its own, so that the engine finds it known. Raises ParameterError."""
        if params.structured_outputs is not None:
            assert self._grammars is not None
            await asyncio.to_thread(self._grammars.compile, params.structured_outputs)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        news: News | None = None,
        streamed: bool = True,
        traced: bool = False,
    ) -> Answer:
        """Raises NotReadyError or QueueFullError at once; what the engine itself refuses, `begun` raises.

        Of an answer that is not `streamed` nothing is told between its first text and its end.
        """
        self.check_room()
        answer = Answer(lambda answer: self._inbox.put(partial(self._abort, answer)), news, traced)
        interval = self._interval if streamed else math.inf
        self._inbox.put(partial(self._add, Told(answer, interval), prompt, params))
        if not self._live:
            self._ends.clear()
            self._ends.append(answer.began)
        self._live.add(answer)
        if self._timeout:
            answer.deadline = self._loop.call_later(self._timeout, self._expire, answer)
        return answer

    def end_all(self, reason: str) -> None:
        """Ends every live request with NotReadyError, without waiting for the step that runs."""
        for answer in self._live:
            answer.cancel()
            answer.end(NotReadyError(reason))
        self._live.clear()

    def _expire(self, answer: Answer) -> None:
        answer.cancel()
        seconds = f"the {self._timeout:g} s that this server gives it"
        answer.end(
            DeadlineError(f"the answer was not complete within {seconds}: ask for less, or when it is less busy")
        )

    def _opened(self, prompts: Prompts, grammars: "Grammars", config: EngineConfig, longest: int) -> None:
        self.prompts, self._grammars = prompts, grammars
        self._rows = config.rows
        self.context, self.longest, self.limit = config.context, longest, config.rows + config.queue
        logger.info("ready: %(model)s, %(precision)s, %(provider)s, %(rows)d rows", self.stats)

    def _failed(self, error: Exception) -> None:
        self.error = error
        for answer in self._live:
            answer.end(StepError(f"the engine has stopped: {error}"))
        self._live.clear()

    def _ended(self, answer: Answer, error: Exception | None) -> None:
        self._live.discard(answer)
        self._ends.append(time.monotonic())
        answer.end(error)
        if error is None and not answer.cancelled:
            self.latencies.observe(answer)

    # Called on the engine's thread.

    def _run(self) -> None:
        try:
            engine = self._load()
            self._count(engine)
            prompts = Prompts(engine.manifest, engine.tokenizer)
        except Exception as error:  # the process ends with it
            self._tell(self._failed, error)
        else:
            most = longest(engine.manifest, engine.config)
            self._tell(self._opened, prompts, engine.grammars, engine.config, most)
            try:
                self._serve(engine)
            except Exception as error:
                logger.exception("the engine has stopped")
                self._tell(self._failed, error)
        self._flush()

    def _serve(self, engine: "Engine") -> None:
        self._flush()
        while not self._closing:
            if self._obey(engine):
                self._count(engine)
            for output in engine.step(self._flush):
                self._publish(output)
            if self._told or time.monotonic() >= self._counted + COUNT_SECONDS:
                self._count(engine)  # as true as what is told with it
            if not engine.has_work:
                self._flush()

    def _count(self, engine: "Engine") -> None:
        self.stats, self._counted = engine.stats(), time.monotonic()

    def _obey(self, engine: "Engine") -> bool:
        """Runs the commands that have come, if any; with nothing to compute, sleeps until one does."""
        obeyed = not engine.has_work
        if obeyed:
            self._inbox.get()(engine)
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return obeyed
            command(engine)
            obeyed = True

    def _add(self, told: Told, prompt: Sequence[int], params: SamplingParams, engine: "Engine") -> None:
        try:
            sequence = engine.add(prompt, params)
        except Exception as error:  # whatever it is, it is this request's: HTTP answers with its status or with 500
            self._tell(self._ended, told.answer, error)
        else:
            told.answer.sequence = sequence
            self._answers[sequence.id] = told

    def _abort(self, answer: Answer, engine: "Engine") -> None:
        if answer.sequence is not None and (output := engine.abort(answer.sequence)) is not None:
            self._publish(output)

    def _publish(self, output: "Output") -> None:
        sequence, now = output.sequence, time.monotonic()
        told = self._answers[sequence.id]
        answer, ended = told.answer, output.finish_reason is not None
        trace = Trace.of(output, answer.began) if answer.traced and output.tokens else None
        if output.text or output.logprobs or trace:
            told.held.append(Piece(output.text, output.logprobs, trace, now))
        if told.held and (ended or now >= told.due):
            self._tell(answer.push, told.held)
            told.held, told.due = [], now + told.interval
        if ended:
            del self._answers[sequence.id]
            self._tell(self._ended, answer, sequence.error)

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        self._told.append(partial(call, *arguments))

    def _flush(self) -> None:
        """Wakes the event loop once for all that was told, unless it no longer listens."""
        if self._told:
            told, self._told = self._told, []
            with self._wake:
                if not self._deaf:
                    self._loop.call_soon_threadsafe(_call_all, told)


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()
