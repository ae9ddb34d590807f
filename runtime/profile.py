"""The cost model of an artifact on this machine: measured once, kept beside the artifact, read from then on.

For an artifact `artifacts/NAME` a profile is `artifacts/.cache/NAME/profile-<fingerprint>.json`: artifacts may be
read-only, and another machine, version, precision or number of threads has other times.
"""

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from runtime import machine
from runtime.cost import CostModel
from runtime.fit import fit
from runtime.params import EngineConfig
from runtime.session import Session
from runtime.sessions import cache_of
from runtime.survey import MEMORY, Sample, survey

SCHEMA = 2
BUSY = 0.5  # spread from which on a profile is not to be relied on for good
OTHERS = 0.2  # share of the time that its threads would have run, and waited for a processor
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy")
GRAPHS = ("decoder.onnx", "decoder.onnx.data", "heads.onnx", "heads.onnx.data")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Profile:
    """What was timed, and the model fitted to it."""

    samples: list[Sample]
    cost: CostModel

    @property
    def spread(self) -> float:
        """How restless the machine was: a typical probe's."""
        return median(sample.spread for sample in self.samples)


def measure(
    session: Session,
    exact: bool,
    even: bool,
    rows: int,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> CostModel:
    """Times steps of the session, whose rows have to be free, and fits a cost model."""
    return fit(survey(session, exact, even, rows, progress, clock))


def _processor_seconds() -> tuple[float, float]:
    """That all threads of this process have had a processor, and have waited for one; (0, 0) where nobody counts."""
    ran = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            counts = path.read_text().split()
            ran, waited = ran + int(counts[0]), waited + int(counts[1])
    return ran / 1e9, waited / 1e9


def load_or_measure(
    artifact: Path,
    session: Session,
    config: EngineConfig,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
    processor: Callable[[], tuple[float, float]] = _processor_seconds,
) -> CostModel:
    """The cost model of `artifact` (the name as it was given, not what it links to) for a session just loaded."""
    return profile(artifact, session, config, progress, clock=clock, processor=processor).cost


def profile(
    artifact: Path,
    session: Session,
    config: EngineConfig,
    progress: Callable[[str], None],
    fresh: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    processor: Callable[[], tuple[float, float]] = _processor_seconds,
) -> Profile:
    """Reads the profile that fits this machine, or measures one and keeps it; `fresh` measures in any case.

    `processor` counts the seconds that all threads of this process have had a processor, and waited for one.
    """
    identity = fingerprint(session, config)
    path = path_of(artifact, identity)
    if not fresh and (known := _read(path, identity)) is not None:
        return known
    m = session.manifest
    progress(f"measuring the steps of {m.name}, for {path}")
    before = processor()
    samples = survey(session, config.exact, m.even_tokens, config.rows, progress, clock, min(MEMORY, config.kv_memory))
    ran, waited = (after - then for after, then in zip(processor(), before, strict=True))
    others = waited / (ran + waited) if waited else 0.0
    measured = Profile(samples, fit(samples))
    # other processes make all steps slow alike, and wide ones the most: their times agree, and are wrong
    if others > OTHERS or measured.spread > BUSY:
        log.warning(
            "the machine was busy while the steps of %s were timed (other processes had the processor for %.0f%% of the"
            " time, and the slower half of the times was longer by about %.0f%%): the profile is not kept, and the next"
            " start measures again", m.name, 100 * others, 100 * measured.spread
        )  # fmt: skip
    else:
        _write(path, identity, measured)
    return measured


def fingerprint(session: Session, config: EngineConfig) -> dict[str, Any]:
    """Everything that decides how long a step takes."""
    m, (cpu, isa), cores = session.manifest, machine.cpu(), machine.usable_cores()
    return {
        "schema": SCHEMA, "gpus": list(machine.gpus()),
        "cpu": cpu, "isa": list(isa), "cores": cores, "threads": config.threads or cores,
        "versions": machine.versions(PACKAGES), "precision": m.precision, "provider": session.provider,
        "form": m.form, "rows": config.rows, "exact": config.exact,
        "files": {name: m.files[name]["sha256"] for name in GRAPHS if name in m.files},
    }  # fmt: skip


def path_of(artifact: Path, identity: dict[str, Any]) -> Path:
    """Where the profile of an artifact's name is kept."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache_of(artifact) / f"profile-{digest[:16]}.json"


def _read(path: Path, identity: dict[str, Any]) -> Profile | None:
    """None where there is none that fits."""
    try:
        value = json.loads(path.read_text("utf-8"))
        if value["fingerprint"] != identity:
            raise ValueError("it is of another machine or artifact")
        return Profile([Sample(**sample) for sample in value["samples"]], CostModel.from_json(value["cost"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the profile %s cannot be read (%s): measuring again", path, error)
    except (ValueError, TypeError, KeyError) as error:
        log.warning("the profile %s is damaged or stale (%s): measuring again", path, error)
    return None


def _write(path: Path, identity: dict[str, Any], measured: Profile) -> None:
    """All of it or nothing; a place that cannot be written to is no reason not to serve."""
    value = {
        "fingerprint": identity,
        "cost": measured.cost.to_json(),
        "samples": [asdict(sample) for sample in measured.samples],
    }
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):  # it may not be there
            fresh.unlink()
        log.warning("the profile cannot be kept in %s (%s): the next start measures again", path.parent, error)
