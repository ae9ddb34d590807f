"""python -m tests.browser.picture URL FILE: the README's picture of the page of a server with the demo model."""

import sys
import tempfile
from pathlib import Path

from tests.browser.asking import DONE, QUESTION, READY, TEXT, keep
from tests.browser.chromium import browser, find


def main(url: str, file: str) -> None:
    program = find()
    assert program, "there is no Chromium in PATH: apt-get install chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, browser(program, Path(home)) as new_page:
        page = new_page()
        page.size(1200, 800)
        keep(page, speculation="number", nodes=10)
        page.open(url)
        page.until(READY)
        page.click("#question")
        page.write(QUESTION)
        page.press("Enter")
        page.until(DONE)
        page.click("#replay")
        page.until(f"document.querySelector('.verdict[data-equal]') && {DONE}")
        page.hover(f"{TEXT} .token[data-step='2']")
        page.until("document.querySelector('.text .chosen') && tree.checkVisibility()")
        page.shot(Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
