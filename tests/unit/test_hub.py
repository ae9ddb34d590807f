"""Names on the Hub: what is downloaded, what is taken from the cache, and what is said when neither works."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from export.__main__ import main
from export.hub import local
from export.needs import main as needs
from runtime.errors import CheckpointError
from runtime.manifest import Manifest
from tests.checkpoints import medusa_heads, tiny_llama
from tests.gguf_files import Gguf


def commit(folder: Path) -> str:
    """Another one as soon as there are other files."""
    return hashlib.sha1(" ".join(sorted(map(str, folder.rglob("*")))).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """As much of the Hub as a download uses: the directories in `root`, as owner/name."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.fetched: set[str] = set()  # owner/name/file

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name, rest = ("/".join(parts[2:4]), parts[4:]) if api else ("/".join(parts[:2]), parts[2:])
        folder = self.server.root / name
        if not folder.is_dir():
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif name in self.server.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif api:
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            entries = [
                {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": f"{i:040x}"}
                for i, f in enumerate(files)
            ]
            info = {"id": name, "sha": commit(folder), "siblings": [{"rfilename": file} for file in files]}
            self._answer(200, json.dumps(entries if rest[:1] == ["tree"] else info).encode())
        else:
            file = "/".join(rest[2:])
            self.server.fetched.add(f"{name}/{file}")
            content = (folder / file).read_bytes()
            self._answer(200, content, {"ETag": f'"{hash(content) & 0xFFFFFFFF:08x}"', "X-Repo-Commit": commit(folder)})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read when the package is imported."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.chdir(tmp_path)  # owner/name is no path here
    point_to(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def extra(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"not needed")
    return directory


def files(hub: Hub, name: str) -> set[str]:
    return {path.removeprefix(f"{name}/") for path in hub.fetched if path.startswith(name)}


TOKENIZER = {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_only_what_is_needed_is_downloaded(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    base = tiny_llama(hub.root / "some" / "model", shards=2)
    extra(base, "README.md", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "onnx/model.onnx")
    place = local("some/model", "checkpoint", False)
    assert re.search(r"6/6 ", capfd.readouterr().err), "progress is shown"
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert files(hub, "some/model") == TOKENIZER | shards | {"model.safetensors.index.json"}
    assert (place / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_pickles_where_there_is_nothing_else(hub: Hub) -> None:
    base = tiny_llama(hub.root / "some" / "model", shards=2, pickled=True)
    extra(base, "tokenizer.model", "training_args.bin", "optimizer.bin")
    local("some/model", "checkpoint", False)
    shards = {f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)}
    assert files(hub, "some/model") == TOKENIZER | shards | {"pytorch_model.bin.index.json", "tokenizer.model"}


def test_heads_alone_and_heads_with_their_model(hub: Hub) -> None:
    """Of the heads' repository only the heads; of Medusa-2's both."""
    both = medusa_heads(tiny_llama(hub.root / "some" / "both"))
    extra(both, "README.md", "medusa_lm_head.pt")
    local("some/both", "heads", False)
    assert files(hub, "some/both") == {"config.json", "medusa_lm_head.safetensors"}
    local("some/both", "checkpoint", False)
    assert files(hub, "some/both") == TOKENIZER | {"model.safetensors", "medusa_lm_head.safetensors"}


def test_a_gguf_file_of_one_or_of_many(hub: Hub) -> None:
    folder = hub.root / "some" / "GGUF"
    Gguf().write(folder / "tiny.Q8_0.gguf")
    assert local("some/GGUF", "checkpoint", False).name == "tiny.Q8_0.gguf"
    Gguf().write(folder / "tiny.Q4_0.gguf")
    with pytest.raises(CheckpointError, match="holds tiny.Q4_0.gguf, tiny.Q8_0.gguf: say which, as some/GGUF/t"):
        local("some/GGUF", "checkpoint", False)
    place = local("some/GGUF/tiny.Q4_0.gguf", "checkpoint", False)
    assert place.read_bytes() == (folder / "tiny.Q4_0.gguf").read_bytes()
    assert local("some/GGUF/tiny.Q4_0.gguf", "checkpoint", True) == place


@pytest.mark.parametrize("by_environment", [False, True])
def test_offline_takes_what_is_in_the_cache(hub: Hub, by_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(hub.root / "some" / "model", shards=2)
    medusa_heads(hub.root / "some" / "heads")
    names = (("some/model", "checkpoint"), ("some/heads", "heads"))
    before = [local(name, kind, False) for name, kind in names]  # type: ignore[arg-type]
    hub.fetched.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", by_environment)
    point_to("http://127.0.0.1:9", monkeypatch)
    assert [local(name, kind, not by_environment) for name, kind in names] == before  # type: ignore[arg-type]
    assert not hub.fetched
    with pytest.raises(CheckpointError, match="some/other is no path here, and not whole in .*without --offline"):
        local("some/other", "checkpoint", not by_environment)
    (before[0] / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="some/model is no path here, and not whole in"):
        local("some/model", "checkpoint", not by_environment)


def test_what_cannot_be_had(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"^no/such is no path here, and http://.*/no/such does not exist"):
        local("no/such", "checkpoint", False)
    tiny_llama(hub.root / "some" / "model")
    hub.gated.add("some/model")
    with pytest.raises(CheckpointError, match="^some/model is gated: accept its terms at http://.*/some/model "):
        local("some/model", "checkpoint", False)
    extra(hub.root / "some" / "data", "data.csv")
    with pytest.raises(CheckpointError, match="some/data has no tensors: expected one of medusa_lm_head.safetensors, "):
        local("some/data", "heads", False)
    point_to("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the package tries again and again
    with pytest.raises(CheckpointError, match=r"is no path here, and http://127.0.0.1:9/.* cannot be reached \(.+\)"):
        local("some/model", "checkpoint", False)


def test_a_path_is_a_path(tmp_path: Path, hub: Hub) -> None:
    """A directory that is called as a repository is, and what no repository can be called."""
    tiny_llama(tmp_path / "some" / "model")
    for given in ("some/model", str(tmp_path / "some" / "model"), "some/model/nowhere", "nowhere", "../x", "/no/such"):
        assert local(given, "checkpoint", False) == Path(given)
    assert not hub.fetched


def test_the_whole_command(tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """Both arguments by name; the chat template follows from the repository's name."""
    base = tiny_llama(hub.root / "lmsys" / "vicuna-7b-v1.3", pickled=True)
    (base / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    medusa_heads(hub.root / "FasterDecoding" / "medusa")
    arguments = ["lmsys/vicuna-7b-v1.3", "FasterDecoding/medusa"]
    assert needs(arguments) == 0 and capsys.readouterr().out == "export\n"
    hub.fetched.clear()
    assert needs([*arguments, "--offline"]) == 0 and capsys.readouterr().out == "export\n"
    assert main([arguments[0], "--heads", arguments[1], "--offline", "--out", "tiny"]) == 0
    assert not hub.fetched
    assert "vicuna, since the checkpoint is called models--lmsys--vicuna-7b-v1.3" in capsys.readouterr().err
    assert Manifest.read(tmp_path / "tiny").medusa_heads == 3
    assert main(["no/such", "--out", "tiny"]) == CheckpointError.exit_code
    assert "no/such is no path here" in capsys.readouterr().err
