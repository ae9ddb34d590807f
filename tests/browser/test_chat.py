"""A chat on the page: what is said is what the API says, and each step shows what it drafted."""

from typing import Any

import pytest

from tests.browser.asking import DONE, DRAFTING, QUESTION, TEXT, answer, ask, chats, said_by_the_api, steps, visit
from tests.browser.chromium import Page
from tests.service.serving import HeldSession, Serving, await_cancelled, engine_on, eventually, serving

LEGEND = {"own": "said by the model itself", "accepted": "drafted and accepted", "refused": "drafted and refused"}


def test_a_chat_says_what_the_api_says(page: Page, demo: Serving) -> None:
    """Also in its second turn, which is asked with the first before it."""
    visit(page, demo)
    ask(page)
    assert answer(page).startswith("Join two or more pathname components")
    first = answer(page)
    ask(page, "What does abs do?")
    bodies = chats(page)
    assert bodies[1]["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What does abs do?"},
    ]
    assert [said_by_the_api(demo, body) for body in bodies] == [first, answer(page)]
    assert demo.health()[1]["rows_in_use"] == 0
    page.click("#new-chat")
    ask(page, "What does abs do?")
    assert answer(page) == "Return the absolute value of the argument."
    assert len(chats(page)[2]["messages"]) == 1 and len(page.texts("article")) == 1


def test_a_suggestion_is_asked(page: Page, demo: Serving) -> None:
    visit(page, demo)
    page.click("#suggestions button")
    page.until(DONE)
    assert answer(page) == said_by_the_api(demo, chats(page)[0])


def test_tokens_are_coloured_by_their_depth(page: Page, demo: Serving) -> None:
    visit(page, demo, **DRAFTING)
    ask(page)
    depths = []
    for step in steps(page):
        for i, token in enumerate(step["tokens"]):
            if token["text"].strip():
                depths.append(str(min(i + 1, 5)) if i < len(step["accepted"]) else None)
    assert page.run(f"[...document.querySelectorAll('{TEXT} .token')].map(e => e.dataset.depth ?? null)") == depths
    assert {"1", "2", None} <= set(depths)
    ground = "getComputedStyle(e).backgroundColor"
    grounds = page.run(f"[...document.querySelectorAll('{TEXT} .token')].map(e => [e.dataset.depth, {ground}])")
    assert len({tuple(pair) for pair in grounds}) == len(set(depths)), "each depth has its colour"


def test_pointing_at_a_token_shows_the_tree_of_its_step(page: Page, demo: Serving) -> None:
    visit(page, demo, **DRAFTING)
    ask(page)
    told = steps(page)
    spoken = [i for i, step in enumerate(told) if any(token["text"].strip() for token in step["tokens"])]
    for number in (1, 2, spoken[-1]):
        page.hover(f"{TEXT} .token[data-step='{number}']")
        page.until(f"document.getElementById('step-title').textContent === 'Step {number + 1} of {len(told)}'")
        assert_tree(page, told[number])
        chosen = page.texts(f"{TEXT} .chosen")
        assert "".join(chosen) == "".join(token["text"] for token in told[number]["tokens"])
    assert any(len(step["accepted"]) < len(step["nodes"]) - 1 for step in told), "nothing was refused"
    page.hover(f"{TEXT} .token[data-step='0']")
    page.until("document.getElementById('step-title').textContent.startsWith('Step 1 ')")
    assert "nothing was drafted" in page.text("#step-words") and not page.run("tree.checkVisibility()")


def assert_tree(page: Page, step: dict[str, Any]) -> None:
    """Every node with its text and fate below its parent, and nothing else."""
    page.until("tree.checkVisibility()")
    shown = page.run(
        "[...tree.querySelectorAll('.chip')].map(chip => [chip.firstChild.data, chip.classList[1],"
        " chip.parentElement.parentElement.parentElement.querySelector('.chip')?.firstChild.data ?? null])"
    )
    seen = [node["text"].replace(" ", "·") for node in step["nodes"]]
    fates = ["root", *("accepted" if i in step["accepted"] else "refused" for i in range(1, len(seen)))]
    expected = [[seen[i], fates[i], seen[node["parent"]] if i else seen[0]] for i, node in enumerate(step["nodes"])]
    last = seen[step["accepted"][-1]] if step["accepted"] else seen[0]
    own = [
        [token["text"].replace(" ", "·") or "the·end", "own", last] for token in step["tokens"][len(step["accepted"]) :]
    ]
    assert sorted(shown) == sorted(expected + own)
    drafted, accepted = len(seen) - 1, len(step["accepted"])
    assert f"{drafted} drafted: {accepted} accepted, {drafted - accepted} refused" in page.text("#step-words")
    assert all(LEGEND[fate] in page.text("#legend") for _, fate, _ in shown if fate != "root")


def test_the_charts_tell_their_figures(page: Page, demo: Serving) -> None:
    visit(page, demo)
    assert not page.run("charts.checkVisibility()")
    ask(page)
    told = steps(page)
    page.until(f"charts.querySelectorAll('rect.size').length === {len(told)}")
    per_step, sizes = [len(s["tokens"]) for s in told], [len(s["nodes"]) for s in told]
    labels = page.run("[...charts.querySelectorAll('svg')].map(svg => svg.getAttribute('aria-label'))")
    for label, name, values in ((labels[0], "Tokens per step", per_step), (labels[1], "Tree size", sizes)):
        assert label == f"{name}: mean {sum(values) / len(values):.1f}, most {max(values)}"
    rate = sum(per_step[1:]) / (told[-1]["seconds"] - told[0]["seconds"])
    assert float(labels[2].removeprefix("Tokens per second: ")) == pytest.approx(rate, rel=0.01)
    assert len(page.texts("#charts rect.token")) == sum(per_step)


def test_the_same_question_with_speculation_off_beside_it(page: Page, demo: Serving) -> None:
    """At once for the answer that is there, and for each later one; sampled text is drawn with the same seed."""
    visit(page, demo, temperature=1.5, maxTokens=40)
    ask(page)
    page.click("#replay")
    page.until("document.querySelectorAll('.verdict[data-equal]').length === 1")
    ask(page, "What does str.split do?")
    page.until("document.querySelectorAll('.verdict[data-equal]').length === 2")
    bodies = chats(page)
    assert [body["speculation"] for body in bodies] == ["auto", "off"] * 2
    assert bodies[0] == bodies[1] | {"speculation": "auto"} and bodies[0]["seed"] != bodies[2]["seed"]
    texts = page.texts("article .answer .text")
    assert texts[0] == texts[1] and texts[2] == texts[3] and len(texts[0]) > 20
    for verdict in page.texts(".verdict"):
        assert verdict.startswith("The texts are equal.") and "ms with speculation off" in verdict
    assert page.texts("article:last-child .answer h3") == ["Speculation auto", "Speculation off"]
    assert all("ms in all" in figures for figures in page.texts(".figures"))
    assert not page.run("document.querySelectorAll('.answer:nth-child(2) [data-depth]').length"), "nothing drafted"
    page.until("charts.querySelector('polyline.off')")
    page.click("#replay")
    ask(page)
    assert len(chats(page)) == 5


def test_texts_that_differ_are_said_to(page: Page, demo: Serving) -> None:
    """The replay is given another seed on its way: nobody may be told that texts are equal that are not."""
    visit(page, demo, temperature=3, maxTokens=30)
    page.run(
        "{ const asked = fetch; window.fetch = (path, options) => asked(path, options?.body?.includes('\"off\"')"
        " ? {...options, body: JSON.stringify({...JSON.parse(options.body), seed: 1})} : options); }"
    )
    page.click("#replay")
    ask(page)
    page.until("document.querySelector('.verdict[data-equal]')")
    one, other = page.texts("article .answer .text")
    at = next(i for i, pair in enumerate(zip(one + "\0", other + "\0", strict=False)) if pair[0] != pair[1])
    assert page.texts(".verdict")[0].startswith(f"The texts differ from character {at + 1} on")


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_stop_in_mid_stream_frees_the_row(page: Page, how: str) -> None:
    session = HeldSession(rows=1, allowed=4, eos_rate=0)
    with serving(lambda: engine_on(session)) as server:
        visit(page, server)
        ask(page, "abcdef", wait=False)
        session.await_begun(5)
        page.until(f"document.querySelector('{TEXT}')?.textContent")
        assert page.text("#send") == "Stop" and server.thread.live == 1
        if how == "button":
            page.click("#send")
        else:
            page.press("Escape")
        page.until(DONE)
        said = answer(page)  # what had come by then: nothing is added to it
        await_cancelled(server, 1)
        session.let(5)  # the step that ran
        eventually(lambda: server.thread.live == 0 and server.health()[1]["rows_in_use"] == 0)
        assert session.runs == 5
        assert answer(page) == said and page.texts(".figures")[0].startswith("stopped · ")
        session.let(float("inf"))
        ask(page, "ghi")
        assert chats(page)[1]["messages"][1] == {"role": "assistant", "content": said}
        assert answer(page) == said_by_the_api(server, chats(page)[1])
