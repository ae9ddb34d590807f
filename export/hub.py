"""Checkpoints and heads by their name on Hugging Face's Hub: downloaded once, only the files needed, into its cache."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

from export import tokenizer
from export.checkpoint import FILES
from export.config import FILE as CONFIG
from export.config import GENERATION_FILE
from export.heads import OWN
from runtime.errors import CheckpointError

Kind = Literal["checkpoint", "heads"]
# owner/name, or owner/name/file.gguf for one of many
_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/([\w./-]+\.gguf))?")
_SMALL = (
    CONFIG, GENERATION_FILE, tokenizer.FILE, tokenizer.SETTINGS, tokenizer.TEMPLATE, tokenizer.SENTENCEPIECE,
    tokenizer.ADDED, tokenizer.SPECIAL,
)  # fmt: skip


def local(given: str, kind: Kind, offline: bool) -> Path:
    """`given` if it is a path, else where the repository of that name lies once it is downloaded.

    `offline` takes what an earlier download left, as HF_HUB_OFFLINE=1 does. Raises CheckpointError.
    """
    match = _NAME.fullmatch(given)
    if match is None or Path(given).exists():
        return Path(given)
    from huggingface_hub import HfApi, constants, snapshot_download  # only here: it takes a while

    repository, file = match.groups()
    try:
        offline = offline or constants.HF_HUB_OFFLINE
        if file:
            wanted = [file]
        else:
            files = _cached(repository) if offline else HfApi().list_repo_files(repository)
            wanted = _wanted(repository, files, kind)
        folder = Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=offline))
    except CheckpointError:
        raise
    except Exception as error:  # of the package, of its HTTP client, of the system
        _refuse(repository, error)
    return folder / wanted[0] if wanted[0].endswith(".gguf") else folder


def _cached(repository: str) -> list[str]:
    """The files that earlier downloads left."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository, allow_patterns=[CONFIG], local_files_only=True))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _wanted(repository: str, files: Sequence[str], kind: Kind) -> list[str]:
    """Patterns of the files that an export reads: one form of the tensors, and whatever describes them."""
    own = next((name for name in OWN if name in files), None)
    if kind == "heads" and own is not None:
        return [own, Path(own).with_suffix(".json").name, CONFIG]
    tensors = next((name for name in FILES if name in files), None)
    if tensors is None:
        return _gguf(repository, files)
    wanted = [tensors, *_SMALL]
    if tensors.endswith(".index.json"):
        stem, suffix, *_ = tensors.split(".")
        wanted.append(f"{stem}-*-of-*.{suffix}")
    return wanted if own is None else [*wanted, own]


def _gguf(repository: str, files: Sequence[str]) -> list[str]:
    found = [name for name in files if name.endswith(".gguf")]
    if len(found) == 1:
        return found
    if found:
        raise CheckpointError(f"{repository} holds {', '.join(found)}: say which, as {repository}/{found[0]}")
    raise CheckpointError(f"{repository} has no tensors: expected one of {', '.join((*OWN, *FILES))}, or a GGUF file")


def _refuse(repository: str, error: Exception) -> NoReturn:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        why = f"is gated: accept its terms at {page} and log in with `hf auth login`, or set HF_TOKEN"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = f"is no path here, and {page} does not exist, or is private: then set HF_TOKEN"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        why = f"is no path here, and not whole in {constants.HF_HUB_CACHE}: export once without --offline"
    else:
        summary = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        why = f"is no path here, and {page} cannot be reached ({summary}): --offline takes what was downloaded before"
    raise CheckpointError(f"{repository} {why}") from None
