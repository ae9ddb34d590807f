"""int4 in blocks of 32 and of 128, and int8: how far the demo model moves from fp32, and how large it is.

Run:  .venv/bin/python -m docs.decisions.experiments.int4_blocks
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from export import arithmetic, artifact, linear
from export.artifact import Source, export
from export.demo.dialogue import MODEL, load_entries
from export.demo.text import held_out, write
from export.evaluate import WINDOW, Artifact, evaluate, from_artifact
from export.text import windows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root / "text.jsonl", held_out(load_entries()))
        heads = MODEL / "medusa_lm_head.safetensors"
        export(Source(MODEL, heads, "fp32"), root / "fp32", lambda message: None)
        for name, precision, block in (("int8", "int8", 32), ("int4-32", "int4", 32), ("int4-128", "int4", 128)):
            with ExitStack() as patched:  # the self-test's too
                for module in (linear, artifact, arithmetic):
                    patched.enter_context(patch.object(module, "INT4_BLOCK", block))
                export(Source(MODEL, heads, precision), root / name, lambda message: None)
            this = Artifact(root / name)
            texts = windows(root / "text.jsonl", this.tokenizer, min(WINDOW, this.manifest.context))
            found = evaluate(this, texts, from_artifact(root / "fp32", this.manifest, texts))
            size = sum(int(file["size"]) for file in this.manifest.files.values()) / 1e6
            print(f"{name}: {size:.1f} MB\n{found}\n", flush=True)


if __name__ == "__main__":
    main()
