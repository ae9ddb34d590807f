"""How clients behave: those that want an answer, and those that break something. One visit is one request."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults.exchange import Exchange, Reply
from tests.faults.questions import Question
from tests.faults.tally import Tally

PATIENCE = 120.0  # seconds; an answer that has not come by then is lost
MODEL = "demo"
SPECULATION = ("auto", "off", 4, 16)
SIP, SIP_SECONDS, SMALL_BUFFER = 256, 0.02, 2048  # of a client that reads slowly
RETRY_SECONDS = 0.05
LARGE = 1_000_000  # bytes of a prompt


class Lost(Exception):
    """Neither an answer, nor an error that says why there is none."""


class Unheard(Exception):
    """Nobody listens, or the connection ended without a byte in answer: the server is not there."""


class Wrong(Exception):
    """Not the text of plain decoding."""


class Stated(Exception):
    """An error that says why there is no answer."""


@dataclass(frozen=True, slots=True)
class Visit:
    address: tuple[str, int]
    question: Question
    rng: random.Random
    hurry: float  # seconds in which those who leave do so

    def exchange(self, **more: Any) -> Exchange:
        """Of /generate, or of chat completions; streamed, or not."""
        q, rng = self.question, self.rng
        body: dict[str, Any] = {"max_tokens": q.max_tokens, "temperature": 0, "stream": rng.random() < 0.6}
        body |= {"speculation": rng.choice(SPECULATION)} | more
        if rng.random() < 0.4:
            chat = {"model": MODEL, "messages": [{"role": "user", "content": q.prompt}]}
            return Exchange("/v1/chat/completions", json.dumps(body | chat).encode())
        return Exchange("/generate", json.dumps(body | {"prompt": q.prompt}).encode())


Manner = Callable[[Visit], Awaitable[None]]


async def stay(visit: Visit) -> None:
    """Reads all of the answer."""
    exchange = visit.exchange()
    try:
        try:
            await exchange.open(visit.address)
            await exchange.send(exchange.head + exchange.body)
        except OSError as error:
            raise Unheard(error) from None
        compare(visit, await exchange.reply())
    finally:
        exchange.close()


async def leave(visit: Visit) -> None:
    """Goes at a random moment: amid the request, while it waits, or amid the answer; with a reset, or politely."""
    exchange = visit.exchange()
    moment = visit.rng.random() * visit.hurry
    await exchange.open(visit.address)
    try:
        data = exchange.head + exchange.body
        if visit.rng.random() < 0.2:
            data = data[: visit.rng.randrange(1, len(data))]
        await exchange.send(data)
        async with asyncio.timeout(moment):
            await exchange.reply()
        await asyncio.sleep(moment)
    except TimeoutError:
        pass
    finally:
        exchange.close(abruptly=visit.rng.random() < 0.5)


async def read_slowly(visit: Visit) -> None:
    """Takes a few bytes at a time, through a small window; the answer is long, by its log-probabilities."""
    q = visit.question
    chat = {"model": MODEL, "messages": [{"role": "user", "content": q.prompt}], "temperature": 0, "stream": True}
    body = json.dumps(chat | {"max_tokens": q.max_tokens, "logprobs": True, "top_logprobs": 20}).encode()
    exchange = Exchange("/v1/chat/completions", body)
    await exchange.open(visit.address, SMALL_BUFFER)
    try:
        await exchange.send(exchange.head + exchange.body)
        compare(visit, await exchange.reply(SIP, SIP_SECONDS * visit.rng.random() / 10))
    finally:
        exchange.close()


async def read_nothing(visit: Visit) -> None:
    """Asks for megabytes and takes none: the server has to break it off."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": visit.question.prompt}], "stream": True}
    long = {"max_tokens": 200, "ignore_eos": True, "n": 4, "logprobs": True, "top_logprobs": 20}
    exchange = Exchange("/v1/chat/completions", json.dumps(chat | long).encode())
    await exchange.open(visit.address, SMALL_BUFFER)
    try:
        await exchange.send(exchange.head + exchange.body)
        await _broken_off(exchange)
    finally:
        exchange.close()


async def send_half_a_head(visit: Visit) -> None:
    await _send_part(visit, lambda exchange: exchange.head[: visit.rng.randrange(1, len(exchange.head) - 3)])


async def send_half_a_body(visit: Visit) -> None:
    await _send_part(
        visit, lambda exchange: exchange.head + exchange.body[: visit.rng.randrange(0, len(exchange.body) - 1)]
    )


async def send_a_large_prompt(visit: Visit) -> None:
    """A million bytes: longer than the context."""
    exchange = visit.exchange(max_tokens=1)
    body = exchange.body.replace(
        json.dumps(visit.question.prompt).encode(), json.dumps("word " * (LARGE // 5)).encode()
    )
    await _refused(visit, Exchange(_path(exchange), body), (400,), "context")


async def send_invalid_utf8(visit: Visit) -> None:
    exchange = visit.exchange()
    at = exchange.body.index(visit.question.prompt.encode()) + 3
    await _refused(visit, Exchange(_path(exchange), exchange.body[:at] + b"\xff\xfe" + exchange.body[at:]), (400, 422))


FAULTS: dict[Manner, str] = {
    leave: "left", read_slowly: "read slowly", read_nothing: "read nothing", send_half_a_head: "half a head",
    send_half_a_body: "half a body", send_a_large_prompt: "1 MB prompt", send_invalid_utf8: "invalid UTF-8",
}  # fmt: skip
GO = (leave, read_nothing)  # who does this wants no answer


async def tell(manner: Manner, visit: Visit, tally: Tally) -> None:
    """Makes a visit and counts what became of it."""
    tally.requests += 1
    if manner in FAULTS:
        tally.faults[FAULTS[manner]] += 1
    place = f"{manner.__name__}, {visit.question.prompt!r}, {visit.question.max_tokens} tokens"
    try:
        async with asyncio.timeout(PATIENCE):
            await manner(visit)
    except Stated:
        tally.stated += 1
        await asyncio.sleep(RETRY_SECONDS)
    except Unheard as unheard:
        tally.unheard.append(f"{place}: {unheard}")
        await asyncio.sleep(RETRY_SECONDS)
    except Wrong as wrong:
        tally.wrong.append(f"{place}: {wrong}")
    except (Lost, OSError, TimeoutError) as lost:
        if manner is leave and isinstance(lost, OSError):
            tally.left += 1  # it was told that the server had gone, or something wrong with its half request
        else:
            tally.lost.append(f"{place}: {type(lost).__name__}: {lost}")
    else:
        if manner in GO:
            tally.left += 1
        else:
            tally.answered += 1


def compare(visit: Visit, reply: Reply) -> None:
    """Raises Stated, Unheard, Lost or Wrong unless a reply is the whole answer that is expected."""
    if not reply.status:
        raise Unheard("it ended without a byte")
    if reply.whole and reply.status in (429, 500, 503, 504):
        assert reply.json["error"]["message"]
        raise Stated(reply.body.decode())
    if not reply.whole or reply.status != 200:
        raise Lost(f"status {reply.status}, whole: {reply.whole}, {reply.body[-200:]!r}")
    text = _text(reply)
    if text != visit.question.answer:
        raise Wrong(f"{text!r} instead of {visit.question.answer!r}")


def _text(reply: Reply) -> str:
    """The text of an answer in any of its four forms."""
    if not reply.body.startswith(b"data: "):
        whole = reply.json
        return str(whole["text"] if "text" in whole else whole["choices"][0]["message"]["content"])
    said, done = "", False
    for data in reply.events:
        if data == "[DONE]":
            done = True
            continue
        event = json.loads(data)
        if "error" in event:
            raise Stated(str(event["error"]))
        if "choices" in event:
            said += event["choices"][0]["delta"].get("content", "")
        else:
            said += event["text"]
            done = done or "finish_reason" in event
    if not done:
        raise Lost("the stream has no last event")
    return said


async def _send_part(visit: Visit, part: Callable[[Exchange], bytes]) -> None:
    """Sends a part of a request and waits; the server has to say 408, or to close where nothing can be said."""
    exchange = visit.exchange()
    await exchange.open(visit.address)
    try:
        await exchange.send(part(exchange))
        reply = await exchange.reply()
        if reply.status != 408:
            raise Lost(f"half a request got the status {reply.status}")
        raise Stated(reply.body.decode())
    finally:
        exchange.close()


async def _refused(visit: Visit, exchange: Exchange, statuses: Sequence[int], words: str = "") -> None:
    await exchange.open(visit.address)
    try:
        await exchange.send(exchange.head + exchange.body)
        reply = await exchange.reply()
    finally:
        exchange.close()
    if reply.status not in statuses or not reply.whole or words not in reply.body.decode():
        raise Lost(f"status {reply.status}, {reply.body[:200]!r}")
    raise Stated(reply.body.decode())


async def _broken_off(exchange: Exchange) -> None:
    """Waits, without reading, until the server has reset the connection."""
    while exchange.error() == 0:
        await asyncio.sleep(0.05)


def _path(exchange: Exchange) -> str:
    return exchange.head.split(b" ")[1].decode()
