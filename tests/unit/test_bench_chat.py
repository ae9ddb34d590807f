"""The chat benchmark: both ways hold the same chat, and only one of them has anything to reuse."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bench.__main__ import main
from runtime.bench.chat import Turn, hold, measure, rows
from runtime.engine import Engine
from runtime.errors import ConfigurationError, ContextError, StepError
from runtime.params import EngineConfig
from tests.fake import FakeSession, fake_cost, fake_manifest, fake_tokenizer

TEMPLATE = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"


def engine_of(context: int = 512) -> Engine:
    manifest = fake_manifest(chat_template=TEMPLATE, context=context, capacity=context + 64)
    config = EngineConfig(rows=2, chunk=64, kv_memory=1 << 28)
    return Engine(FakeSession(manifest, 2, eos_rate=0.0), fake_tokenizer(), config, fake_cost())


def test_only_with_reuse_anything_is_reused() -> None:
    engine = engine_of()
    turns = measure(engine, ["abc", "defgh", "ij"], chats=3, turns=4, max_tokens=20)
    assert len(turns) == 3 * 2 * 4
    for turn in turns:
        assert (turn.cached > 0) == (turn.reuse and turn.number > 1)
        assert 0 < turn.first and turn.cached < turn.prompt
    with_, without = ([t for t in turns if t.reuse is reuse] for reuse in (True, False))
    assert [(t.chat, t.number, t.prompt, t.text) for t in with_] == [
        (t.chat, t.number, t.prompt, t.text) for t in without
    ]
    assert [t.cached for t in with_ if t.chat == 2] == sorted(t.cached for t in with_ if t.chat == 2)
    engine.check_integrity()


def test_the_table_pairs_the_same_turn_of_the_same_chat() -> None:
    """The second chat is twice as slow either way: the ratio is 4 in both."""
    turns = [
        Turn(chat, 5, reuse, 100, 90 * reuse, seconds * chat, "x")
        for chat in (1, 2)
        for reuse, seconds in ((True, 0.01), (False, 0.04))
    ]
    [_, row] = rows(turns[::-1])
    assert row[:3] == ("5", "100", "90") and row[3].startswith("60.0 ") and row[4].startswith("15.0 ")
    assert row[5].startswith("4.000 (4.000 to 4.000")


def test_chats_that_fork_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()

    def forking(*arguments: object) -> list[Turn]:
        turns = hold(*arguments)  # type: ignore[arg-type]
        fork = arguments[1] == 2 and arguments[3]
        return [dataclasses.replace(turn, text="other") for turn in turns] if fork else turns

    monkeypatch.setattr("runtime.bench.chat.hold", forking)
    assert {turn.chat for turn in measure(engine, ["abc"], 3, 2, 10)} == {1, 3}
    monkeypatch.setattr("runtime.bench.chat.hold", lambda e, c, a, r, m: [Turn(c, 1, r, 1, 0, 1.0, str(r))])
    with pytest.raises(StepError, match="every chat"):
        measure(engine, ["abc"], 3, 2, 10)


def test_a_chat_that_outgrows_the_context_says_so() -> None:
    with pytest.raises(ContextError, match="context 64"):
        measure(engine_of(64), ["abcdefgh" * 3], 1, 5, 20)


def test_the_command(demo_artifact: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(json.dumps({"prompt": f"What does {name} do?"}) for name in ("abs", "all", "any")))
    out = tmp_path / "turns.json"
    command = ["chat", "--artifact", str(demo_artifact("int8")), "--prompts", str(questions), "--chats", "1"]
    assert main([*command, "--turns", "2", "--max-tokens", "6", "--json", str(out)]) == 0
    assert "| turn |" in capsys.readouterr().out
    turns = json.loads(out.read_text())
    assert [(turn["number"], turn["reuse"]) for turn in turns] == [(1, True), (2, True), (1, False), (2, False)]
    assert main([*command, "--raw"]) == ConfigurationError.exit_code
