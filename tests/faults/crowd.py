"""Many clients at the same time, each with its own way: the load, and the faults, from one seed."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.questions import Question
from tests.faults.tally import Tally
from tests.faults.visitors import Manner, Visit, tell


@dataclass(frozen=True, slots=True)
class Crowd:
    """`clients` that make `requests` in all, or come again for `seconds`, each request in a manner drawn by weight."""

    clients: int
    manners: Mapping[Manner, float]
    requests: int = 0
    seconds: float = 0.0
    hurry: float = 1.0  # seconds in which those who leave do so

    def drive(
        self, address: tuple[str, int], questions: Sequence[Question], seed: int, amid: Callable[[], None] | None = None
    ) -> Tally:
        """`amid` is called, in a thread of its own, once a third has been asked; when it returns, nobody asks again."""
        return asyncio.run(self._drive(address, questions, seed, amid))

    async def _drive(
        self, address: tuple[str, int], questions: Sequence[Question], seed: int, amid: Callable[[], None] | None
    ) -> Tally:
        tally = Tally()
        ends = time.monotonic() + self.seconds
        began, over = asyncio.Event(), False

        def more() -> bool:
            return not over and (tally.requests < self.requests if self.requests else time.monotonic() < ends)

        async def client(number: int) -> None:
            rng = random.Random(f"{seed} {number}")
            while more():
                [manner] = rng.choices(list(self.manners), list(self.manners.values()))
                await tell(manner, Visit(address, rng.choice(questions), rng, self.hurry), tally)
                if tally.requests >= self.requests / 3:
                    began.set()

        tasks = [asyncio.create_task(client(number)) for number in range(self.clients)]
        if amid is not None:
            await began.wait()
            await asyncio.to_thread(amid)
            over = True
        await asyncio.gather(*tasks)
        return tally
