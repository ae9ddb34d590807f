"""deploy/ against the server: the dashboard asks for what /metrics has, the image's health check says what is so."""

import json
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.engine import Engine
from service.options import OPTIONS
from tests.service.serving import SECONDS, HeldSession, engine_on, serving

ROOT = Path(__file__).parents[2]
DOCKERFILES = {"Dockerfile": "serve", "Dockerfile.cuda": "gpu"}  # to the extra that each installs
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The labels of each sample that a server gives once it has answered."""
    found: dict[str, set[str]] = {}
    with serving(lambda: engine_on(HeldSession())) as server:
        server.generate(prompt="abcdefgh", max_tokens=30, ignore_eos=True, speculation=8)
        text = server.client.get("/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_the_dashboard_has_what_it_asks_for(query: str, labels: dict[str, set[str]]) -> None:
    names = re.findall(r"(?:vllm|gorgon|process)[:_]\w+", query)
    assert names and set(names) <= labels.keys()
    used = set(re.findall(r"(\w+)=~?\"", query)) | set(re.findall(r"by \((\w+)\)", query))
    for name in names:
        assert used <= labels[name], name
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
    counted = {name for name in names if name.endswith(("_total", "_bucket"))}
    assert counted == set(re.findall(r"rate\(([\w:]+)", query)), "a rate of each counter, and of nothing else"


def test_the_dashboard_shows_what_is_only_gorgons(labels: dict[str, set[str]]) -> None:
    asked = " ".join(QUERIES)
    figures = {name for name in labels if name.startswith("gorgon:")}
    assert {name for name in figures if name not in asked} == set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_choice_of_models_is_a_label_that_is_there(labels: dict[str, set[str]]) -> None:
    [query] = [item["definition"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query"]
    name, label = re.fullmatch(r"label_values\((.+), (.+)\)", query).groups()  # type: ignore[union-attr]
    assert label in labels[name]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_of_the_image(name: str) -> None:
    loaded = threading.Event()

    def load() -> Engine:
        assert loaded.wait(SECONDS)
        return engine_on(HeldSession())

    line = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", dockerfile(name), re.MULTILINE)
    assert line
    command = [sys.executable, *json.loads(line[1])[1:]]
    with serving(load, ready=False) as server:
        environment = {"GORGON_PORT": str(server.address[1])}
        assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == 1
        loaded.set()
        server.await_ready()
        assert subprocess.run(command, env=environment).returncode == 0


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_the_image_is_built_from(name: str) -> None:
    """It cannot be built here: at least what it copies is there and let through, and what it sets is known."""
    text = dockerfile(name)
    let = re.findall(r"^!(.+)$", (ROOT / "deploy" / f"{name}.dockerignore").read_text(), re.MULTILINE)
    sources = [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert sorted(sources) == sorted(let) and all((ROOT / name).exists() for name in sources)
    assert set(re.findall(r"GORGON_\w+(?==)", text)) <= {option.variable for option in OPTIONS}
    [extra] = re.findall(r"^RUN pip install .*--constraint constraints.txt '\.\[(\w+)\]'", text, re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extra == DOCKERFILES[name] and len(extras[extra]) == 1 and extras[extra][0].startswith("onnxruntime")
    assert text.index("pip install") < text.index("USER gorgon") < text.index("ENTRYPOINT")
    assert f"docker build -f deploy/{name} " in text


def test_the_images_differ_in_what_they_stand_on() -> None:
    """Everything from the sources on is the same, but for the extra and for operators that no GPU has a use for."""
    plain, cuda = (dockerfile(name).partition("COPY pyproject.toml")[2] for name in DOCKERFILES)
    plain, count = re.subn(r"# The native operators.*?/apt/lists/\*\n", "", plain, flags=re.DOTALL)
    assert count == 1 and plain.replace("'.[serve]'", "'.[gpu]'") == cuda
    assert re.search(r"^FROM nvidia/cuda:13\.\d+\.\d+-cudnn-runtime-", dockerfile("Dockerfile.cuda"), re.MULTILINE)


def dockerfile(name: str) -> str:
    return (ROOT / "deploy" / name).read_text()
