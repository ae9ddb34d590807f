"""The interface's document against the server: whatever schemathesis makes of it, no 500 and nothing undocumented."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.random_params import json_tokenizer
from tests.service.serving import HeldSession, engine_on, serving

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_schemathesis_finds_nothing(tmp_path: Path, seed: int) -> None:
    """The document with the model's name filled in, so that requests get past it."""
    with serving(lambda: engine_on(HeldSession(rows=8), json_tokenizer(), queue=64)) as server:
        document = server.client.get("/openapi.json").json()
        for name, names in (("Chat", ["fake"]), ("Completion", ["fake"]), ("Tokenize", ["fake", None])):
            document["components"]["schemas"][f"{name}Request"]["properties"]["model"] = {"enum": names}
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(document))
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", str(server.client.base_url),
            "--checks", ",".join(CHECKS), "--seed", str(seed), "--max-examples", "60", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
        assert server.health()[0] == 200 and server.health()[1]["failed_steps"] == 0
