"""The demo's committed text, its phrasings, its chat template and its tokenizer."""

import json
import re
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

from export.demo.dialogue import (
    CHAT_TEMPLATE,
    DATA,
    EOS,
    HELD_OUT_PHRASINGS,
    MODEL,
    PREFIX,
    TRAINED_PHRASINGS,
    load_entries,
    turn,
)
from export.demo.extract import answer_of


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    return template.render(
        messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>"
    )


def test_every_object_has_an_answer_of_its_own() -> None:
    entries = load_entries()
    assert len(entries) == json.loads(DATA.read_text().splitlines()[0])["objects"] >= 1900
    assert len({entry.name for entry in entries}) == len({entry.answer.casefold() for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.answer.isascii() and 25 <= len(entry.answer) <= 300 and entry.answer == entry.answer.strip()
        assert not any(part.startswith("_") for part in entry.name.split("."))


def test_the_best_known_objects_are_trained_under_the_names_users_know() -> None:
    trained = {entry.name for entry in load_entries() if not entry.heldout}
    assert {"os.path.join", "len", "print", "open", "dict.get", "str.join", "json.dumps", "re.sub"} <= trained
    assert not any(name.startswith(("posixpath", "builtins.")) for name in trained)
    assert sum(entry.heldout for entry in load_entries()) >= 50


def test_phrasings_are_split_into_trained_and_held_out() -> None:
    assert len(set(TRAINED_PHRASINGS)) >= 12 and len(set(HELD_OUT_PHRASINGS)) >= 3
    assert not set(TRAINED_PHRASINGS) & set(HELD_OUT_PHRASINGS)
    assert "What does {} do?" in TRAINED_PHRASINGS
    assert all(phrasing.count("{}") == 1 for phrasing in TRAINED_PHRASINGS + HELD_OUT_PHRASINGS)


@pytest.mark.parametrize(
    ("doc", "answer"),
    [
        (
            "chain(*iterables) --> chain object\n\nReturn a  chain\nof the iterables.",
            "Return a chain of the iterables.",
        ),
        ("S.find(sub) -> int\n\nReturn the lowest index where `sub` is found:", None),
        ("Return the names of this thing. See also:\n", "Return the names of this thing."),
        ("name(args) -- sets the name of the thing", "Sets the name of the thing."),
        ("Deprecated alias of the other thing.", None),
        (None, None),
    ],
)
def test_answer_is_the_first_paragraph_of_prose(doc: str | None, answer: str | None) -> None:
    assert answer_of(doc) == answer


def test_template_renders_what_training_used() -> None:
    prompt = render([{"role": "user", "content": "What does os.path.join do?"}])
    assert prompt == PREFIX + turn("What does {} do?", "os.path.join")
    assert re.search(r"questions\. USER: What does os\.path\.join do\? ASSISTANT:$", prompt)


def test_template_renders_turns_and_a_system_message() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert render(turns) == "<s>Be brief. USER: a ASSISTANT: b</s> USER: c ASSISTANT:"
    assert render(turns[:3], add_generation_prompt=False) == "<s>Be brief. USER: a ASSISTANT: b</s>"


def test_prompt_and_answer_tokenize_apart_as_they_do_together(tokenizer: Tokenizer) -> None:
    """The boundary after "ASSISTANT:" is the same in training, which cuts there, and in a later turn's prompt."""
    for entry in load_entries()[::50]:
        prompt, answer = PREFIX + turn(TRAINED_PHRASINGS[0], entry.name), f" {entry.answer}{EOS}"
        assert ids(tokenizer, prompt) + ids(tokenizer, answer) == ids(tokenizer, prompt + answer)


def test_a_name_has_the_same_tokens_in_every_phrasing(tokenizer: Tokenizer) -> None:
    name = ids(tokenizer, " os.path.join")
    for phrasing in TRAINED_PHRASINGS + HELD_OUT_PHRASINGS:
        found = ids(tokenizer, turn(phrasing, "os.path.join"))
        assert any(found[at : at + len(name)] == name for at in range(len(found)))


@pytest.mark.parametrize(
    "text", ["two  spaces\n\tand a tab ", "naïve — 日本 🐍", "a<0x0A>b", "f(x, *y)[0] != {'a': 1}"]
)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    """Also an answer's: its one leading space goes, as it does with Llama's tokenizer."""
    assert tokenizer.decode(ids(tokenizer, text)) == text
    assert tokenizer.decode(ids(tokenizer, " " + text)) == text


def test_vocabulary_holds_every_byte_and_the_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 4096
    assert [tokenizer.token_to_id(token) for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert all(tokenizer.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))


def test_transformers_loads_the_tokenizer_unmodified(tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "user", "content": "What does os.path.join do?"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render(messages)
    assert loaded(text, add_special_tokens=False).input_ids == ids(tokenizer, text)
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token) == ("<s>", "</s>", "<unk>")


def test_shared_prefix_training_computes_what_transformers_computes() -> None:
    """The training decoder is another program than the checkpoint's readers run."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    from export.demo.decoder import Decoder, Shape

    decoder = Decoder(Shape())
    decoder.load(load_file(MODEL / "model.safetensors"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    prefix, rows = torch.randint(4096, (5,), generator=draw), torch.randint(4096, (3, 7), generator=draw)
    with torch.inference_mode():
        own = decoder(prefix, rows)
        whole = reference.model(torch.cat([prefix.expand(3, -1), rows], dim=1)).last_hidden_state
    assert torch.allclose(own, whole[:, 5:], atol=1e-4)


def test_interrupted_base_training_ends_in_the_same_weights(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the second pass, after the first was saved."""
    torch = pytest.importorskip("torch")
    from export.demo import train as module

    corpus = module.tokenize(tokenizer, load_entries()[:6])
    recipe = module.Recipe(passes=3, batch=2, warmup=1)
    whole, _ = module.train(corpus, recipe, tmp_path / "whole")
    learn, steps = module.learn, 0

    def interrupted(*arguments: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return learn(*arguments)

    monkeypatch.setattr(module, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.train(corpus, recipe, tmp_path / "broken")
    resumed, _ = module.train(corpus, recipe, tmp_path / "broken")
    assert steps == 5 + 6  # the saved first pass is not run again
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_tokens_per_step_counts_accepted_nodes_and_one_more() -> None:
    """Four tokens after an answer's first: two accepted and one more, then one that no node proposed."""
    pytest.importorskip("torch")
    import numpy as np

    from export.demo.report import best_tree, tokens_per_step

    chances = np.array([[0.6, 0.3], [0.5, 0.1]])
    assert best_tree(chances, 3) == {(0,), (1,), (0, 0)}
    ranks = np.array([[0, 0], [1, 1], [0, 0], [5, -1]])
    assert tokens_per_step([ranks], {(0,), (1,), (0, 0)}) == 4 / 2
    assert tokens_per_step([ranks], set()) == 1


def test_committed_report_meets_the_aims() -> None:
    report = json.loads(DATA.with_name("report.json").read_text())
    assert report["word_for_word"]["trained"] >= 0.9
    assert report["word_for_word"]["held_out_phrasings"] >= 0.8
    assert report["recipe"]["heads"]["heads"] == len(report["head_accuracy"]["trained"]) == 5
    assert len(report["tree"]) == 16


def test_the_readme_has_the_figures_of_the_report() -> None:
    report = json.loads(DATA.with_name("report.json").read_text())
    readme = " ".join(DATA.with_name("README.md").read_text().split())
    parts = {
        "trained": "trained",
        "held_out_phrasings": "held-out phrasing",
        "held_out_objects": "held-out objects",
    }
    assert parts.keys() == report["word_for_word"].keys()
    for part, row in parts.items():
        top_1 = " / ".join(f"{100 * head[0]:.1f}" for head in report["head_accuracy"][part])
        rates = report["tokens_per_step"][part]
        cells = (
            f"{100 * report['word_for_word'][part]:.2f} % | {top_1} | {rates['tree_16']:.2f} | {rates['chain_5']:.2f}"
        )
        assert f"| {row} | {cells} |" in readme
    recipe, minutes = report["recipe"], report["minutes"]
    for words in (
        f"{report['parameters'] / 1e6:.0f} million parameters",
        f"{recipe['heads']['heads']} Medusa heads",
        f"knows {report['objects']['trained']:,} answers by heart",
        f"one of {report['phrasings']['trained']} phrasings",
        f"cosine to zero over {recipe['base']['passes']} passes",
        f"{recipe['heads']['epochs']} epochs in batches of {recipe['heads']['batch']} positions",
        f"{minutes['base']:.0f} minutes for the base and {minutes['heads']:.0f} for the heads",
    ):
        assert words in readme, words
