"""The page for everybody: by keys alone, read aloud, light and dark, on a phone, without motion; and its settings."""

from collections.abc import Callable

import pytest

from tests.browser.asking import DONE, DRAFTING, QUESTION, TEXT, answer, ask, chats, said_by_the_api, visit
from tests.browser.chromium import Page
from tests.fake import fake_manifest
from tests.service.serving import HeldSession, ScriptSession, Serving, engine_on, serving

COMPARED = "document.querySelector('.verdict[data-equal]')"
# The contrast (WCAG 2.2, 1.4.3) of each text that is seen, with its words, where it is below 4.5. A canvas turns
# whatever CSS calls a colour into bytes.
FAINT = """(() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const over = (colors) => {
    context.clearRect(0, 0, 1, 1);
    for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
  };
  const light = (rgb) => rgb.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim()) continue;
    if (!element.checkVisibility() || element.closest(".unseen, .skip, noscript, script")) continue;
    const grounds = [];
    for (let e = element; e; e = e.parentElement) grounds.unshift(getComputedStyle(e).backgroundColor);
    const ground = over(grounds);
    const [a, b] = [light(over([...grounds, getComputedStyle(element).color])), light(ground)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push([texts.currentNode.data.trim(), contrast]);
  }
  return faint;
})()"""


def with_everything(page: Page, server: Serving) -> None:
    """An answer, its replay, a step that is looked at."""
    visit(page, server, **DRAFTING)
    ask(page)
    page.click("#replay")
    page.until(f"{COMPARED} && {DONE}")
    page.hover(f"{TEXT} .token[data-step='1']")
    page.until("document.querySelector('.text .chosen')")


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    for _ in range(40):
        if page.focused() == name:
            return
        page.press(key)
    raise AssertionError(f"{key} never leads to {name}")


def test_by_keys_alone(page: Page, demo: Serving) -> None:
    visit(page, demo, **DRAFTING)
    assert page.focused() == "Question"
    page.write(QUESTION)
    page.press("Shift+Enter")
    assert page.run("question.value") == f"{QUESTION}\n" and not chats(page)
    page.press("Enter")
    page.until(DONE)
    assert page.focused() == "Question" and page.run("question.value") == ""
    tab_to(page, "Steps", "Shift+Tab")
    of = page.run("Number(document.activeElement.max)")
    page.press("Home", "ArrowRight")
    page.until(f"document.getElementById('step-title').textContent === 'Step 2 of {of}'")
    told = page.run("document.activeElement.getAttribute('aria-valuetext')")
    assert told.startswith(f"2 of {of}: ") and page.text("#step-words") in told
    tab_to(page, "Draft tree")
    tab_to(page, "Replay with speculation off", "Shift+Tab")
    page.press(" ")
    page.until(COMPARED)
    tab_to(page, "Settings", "Shift+Tab")
    page.press("Enter")
    assert page.focused() == "Temperature"
    page.press("Escape")
    assert page.focused() == "Settings"
    tab_to(page, "New chat", "Shift+Tab")
    page.press("Enter")
    assert page.focused() == "Question" and not page.texts("article")


def test_every_control_has_a_name_and_all_is_in_its_place(page: Page, demo: Serving) -> None:
    with_everything(page, demo)
    controls = page.controls()
    assert all(name for _, name in controls), controls
    assert {("textbox", "Question"), ("button", "Send"), ("switch", "Replay with speculation off"), ("slider", "Steps"),
            ("button", "Settings"), ("button", "New chat"), ("group", "Draft tree")} <= set(controls)  # fmt: skip
    page.click("#open-settings")
    fields = {name for role, name in page.controls() if role in ("spinbutton", "combobox", "textbox")}
    assert fields >= {"Temperature", "Most tokens", "Seed", "Speculation", "API key"}
    assert page.run("document.documentElement.lang") == "en" and page.run("document.title") == "Gorgon"
    ids = page.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby", "aria-controls", "for"):
        pointed = page.run(f"[...document.querySelectorAll('[{name}]')].map(e => e.getAttribute('{name}'))")
        assert set(pointed) <= set(ids), name
    levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    for landmark in ("header", "main", "aside"):
        assert page.run(f"document.querySelectorAll('{landmark}').length") == 1
    assert page.run("[...document.images].every(image => image.alt !== null && image.hasAttribute('alt'))")


def test_a_screen_reader_hears_an_answer_once(page: Page, demo: Serving) -> None:
    """Not each step of it; and of the connection only what changes."""
    visit(page, demo)
    page.run(
        "{ window.heard = []; for (const e of document.querySelectorAll('[role=status], [aria-live], [role=alert]'))"
        " new MutationObserver(() => heard.push(e.textContent)).observe(e, {childList: true, subtree: true}) }"
    )
    ask(page)
    page.until("heard.length >= 2")
    page.run("new Promise(resolve => setTimeout(resolve, 100))")
    assert page.run("heard") == ["Answering", f"Answer: {answer(page)}"]
    assert not page.run("!!document.querySelector('.text').closest('[aria-live], [role=log], [role=status]')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Page, demo: Serving, scheme: str) -> None:
    page.excused = ("status of 400",)
    page.prefer(color_scheme=scheme)
    with_everything(page, demo)
    ground = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) > 600) == (scheme == "light")
    assert page.run("document.querySelectorAll('.text [data-depth]').length") > 5
    assert page.run(FAINT) == []
    ask(page, "abc " * 300)
    assert page.run(FAINT) == []
    page.click("#open-settings")
    assert page.run(FAINT) == []


def test_on_a_phone(page: Page, demo: Serving) -> None:
    """Nothing is wider than 360 px or too small to touch, and a tap on a token brings its tree up."""
    page.size(360, 740, phone=True)
    narrow = "document.documentElement.scrollWidth <= 360 && innerWidth === 360"
    visit(page, demo, **DRAFTING)
    assert page.run(narrow)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    ask(page, "x" * 200)
    assert page.run(narrow)
    page.click("#new-chat")
    ask(page)
    page.click("#replay")
    page.until(f"{COMPARED} && {DONE}")
    # the page follows what comes, a frame later
    page.until("document.querySelector('.verdict').getBoundingClientRect().bottom"
               " <= document.getElementById('composer').getBoundingClientRect().top + 8")  # fmt: skip
    assert page.run(narrow) and not page.run("panel.checkVisibility()")
    page.click(f"{TEXT} .token[data-step='1']")
    page.until("panel.checkVisibility() && tree.checkVisibility()")
    assert page.run(narrow)
    sheet, token = page.run("[panel, document.querySelector('.chosen')].map(e => e.getBoundingClientRect().top)")
    assert 0 <= token < sheet, "the token is still seen"
    small = page.run(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(e => e.checkVisibility())"
        ".map(e => [e.textContent || e.id, e.getBoundingClientRect()]).filter(([, r]) => r.width < 24 || r.height < 24)"
    )
    assert small == []
    page.click("#close-panel")
    assert not page.run("panel.checkVisibility()") and page.focused() == "Steps"
    page.click("#open-settings")
    assert page.run(narrow) and page.run("settings.getBoundingClientRect().right <= 360")


def test_the_page_follows_what_comes_unless_its_reader_looks_up(page: Page, demo: Serving) -> None:
    page.size(360, 500, phone=True)
    visit(page, demo, **DRAFTING)
    for question in ("What does os.path.join do?", "What does os.path.split do?"):
        ask(page, question)
    frames = "new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
    page.run(f"scrollBy(0, -60), {frames}")
    # told of this scrolling, the page has an answer more already
    page.run(f"scrollBy(0, 30), document.getElementById('replay').click(), {frames}")
    page.until(f"{COMPARED} && {DONE}")
    page.until("innerHeight + scrollY >= document.documentElement.scrollHeight - 1")
    page.click("#replay")
    page.run(f"scrollTo(0, 0), {frames}")
    page.run(
        "new MutationObserver((_, observer) => { window.up = scrollY > 0; scrollTo(0, 0); observer.disconnect() })"
        ".observe(document.getElementById('conversation'), {childList: true}), null"
    )
    ask(page)
    page.run(frames)
    assert page.run("window.up && scrollY === 0"), "who looks up is left there"


def test_a_word_that_is_wider_than_a_phone(page: Page) -> None:
    page.size(360, 740, phone=True)
    manifest = fake_manifest(chat_template="{{ messages[0].content }}")
    with serving(lambda: engine_on(ScriptSession(manifest, [64]))) as server:
        visit(page, server)
        ask(page, "x" * 20)
        assert len(answer(page)) > 80 and len(set(answer(page))) == 1
        assert page.run("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_who_does_not_want_it(page: Page, motion: str) -> None:
    page.prefer(reduced_motion=motion)
    session = HeldSession(rows=1, allowed=3, eos_rate=0)
    with serving(lambda: engine_on(session)) as server:
        visit(page, server)
        ask(page, "abc", wait=False)
        page.until(f"document.querySelector('{TEXT}')?.textContent")
        assert (page.run("document.getAnimations().length") > 0) == (motion == "no-preference")
        moving = "[...document.querySelectorAll('*')].some(e => getComputedStyle(e).transitionDuration !== '0s')"
        assert page.run(moving) == (motion == "no-preference")
        session.let(float("inf"))
        page.until(DONE)


def test_settings_are_asked_with_and_kept(page: Page, demo: Serving) -> None:
    visit(page, demo)
    page.click("#open-settings")
    assert page.run("nodes.disabled")
    fill(page, {"temperature": "0.7", "max-tokens": "9", "seed": "5"})
    page.run("{ speculation.value = 'number'; speculation.dispatchEvent(new Event('change')) }")
    fill(page, {"nodes": "65"})
    page.click("#save-settings")
    assert page.run("settings.open"), "65 nodes are too many"
    fill(page, {"nodes": "12"})
    page.click("#save-settings")
    visit(page, demo)
    ask(page)
    [body] = chats(page)
    assert body.items() >= {"temperature": 0.7, "max_tokens": 9, "seed": 5, "speculation": 12}.items()
    assert answer(page) == said_by_the_api(demo, body) and page.texts(".figures")[0].startswith("9 tokens in ")
    page.click("#open-settings")
    assert page.run("[temperature, seed, speculation, nodes].map(e => e.value)") == ["0.7", "5", "number", "12"]
    fill(page, {"temperature": "3"})
    page.press("Escape")
    page.click("#open-settings")
    assert page.run("temperature.value") == "0.7", "what is not saved is not kept"
    fill(page, {"max-tokens": "", "seed": ""})
    page.click("#save-settings")
    ask(page)
    assert "max_tokens" not in chats(page)[1] and chats(page)[1]["seed"] != 5


def test_another_visitor_has_other_settings(new_page: Callable[[], Page], page: Page, demo: Serving) -> None:
    visit(page, demo)
    page.run("localStorage.setItem('gorgon.settings', 'no JSON')")
    visit(page, demo)
    page.click("#open-settings")
    assert page.run("[temperature.value, speculation.value]") == ["0", "auto"]
    other = new_page()
    visit(other, demo)
    assert other.run("localStorage.length") == 0
    other.close()


def fill(page: Page, values: dict[str, str]) -> None:
    for field, value in values.items():
        page.run(f"document.getElementById('{field}').select()")
        page.press("Backspace")
        page.write(value)
