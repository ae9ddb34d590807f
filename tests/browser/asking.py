"""What people do on the page, and what a test then knows of it."""

import json
from typing import Any

from tests.browser.chromium import Page
from tests.service.serving import Serving

READY = "document.getElementById('connection').dataset.state === 'ready'"
DONE = "document.getElementById('send').textContent === 'Send'"
DRAFTING = {"speculation": "number", "nodes": 12}  # whatever this machine's steps cost
QUESTION = "What does os.path.join do?"
TEXT = "article:last-child .answer .text"


def visit(page: Page, server: Serving, ready: bool = True, **kept: Any) -> None:
    """`kept` are settings that the browser has from before."""
    if kept:
        keep(page, **kept)
    page.open(f"http://127.0.0.1:{server.address[1]}/")
    if ready:
        page.until(READY)


def keep(page: Page, **settings: Any) -> None:
    """Settings for all that this page opens."""
    program = f"localStorage.setItem('gorgon.settings', {json.dumps(json.dumps(settings))})"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=program)


def ask(page: Page, question: str = QUESTION, wait: bool = True) -> None:
    page.click("#question")
    page.write(question)
    page.press("Enter")
    if wait:
        page.until(DONE)


def answer(page: Page) -> str:
    """The newest answer, without the text beside it."""
    return page.texts(TEXT)[0]


def chats(page: Page) -> list[dict[str, Any]]:
    """The bodies of all questions that the page has sent."""
    return [json.loads(r["postData"]) for r in page.requests() if r["url"].endswith("/v1/chat/completions")]


def steps(page: Page) -> list[dict[str, Any]]:
    """The steps of the newest question, as the server sent them."""
    request = [r for r in page.requests() if r["url"].endswith("/v1/chat/completions")][-1]
    body = page.call("Network.getResponseBody", requestId=request["id"])["body"]
    chunks = [json.loads(line[6:]) for line in body.split("\n\n") if line and not line.endswith("[DONE]")]
    return [choice["trace"] for chunk in chunks for choice in chunk["choices"] if "trace" in choice]


def said_by_the_api(server: Serving, body: dict[str, Any]) -> str:
    """The same question, asked without a browser: whole and without a trace."""
    plain = {name: value for name, value in body.items() if name not in ("stream", "trace")}
    response = server.client.post("/v1/chat/completions", json=plain)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])
