"""The contest: all engines loaded, one running at a time, in turns, so that a slow minute of the machine slows all.

What counts is decoding in a steady state, alike for every engine: of each group of prompts that start together, the
time from when the last row has its first token to when the first row has its last one, and the tokens of that time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from runtime.bench.machine import OtherLoad
from runtime.bench.peers.process import Died, Failed, Process

SLOW = 0.7  # of its engine's best in the first round: no further runs
WARM_TOKENS = 3  # of the run before each that counts, which brings the model back into memory and caches
PATIENCE = 60.0  # seconds that this run may take: whatever takes longer would take the whole contest's time
TIMEOUT = 900.0  # seconds, of one group of prompts


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared. `speculation` is "off", or as its engine calls it."""

    engine: str
    precision: str
    speculation: str
    concurrency: int

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}, speculation {self.speculation}, {self.concurrency} at a time"


@dataclass(frozen=True, slots=True)
class Run:
    """A setting, once: tokens, seconds and steps of steady decoding; of `prompts` answers, `same_texts` as expected."""

    setting: Setting
    repeat: int  # 0: the first round, to warm up and to choose
    prompts: int
    tokens: int
    seconds: float
    steps: int
    same_texts: int | None  # None where there is no reference
    other_load: float  # share of the machine's processor time that was not the engine's

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_step(self) -> float:
        """Of one sequence."""
        return self.tokens / (self.steps * self.setting.concurrency)

    @property
    def step_ms(self) -> float:
        return self.seconds / self.steps * 1e3


def steady(steps: Sequence[tuple[float, Sequence[int]]]) -> tuple[int, float, int]:
    """Tokens, seconds and steps of the steady part of one group of prompts; zeros where there is none.

    `steps` are the seconds since the start and each row's new tokens, of the steps that gave any.
    """
    rows = len(steps[0][1]) if steps else 0
    totals = [sum(new[row] for _, new in steps) for row in range(rows)]
    got, begin, tokens, count = [0] * rows, None, 0, 0
    for at, new in steps:
        for row in range(rows):
            got[row] += new[row]
        if begin is not None:
            tokens += sum(new)
            count += 1
        elif all(got):
            begin = at
        if any(have == total for have, total in zip(got, totals, strict=True)):
            return (tokens, at - begin, count) if begin is not None else (0, 0.0, 0)
    return 0, 0.0, 0


@dataclass(frozen=True, slots=True)
class Task:
    """What every engine is given: prompts, of which `groups` of `concurrency` make a run, and the texts expected.

    `reference` is None where texts say nothing, as with random weights.
    """

    prompts: Sequence[list[int]]
    groups: int
    new_tokens: int
    ignore_eos: bool
    reference: Sequence[list[int]] | None

    def of(self, concurrency: int, repeat: int) -> Iterator[list[int]]:
        """Which prompts each group holds, other ones in another repeat as far as there are others."""
        count = self.groups * concurrency
        chosen = [(repeat * count + i) % len(self.prompts) for i in range(count)]
        for start in range(0, count, concurrency):
            yield chosen[start : start + concurrency]


class Contest:
    """Runs settings on loaded, paused processes. What fails is noted in `notes` and left out from then on."""

    def __init__(self, processes: dict[tuple[str, str], Process], cores: int) -> None:
        self._processes, self._cores = processes, cores
        self.notes: list[str] = []

    def play(
        self, settings: Sequence[Setting], task: Task, repeats: int, progress: Callable[[str], object]
    ) -> list[Run]:
        """A first round of all settings, then `repeats` rounds of those that were not slow; another one begins each."""
        left, runs = list(settings), []
        for repeat in range(repeats + 1):
            shift = repeat % len(left) if left else 0
            for setting in left[shift:] + left[:shift]:
                if setting not in left:
                    continue  # its process died under another setting
                progress(f"round {repeat} of {repeats}: {setting}")
                try:
                    runs.append(self.run(setting, task, repeat))
                except Failed as error:
                    gone = [s for s in left if s == setting or isinstance(error, Died) and _shared(s, setting)]
                    left = [s for s in left if s not in gone]
                    self.notes.append(f"{setting}: {error}")
            if repeat == 0:
                left = fast(left, runs)
        return runs

    def answers(self, setting: Setting, task: Task) -> list[list[int]]:
        """The texts of the task's first group. Raises Failed."""
        process = self._processes[setting.engine, setting.precision]
        process.resume()
        try:
            group = next(task.of(setting.concurrency, 0))
            texts: list[list[int]] = self._ask(process, setting, task, group, task.new_tokens)["tokens"]
        finally:
            process.pause()
        return texts

    def run(self, setting: Setting, task: Task, repeat: int) -> Run:
        """Raises Failed."""
        process = self._processes[setting.engine, setting.precision]
        tokens = steps = same = count = 0
        seconds = 0.0
        process.resume()
        try:
            first = next(task.of(setting.concurrency, repeat))
            began = perf_counter()
            self._ask(process, setting, task, first, WARM_TOKENS)
            if (took := perf_counter() - began) > PATIENCE:
                raise Failed(f"{WARM_TOKENS} tokens took {took:.0f} seconds: not run further")
            load, began, used = OtherLoad(), perf_counter(), process.processor_seconds()
            for group in task.of(setting.concurrency, repeat):
                reply = self._ask(process, setting, task, group, task.new_tokens)
                part = steady(reply["steps"])
                tokens, seconds, steps = tokens + part[0], seconds + part[1], steps + part[2]
                count += len(group)
                if task.reference is not None:
                    same += sum(reply["tokens"][row] == task.reference[i] for row, i in enumerate(group))
            own = (process.processor_seconds() - used) / (self._cores * (perf_counter() - began))
            others = max(0.0, load.share() - own)
        finally:
            process.pause()
        if not tokens:
            raise Failed(f"no step had {setting.concurrency} sequences decoding: its texts end too early")
        return Run(setting, repeat, count, tokens, seconds, steps, None if task.reference is None else same, others)

    @staticmethod
    def _ask(process: Process, setting: Setting, task: Task, group: list[int], new_tokens: int) -> dict[str, Any]:
        message = {
            "do": "run",
            "prompts": [task.prompts[i] for i in group],
            "new_tokens": new_tokens,
            "ignore_eos": task.ignore_eos,
            "speculation": setting.speculation,
        }
        return process.ask(message, TIMEOUT)


def fast(settings: Sequence[Setting], runs: Sequence[Run]) -> list[Setting]:
    """Those that came near their engine's best in the first round, speculating or not, among equal concurrency."""

    def kind(setting: Setting) -> tuple[str, int, bool]:
        return setting.engine, setting.concurrency, setting.speculation == "off"

    speed = {run.setting: run.tokens_per_second for run in runs if run.repeat == 0}
    best: dict[tuple[str, int, bool], float] = {}
    for setting in settings:
        best[kind(setting)] = max(best.get(kind(setting), 0.0), speed[setting])
    return [setting for setting in settings if speed[setting] >= SLOW * best[kind(setting)]]


def _shared(one: Setting, other: Setting) -> bool:
    """Whether one process runs both."""
    return (one.engine, one.precision) == (other.engine, other.precision)
