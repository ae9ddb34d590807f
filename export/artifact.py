"""Makes artifacts: checkpoint and heads in, a checked directory out, atomically."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from tokenizers import Tokenizer

from export import chat, losses, selftest
from export.checkpoint import LM_HEAD
from export.decoder import build_decoder
from export.directory import check, replacing
from export.draft_heads import build_heads
from export.heads import MedusaHeads, known_accuracy, misstated
from export.linear import INT4_BLOCK
from export.model import Model, open_model
from export.moves import build_moves
from export.numerics import numerics
from export.progress import Countdown, Say, unheard
from export.selftest import Report
from export.tokenizer import FILE as TOKENIZER
from export.tokenizer import shortfall
from runtime.errors import ArtifactError, ConfigurationError
from runtime.manifest import FORMS, SCHEMA, Manifest, capacity_of, sha256

DRAFT_TOP_K = 10  # the published tree for vicuna-7b uses ranks up to 9


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported: a checkpoint, its heads, and how. None means the checkpoint's own, of what it has.

    `plain` leaves out even the heads that the checkpoint has itself. Without `self_test` nothing says that the artifact
    computes what its checkpoint does: for one that this machine cannot run.
    """

    checkpoint: Path
    heads: Path | None = None
    precision: str = "int8"
    form: str = "ragged"
    context: int | None = None
    chat_template: str | None = None  # a name of export.chat's, or a file
    plain: bool = False
    self_test: bool = True


def export(source: Source, out: Path, say: Say = unheard, note: Say = unheard) -> tuple[Manifest, Report | None]:
    """Writes the artifact `out`, replacing what an earlier export left there.

    `say` is told what is being done and how long it still takes, `note` what people should know.

    Two exports of one source under one name are equal byte for byte. Raises CheckpointError, ArtifactError,
    ConfigurationError or SelfTestError; nothing is replaced then.
    """
    check(out)
    if source.precision not in FORMS[source.form]:
        raise ConfigurationError(
            f"precision {source.precision} is none of the {source.form} form: it has {', '.join(FORMS[source.form])}"
        )
    if source.self_test:
        selftest.check_machine(source.form, source.precision)
    model = open_model(source.checkpoint, source.context)
    config, checkpoint = model.config, model.checkpoint
    tokenizer = Tokenizer.from_str(model.tokenizer.text)
    template = chat.choose(
        source.chat_template, model.tokenizer.chat_template, model.names, tokenizer, source.checkpoint
    )
    note(f"chat template: {template.rule}")
    remarks = shortfall(tokenizer, config), losses.remark(checkpoint.dtypes, source.form, source.precision)
    for remark in filter(None, remarks):
        note(remark)
    heads = _heads(source, model, note)
    count = 0 if heads is None else heads.count
    how = numerics(source.form, source.precision, checkpoint.dtypes)
    passes = 2 if source.self_test else 1  # each part is made, and then computed again to compare
    progress = Countdown(say, passes * (config.layers + 1 + count))
    with replacing(out) as directory:
        build_decoder(config, checkpoint.tensor, source.form, how, directory, progress)
        if source.form == "padded":
            build_moves(config, how.values, directory)
        top_k = min(DRAFT_TOP_K, config.vocab)
        if heads is not None:
            vocabulary = lambda: checkpoint.tensor(LM_HEAD)  # noqa: E731
            build_heads(config, heads, vocabulary, source.form, source.precision, top_k, directory, progress)
        checkpoint.finish()
        (directory / TOKENIZER).write_bytes(model.tokenizer.text.encode("utf-8"))
        graph = onnx.load(directory / "decoder.onnx", load_external_data=False).graph
        manifest = Manifest(
            schema=SCHEMA,
            name=out.name,
            form=source.form,
            precision=source.precision,
            layers=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab,
            context=config.context,
            capacity=capacity_of(config.context),
            medusa_heads=count,
            draft_top_k=top_k,
            head_accuracy=None if heads is None else known_accuracy(heads.file, heads.count),
            bos=config.bos,
            eos=chat.end_tokens(template.text, tokenizer, config.eos),
            chat_template=template.text,
            special=model.tokenizer.special,
            # with larger blocks an odd last token takes another kernel
            even_tokens=source.form == "ragged" and source.precision == "int4" and INT4_BLOCK > 32,
            inputs=tuple(value.name for value in graph.input),
            outputs=tuple(value.name for value in graph.output),
            files={p.name: {"size": p.stat().st_size, "sha256": sha256(p)} for p in sorted(directory.iterdir())},
        )
        manifest.write(directory)
        report = None
        if source.self_test:
            say("self-test: the artifact")
            report = selftest.run(directory, checkpoint, heads, progress)
    return manifest, report


def _heads(source: Source, model: Model, note: Say) -> MedusaHeads | None:
    """The heads asked for, else those that the checkpoint has itself."""
    if source.plain:
        return None
    if source.heads is not None:
        heads: MedusaHeads | None = MedusaHeads.read(source.heads, model.config)
    else:
        heads = MedusaHeads.within(source.checkpoint, model.checkpoint)
    if heads is not None:
        if source.heads is None:
            note(f"{heads.count} Medusa heads found in {heads.file}")
        if (wrong := misstated(heads)) is not None:
            note(wrong)
    return heads


def write_head_accuracy(artifact: Path, manifest: Manifest, accuracy: tuple[tuple[float, ...], ...]) -> None:
    """Replaces the artifact by one whose manifest says how often its heads are right; the other files are the same.

    Raises ArtifactError if it is no longer the one that `manifest` describes.
    """
    with replacing(artifact) as directory:
        old = artifact.resolve()
        if Manifest.read(old).files != manifest.files:
            raise ArtifactError(f"{artifact} was replaced while it was evaluated: evaluate it again")
        for name in manifest.files:
            _link(old / name, directory / name)
        replace(manifest, head_accuracy=accuracy).write(directory)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
