"""Faults for real: sockets, signals, processes and disks, and every answer compared with plain decoding's.

The full forms take a quarter of an hour; when all of them have passed, they write docs/reliability.md and the README's
table (`make test-full`, or `python -m pytest -m slow tests/faults`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.questions import ask_plainly
from tests.faults.report import write
from tests.faults.scenarios import SCENARIOS, Scenario, Stage
from tests.faults.tally import Tally

ROOT = Path(__file__).parents[2]
QUESTIONS = 24
SEED = 1
each = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@pytest.fixture(scope="module")
def stage(demo_artifact: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Stage:
    artifact = demo_artifact("int8")
    return Stage(artifact, tmp_path_factory.mktemp("faults"), ask_plainly(artifact, QUESTIONS), SEED)


@pytest.fixture(scope="module")
def record() -> Iterator[dict[str, Tally]]:
    """What the full forms found, written down once all of them have passed."""
    tallies: dict[str, Tally] = {}
    yield tallies
    if len(tallies) == len(SCENARIOS):
        write(ROOT, tallies)


@each
def test_small(scenario: Scenario, stage: Stage) -> None:
    scenario.play(stage, scenario.small).check()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@each
def test_full(scenario: Scenario, stage: Stage, record: dict[str, Tally]) -> None:
    tally = scenario.play(stage, scenario.full)
    tally.check()
    record[scenario.name] = tally
