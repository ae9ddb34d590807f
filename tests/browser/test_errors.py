"""What goes wrong is said in words, with what to do about it, and the page goes on from there."""

import threading
from pathlib import Path

from runtime.engine import Engine
from tests.browser.asking import DONE, READY, TEXT, answer, ask, chats, said_by_the_api, visit
from tests.browser.chromium import Page
from tests.service.serving import SECONDS, HeldSession, Serving, engine_on, eventually, serving

AGAIN = ".error button:last-child"


def error(page: Page) -> str:
    page.until(f"{DONE} && document.querySelector('.error')")
    return page.text(".error [role=alert]")


def again(page: Page) -> None:
    page.click(AGAIN)
    page.until(DONE)
    assert not page.texts(".error")


def test_a_question_that_is_too_long(page: Page, demo: Serving) -> None:
    """It stands in no later question's way."""
    page.excused = ("status of 400",)
    visit(page, demo)
    ask(page, "abc " * 300)
    assert error(page).startswith("The server refuses this question: ") and "the context 256" in error(page)
    assert not page.run("document.querySelector('.answer').checkVisibility()"), "there is no answer"
    ask(page)
    assert len(chats(page)[1]["messages"]) == 1 and answer(page) == said_by_the_api(demo, chats(page)[1])


def test_a_server_that_wants_a_key(page: Page, tmp_path: Path) -> None:
    page.excused = ("status of 401",)
    keys = tmp_path / "keys"
    keys.write_text("sk-ann\n")
    with serving(lambda: engine_on(HeldSession()), api_key_file=keys) as server:
        visit(page, server, ready=False)
        page.until("document.getElementById('state').textContent === 'This server wants an API key'")
        ask(page, "abc")
        assert "send Authorization: Bearer KEY" in error(page)
        page.click(".error button:first-of-type")
        page.click("#key")
        page.write("sk-ann")
        page.press("Enter")
        page.until(READY)
        again(page)
        assert answer(page)
        visit(page, server)
        assert page.text("#state") == "fake", "the key is kept"
        assert all("sk-ann" not in request["url"] for request in page.requests())


def test_a_server_that_is_still_loading(page: Page) -> None:
    page.excused = ("status of 503",)
    loaded = threading.Event()

    def load() -> Engine:
        assert loaded.wait(SECONDS)
        return engine_on(HeldSession())

    with serving(load, ready=False) as server:
        visit(page, server, ready=False)
        page.until("document.getElementById('state').textContent === 'The server is not ready, trying again …'")
        ask(page, "abc")
        assert error(page) == "The server is not ready: the model is loading"
        loaded.set()
        page.until(READY)
        again(page)
        assert answer(page) == said_by_the_api(server, chats(page)[0])


def test_a_server_that_is_full(page: Page) -> None:
    page.excused = ("status of 429",)
    session = HeldSession(rows=1, allowed=0)
    with serving(lambda: engine_on(session, queue=0)) as server:
        other = server.later(prompt="abc", max_tokens=3)
        eventually(lambda: server.thread.live == 1)
        visit(page, server)
        ask(page, "abc")
        assert error(page).startswith("The server is busy: 1 requests run or wait") and "(in about 1 s)" in error(page)
        session.let(float("inf"))
        other.result()
        again(page)
        assert answer(page)


def test_a_step_that_fails_in_mid_stream(page: Page) -> None:
    """What was said stays, and is not taken for an answer."""
    session = HeldSession(rows=1, allowed=3, eos_rate=0)
    with serving(lambda: engine_on(session)) as server:
        visit(page, server)
        ask(page, "abc", wait=False)
        page.until(f"document.querySelector('{TEXT}')?.textContent")
        session.fail_next = "run"
        session.let(float("inf"))
        assert error(page).startswith("The answer ended early: ") and answer(page)
        ask(page, "def")
        assert len(chats(page)[1]["messages"]) == 1


def test_a_connection_that_breaks(page: Page) -> None:
    page.excused = ("ERR_",)
    session = HeldSession(rows=1, allowed=3, eos_rate=0)
    with serving(lambda: engine_on(session)) as server:
        visit(page, server)
        ask(page, "abc", wait=False)
        page.until(f"document.querySelector('{TEXT}')?.textContent")
        server.thread._loop.call_soon_threadsafe(server.server._drop_connections)
        assert error(page).startswith("The connection was lost: ")
        session.let(float("inf"))
        again(page)
        assert answer(page) == said_by_the_api(server, chats(page)[-1])


def test_an_answer_that_a_proxy_cuts_short(page: Page, demo: Serving) -> None:
    """The response ends as if all were well, but for its last event."""
    visit(page, demo)
    page.run(
        "{ const asked = fetch; window.fetch = async (path, options) => { const response = await asked(path, options);"
        " return path.endsWith('completions') ? new Response((await response.text()).slice(0, 2000)) : response } }"
    )
    ask(page)
    assert error(page).startswith("The connection was lost: ") and answer(page)


def test_a_server_that_comes_back(page: Page) -> None:
    """It goes in mid-stream; the page says so, finds the next one by itself, and asks it."""
    page.excused = ("ERR_",)
    session = HeldSession(rows=1, allowed=3, eos_rate=0)
    with serving(lambda: engine_on(session)) as server:
        port = server.address[1]
        visit(page, server)
        ask(page, "abc", wait=False)
        page.until(f"document.querySelector('{TEXT}')?.textContent")
        server.signal()
        server.signal()
        assert error(page).startswith("The answer ended early: the server has stopped")
        session.let(float("inf"))
    page.until("document.getElementById('state').textContent === 'The server cannot be reached, trying again …'")
    page.click(AGAIN)
    assert error(page).startswith("The server cannot be reached: ")
    with serving(lambda: engine_on(HeldSession()), port=port) as server:
        page.until(READY)
        again(page)
        assert answer(page) == said_by_the_api(server, chats(page)[-1])
