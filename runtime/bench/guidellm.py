"""`python -m runtime.bench guidellm`: an outside load generator, unmodified, against the server.

guidellm is installed into an environment of its own, given the artifact's tokenizer as a directory so that it downloads
none, and its report is held against the server's own counts: every request answered, every token told. Its figures are
of synthetic prompts, which a trained model has nothing to say to: they show that it works, not what drafting gains.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from runtime.bench.options import positive
from runtime.bench.peers.catalogue import Peer
from runtime.bench.peers.install import NotInstalled, install
from runtime.bench.server import RunningServer, StartedServer, health
from runtime.errors import ConfigurationError, StepError
from runtime.params import EngineConfig

FILE = Path(__file__).with_name("guidellm.json")
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast"}  # what transformers wants to know beside tokenizer.json
RUN_SECONDS = 1800


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "guidellm", help="an outside load generator against the server",
        description=__doc__.partition("\n\n")[2] if __doc__ else None,
    )  # fmt: skip
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="directory that `python -m export` wrote")
    add("--url", help="of a server of this artifact that runs already; one is started otherwise")
    add("--streams", type=positive, default=4, help="requests at a time (%(default)s)")
    add("--requests", type=positive, default=48, help="in all (%(default)s)")
    add("--prompt-tokens", type=positive, default=64, help="of a prompt, before the chat template (%(default)s)")
    add("--output-tokens", type=positive, default=32, help="of every answer (%(default)s)")
    add("--home", type=Path, default=Path(".peers"), metavar="DIR",
        help="where guidellm is installed, 1.5 GB (%(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="keep guidellm's own report there")
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs it and checks its report. Raises ConfigurationError or StepError."""
    given = json.loads(FILE.read_text("utf-8"))
    peer = Peer("guidellm", "", (), (), tuple(given["install"]), given["pins"], None)
    try:
        python = install(peer, options.home.resolve(), lambda text: print(text, file=sys.stderr))
    except NotInstalled as error:
        raise ConfigurationError(f"guidellm cannot be installed: {error}") from None
    config = EngineConfig(rows=options.streams)
    server = RunningServer(options.url) if options.url else StartedServer(options.artifact, config)
    with server, tempfile.TemporaryDirectory() as folder:
        before = health(server.url)[1]
        report = measure(python.with_name("guidellm"), server.url, options, Path(folder))
        after = health(server.url)[1]
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(check(report, options.requests, options.output_tokens, after["tokens"] - before["tokens"]))
    return 0


def measure(program: Path, url: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """guidellm's report. Raises StepError."""
    tokenizer, out = folder / "tokenizer", folder / "report.json"
    tokenizer.mkdir()
    shutil.copy(options.artifact / "tokenizer.json", tokenizer)
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    command = [
        str(program), "run", "--disable-progress",
        "--backend", f"kind=openai_http,target={url}",
        "--profile", f"kind=concurrent,streams={options.streams}",
        "--constraint", f"kind=max_requests,count={options.requests}",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
        "--data", f"kind=synthetic_text,prompt_tokens={options.prompt_tokens},output_tokens={options.output_tokens}",
        "--output", f"kind=json,path={out}",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=RUN_SECONDS, cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode or not out.is_file():
        raise StepError(f"guidellm ended with exit code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    report: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return report


def check(report: dict[str, Any], requests: int, output_tokens: int, emitted: int) -> str:
    """What the report says, in a line. Raises StepError where it is not what was asked for, or not what was emitted.

    `emitted` tokens is what the server says of the same time.
    """
    [benchmark] = report["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    if totals != {"successful": requests, "errored": 0, "incomplete": 0, "total": requests}:
        errors = {request["info"].get("error") for request in benchmark["requests"]["errored"]}
        raise StepError(f"of {requests} requests guidellm counts {totals}: {'; '.join(sorted(map(str, errors)))}")
    told = [request["output_tokens"] for request in benchmark["requests"]["successful"]]
    if told != [output_tokens] * requests:
        raise StepError(f"guidellm was told of {sorted(set(told))} tokens an answer: it asked for {output_tokens}")
    if sum(told) != emitted:
        raise StepError(f"guidellm was told of {sum(told)} tokens: the server emitted {emitted}")
    figures = {name: benchmark["metrics"][name]["successful"] for name in (
        "requests_per_second", "output_tokens_per_second", "time_to_first_token_ms", "inter_token_latency_ms",
    )}  # fmt: skip
    return (
        f"{requests} requests, 0 errors, {emitted} tokens, as the server counts them;"
        f" {figures['requests_per_second']['mean']:.1f} requests/s,"
        f" {figures['output_tokens_per_second']['mean']:.0f} tokens/s,"
        f" first token {figures['time_to_first_token_ms']['median']:.0f} ms,"
        f" then {figures['inter_token_latency_ms']['median']:.1f} ms a token (medians)"
    )
