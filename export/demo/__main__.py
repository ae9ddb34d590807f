"""`python -m export.demo`: data, tokenizer, base, heads and report, from seed; goes on where it was interrupted."""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from export.demo import report, tokenizer
from export.demo.dialogue import DATA, MODEL, load_entries
from export.demo.text import HEAD_PHRASINGS, held_out, trained, write
from export.demo.train import Recipe, publish, tokenize, train
from export.train_heads import Options, train_heads

WORK = Path(__file__).with_name(".work")
REPORT = Path(__file__).with_name("report.json")
HEADS = "medusa_lm_head.safetensors"
HEAD_OPTIONS = Options(epochs=24, lr=2e-3, batch=512, held_out=1 / (HEAD_PHRASINGS + 1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export.demo", description=__doc__)
    parser.add_argument("--extract", action="store_true", help="read this Python's docstrings into data.jsonl")
    parser.add_argument("--fresh", action="store_true", help="forget interrupted work")
    parser.add_argument("--report-only", action="store_true", help="print the measures of the model that is there")
    parser.add_argument("--passes", type=int, default=Recipe().passes, help="of the base over the data (%(default)s)")
    parser.add_argument("--model", type=Path, default=MODEL, help="where the checkpoint is written")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the report is written")
    parser.add_argument("--work", type=Path, default=WORK, help="where interrupted work is kept")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    return parser.parse_args()


def prepare(work: Path, asked: str) -> None:
    """An empty work folder, unless it holds the work of the same data and recipes."""
    stamp = work / "asked"
    if work.exists() and not (stamp.exists() and stamp.read_text() == asked):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(asked)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.report_only:
        print(report.table(report.measure(args.model, load_entries())))
        return
    if args.extract or not DATA.exists():
        subprocess.run([sys.executable, "-m", "export.demo.extract"], check=True)
    entries = load_entries()
    recipe = replace(Recipe(), passes=args.passes)
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    data = hashlib.sha256(DATA.read_bytes()).hexdigest()
    prepare(args.work, json.dumps([data, asdict(recipe), asdict(HEAD_OPTIONS)]))

    words: Tokenizer = tokenizer.build(entries)
    tokenizer.save(words, args.model)
    model, base_seconds = train(tokenize(words, entries), recipe, args.work)
    publish(model, words, args.model)

    heads = args.work / HEADS
    started = time.monotonic()
    if not heads.exists():
        text = args.work / "heads.jsonl"
        write(text, trained(entries) + held_out(entries))
        train_heads(args.model, text, heads, HEAD_OPTIONS)
    head_seconds = time.monotonic() - started
    for file in (heads, heads.with_suffix(".json")):
        shutil.copy(file, args.model / file.name)

    measured = report.measure(args.model, entries)
    measured["recipe"] = {"base": asdict(recipe), "heads": asdict(HEAD_OPTIONS)}
    measured["minutes"] = {"base": round(base_seconds / 60, 1), "heads": round(head_seconds / 60, 1)}
    report.write(measured, args.report)
    print(report.table(measured))
    shutil.rmtree(args.work)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on from here") from None
