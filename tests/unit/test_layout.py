"""What may import what, and that the packaging says what the code needs."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import errors

ROOT = Path(__file__).parents[2]
PARTS = ("export", "runtime", "service")
HEAVY = {"torch", "transformers", "sentencepiece", "gguf", "huggingface_hub"}
FORBIDDEN = {"runtime": {"export", "service"} | HEAVY, "service": {"export"} | HEAVY, "export": {"service"}}
INCLUDED = {"pydantic_core", "opentelemetry"}  # come with pydantic, which pins it, and with opentelemetry-sdk
LENT = {"httptools"}  # uvicorn imports it for us
ELSEWHERE = ROOT / "runtime" / "bench" / "peers" / "engines"  # runs in environments of its own, without the project


def imports(part: str) -> Iterator[tuple[Path, str]]:
    """(file, top-level name) of each import, at the top of a file or inside it."""
    for file in sorted((ROOT / part).rglob("*.py")):
        if file.is_relative_to(ELSEWHERE):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield file, node.module.partition(".")[0]


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_in_one_direction(part: str) -> None:
    wrong = [f"{file.relative_to(ROOT)} imports {name}" for file, name in imports(part) if name in FORBIDDEN[part]]
    assert not wrong


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {_module(entry) for entry in project["dependencies"]}
    extras = project["optional-dependencies"]
    optional = {_module(entry) for name in extras if name != "test" for entry in extras[name]}
    used = {name for part in PARTS for _, name in imports(part)} - set(sys.stdlib_module_names) - set(PARTS)
    assert used - INCLUDED <= required | optional
    assert required - LENT <= used


def test_the_page_is_packaged() -> None:
    """Each of its files is matched by package-data, whatever its name ends with."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    packaged = {file for pattern in patterns for file in (ROOT / "service").glob(pattern)}
    files = {file for file in (ROOT / "service").rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert files == packaged & files and ROOT / "service" / "static" / "page.html" in files


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {_normal(pin) for pin in pins}
    everything = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    assert {_normal(re.split("[<>=]", entry)[0]) for entry in everything} <= pinned
    assert [_normal(pin) for pin in pins] == sorted({_normal(pin) for pin in pins}), "sorted, each once"


def test_serving_and_exporting_load_neither_torch_nor_transformers() -> None:
    """`make serve` exports the demo model and serves it where neither is installed."""
    program = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'sentencepiece', 'gguf'))\n"
        "import export.__main__, export.needs, runtime.engine, service.__main__, service.server, service.app"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT, timeout=120)


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "help"], check=True, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", shown, re.MULTILINE)) == set(phony.split())


def test_every_exit_code_is_documented() -> None:
    def classes(root: type[errors.GorgonError]) -> Iterator[type[errors.GorgonError]]:
        yield root
        for child in root.__subclasses__():
            yield from classes(child)

    documented = re.findall(r"^\| (\d) \| ", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert {int(code) for code in documented} == {0} | {error.exit_code for error in classes(errors.GorgonError)}


def _module(entry: str) -> str:
    return re.split("[<>=]", entry)[0].replace("-", "_")


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
