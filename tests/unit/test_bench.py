import json
from pathlib import Path

import numpy as np
import pytest

from runtime.bench.__main__ import main
from runtime.bench.compare import Ratio, Spread, compare
from runtime.bench.machine import Machine, OtherLoad, versions
from runtime.bench.measure import Run, Setting, measure
from runtime.bench.prompts import MT_BENCH, MT_BENCH_TEMPLATE, encode, questions, random_prompts
from runtime.bench.report import Report
from runtime.bench.simulated import SimulatedSession, published_accuracy
from runtime.engine import Engine
from runtime.errors import ConfigurationError, PromptError
from runtime.params import EngineConfig, SamplingParams
from runtime.tree import PUBLISHED_ACCURACY
from tests.fake import FakeSession, fake_cost, fake_manifest, fake_tokenizer


def run_of(speculation: int | str, repeat: int, seconds: float, concurrency: int = 2) -> Run:
    """100 steps of 2 tokens a sequence."""
    setting, tokens = Setting(speculation, concurrency), 200 * concurrency
    return Run(setting, repeat, 4, tokens + 10, seconds + 1, 100, tokens, seconds, seconds * 0.9, seconds * 0.1, 0.25)


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5, 1, 2, 4, 3]) == Spread(3, 2, 4)


@pytest.mark.parametrize(
    ("pairs", "k", "confidence"),
    [(1, 1, 0.0), (5, 1, 0.9375), (6, 1, 0.96875), (8, 4, 0.9609), (12, 14, 0.9575), (20, 53, 0.9515)],
)
def test_interval_of_a_ratio(pairs: int, k: int, confidence: float) -> None:
    """Tabled critical values of the signed ranks, which k is one above; five pairs are too few for 95 %, and say so."""
    ratios = [float(np.exp((i * 7919 % 101) / 100)) for i in range(pairs)]
    ratio = Ratio.of(ratios)
    means = sorted((a * b) ** 0.5 for i, a in enumerate(ratios) for b in ratios[i:])
    assert (ratio.low, ratio.high) == pytest.approx((means[k - 1], means[-k]))
    assert ratio.median == pytest.approx(float(np.median(means)))
    assert ratio.confidence == pytest.approx(confidence, abs=1e-4)
    assert Ratio.of([1 / ratio for ratio in ratios]).high == pytest.approx(1 / ratio.low)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_ratio_is_above_nothing(wrong: float) -> None:
    with pytest.raises(ValueError, match="not all above 0"):
        Ratio.of([1.0, wrong, 1.1])


def test_an_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    ratios = [Ratio.of(np.exp(rng.standard_t(3, 12) * 0.1 + np.log(1.1)).tolist()) for _ in range(2000)]
    inside = np.mean([ratio.low <= 1.1 <= ratio.high for ratio in ratios])
    assert abs(inside - ratios[0].confidence) < 0.02


def test_a_speedup_compares_runs_of_the_same_repeat() -> None:
    """The machine is twice as slow in the second repeat, which slows both settings."""
    runs = [run_of("off", 1, 2.0), run_of("off", 2, 4.0), run_of(4, 1, 1.0), run_of(4, 2, 1.6), run_of(4, 1, 1.0, 8)]
    plain, drafted, alone = compare(runs)
    assert (plain.setting, plain.speedup) == (Setting("off", 2), None)
    assert drafted.speedup is not None
    assert (drafted.speedup.low, drafted.speedup.high) == (2.0, 2.5)
    assert drafted.tokens_per_second.median == pytest.approx((400 / 1 + 400 / 1.6) / 2)
    assert drafted.tokens_per_step.median == 2
    assert (plain.step_ms.median, plain.host_ms.median) == (pytest.approx(30), pytest.approx(3))
    assert alone.speedup is None, "nothing plain was measured at this concurrency"


def test_published_accuracies_are_those_of_the_engine() -> None:
    np.testing.assert_array_equal(published_accuracy(), PUBLISHED_ACCURACY)


@pytest.mark.parametrize("nodes", [4, 16])
def test_simulated_acceptance_gives_the_expected_tokens_per_step(nodes: int) -> None:
    """The best tree's expectation: 1 + the sum over its nodes of the product of the chances on their paths."""
    manifest = fake_manifest(head_accuracy=PUBLISHED_ACCURACY[:4])
    engine = Engine(FakeSession(manifest, rows=4), fake_tokenizer(), EngineConfig(rows=4), fake_cost())
    engine.session = SimulatedSession(engine.session, seed=1)
    chances = np.diff(np.array(PUBLISHED_ACCURACY[:4]), axis=1, prepend=0)
    paths: list[float] = []
    level = [1.0]
    for head in chances:
        level = [path * float(chance) for path in level for chance in head]
        paths += level
    expected = 1 + sum(sorted(paths, reverse=True)[: nodes - 1])
    params = SamplingParams(max_tokens=100, ignore_eos=True, speculation=nodes)
    sequences = engine.generate(random_prompts(16, 5, 90, seed=0), params)
    assert all(len(sequence.tokens) == 100 and sequence.finish_reason == "length" for sequence in sequences)
    assert engine.stats()["tokens_per_step"] == pytest.approx(expected, rel=0.05)
    engine.check_integrity()


def test_simulated_acceptance_needs_room_for_its_tokens() -> None:
    with pytest.raises(ConfigurationError, match="24 tokens"):
        SimulatedSession(FakeSession(fake_manifest(vocab=23, medusa_heads=2, draft_top_k=10)), seed=0)


def test_a_run_counts_steady_steps_only() -> None:
    engine = Engine(FakeSession(eos_rate=0), fake_tokenizer(), EngineConfig(rows=3, chunk=16), fake_cost())
    params = SamplingParams(max_tokens=10, speculation="off")
    run = measure(engine, Setting("off", 3), random_prompts(6, 5, 90, seed=0), params, repeat=2)
    assert (run.requests, run.tokens, run.repeat) == (6, 60, 2)
    assert run.decode_tokens == run.steps * 3, "every steady step gave three sequences a token"
    assert 9 <= run.steps <= 18
    assert run.tokens_per_step == 1
    assert 0 < run.session_seconds < run.decode_seconds < run.seconds
    assert run.host_seconds == pytest.approx(run.decode_seconds - run.session_seconds, rel=0.2)
    assert not engine.has_work


def test_a_run_without_a_steady_step_is_refused() -> None:
    engine = Engine(FakeSession(eos_rate=0), fake_tokenizer(), EngineConfig(rows=3), fake_cost())
    with pytest.raises(ConfigurationError, match="3 sequences"):
        measure(engine, Setting("off", 3), random_prompts(2, 5, 90, seed=0), SamplingParams(), repeat=0)


def test_questions_come_from_the_rows_that_have_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"licence": "PSF"}, {"name": "abs", "held": False}, {"name": "all", "held": True}, {"name": "any"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert sorted(questions(file, "What is {name}?", "held", seed=0)) == ["What is abs?", "What is any?"]
    assert len(questions(MT_BENCH, MT_BENCH_TEMPLATE, None, seed=0)) == 80
    with pytest.raises(ConfigurationError, match="no row"):
        questions(file, "{answer}", None, seed=0)
    for text in ("not JSON", "[1]", "\xff"):
        file.write_text(text, "latin-1")
        with pytest.raises(ConfigurationError, match="a JSON object a line"):
            questions(file, "{name}", "held", seed=0)
    with pytest.raises(ConfigurationError, match="absent"):
        questions(tmp_path / "absent", "{name}", None, seed=0)


def test_prompts_go_through_the_chat_template() -> None:
    tokenizer = fake_tokenizer()
    manifest = fake_manifest(
        chat_template="{{ bos_token }}{% for m in messages %}U{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}A{% endif %}",
        special={"bos_token": "<s>"},
    )
    [[*ids]] = encode(["x"], manifest, tokenizer, raw=False)
    assert [tokenizer.id_to_token(i) for i in ids] == ["<s>", "U", "x", "A"]
    assert encode(["x"], manifest, tokenizer, raw=True) == [[tokenizer.token_to_id("x")]]
    with pytest.raises(PromptError, match="no systems"):
        encode(["x"], fake_manifest(chat_template="{{ raise_exception('no systems') }}"), tokenizer, raw=False)
    with pytest.raises(PromptError, match="no chat template"):
        encode(["x"], fake_manifest(), tokenizer, raw=False)


@pytest.mark.parametrize("acceptance", ["measured", "simulated"])
def test_every_line_of_figures_names_the_acceptance(acceptance: str) -> None:
    runs = [run_of("off", 1, 2.0), run_of(4, 1, 1.0)]
    report = Report(
        Machine.here(), versions(), "fake", "fp32", "fake", 2, acceptance, "none", 128, runs, compare(runs)
    )  # fmt: skip
    lines = report.table().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4 and len({len(line) for line in table}) == 1
    assert all(line.endswith(f"{acceptance} |") for line in table[2:])
    parts = json.loads(json.dumps(report.json()))
    assert {record["acceptance"] for record in (*parts["runs"], *parts["figures"])} == {acceptance}
    assert parts["runs"][1]["tokens_per_second"] == 400


def test_other_load_is_a_share() -> None:
    load = OtherLoad()
    assert sum(i * i for i in range(200_000)) > 0
    assert 0 <= load.share() <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--speculation", "1"],
        ["--speculation", "65"],
        ["--speculation", "on"],
        ["--concurrency", "0"],
        ["--repeat", "0"],
        ["--random-prompts", "5", "--prompts", "file"],
    ],
    ids=" ".join,
)
def test_options_that_cannot_work_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["decode", "--artifact", "absent", *arguments])
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--template", "{name}"], ["--without", "name"], ["--random-prompts", "5", "--raw"]], ids=" ".join
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--artifact", "absent", *arguments]) == 2
    assert "error: " in capsys.readouterr().err


def test_an_artifact_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--artifact", str(tmp_path)]) == 3
    assert "not an artifact" in capsys.readouterr().err
