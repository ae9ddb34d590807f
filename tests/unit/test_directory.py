"""A directory is replaced as a whole or not at all, whatever happens meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.directory import replacing
from runtime.errors import ArtifactError


def write(out: Path, content: str) -> None:
    with replacing(out) as directory:
        for name in "ab":
            (directory / name).write_text(content)


def read(out: Path) -> str:
    first, second = (out / "a").read_text(), (out / "b").read_text()
    assert first == second
    return first


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_new_directory_takes_the_name_and_the_old_one_goes(tmp_path: Path) -> None:
    out = tmp_path / "artifacts" / "demo"
    for content in ("first", "second", "third"):
        write(out, content)
        assert read(out) == content
        assert out.is_symlink()
        assert names(out.parent) == sorted([os.readlink(out), "demo"])
        assert names(out) == ["a", "b"]


def test_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    write(out, "old")
    with pytest.raises(KeyboardInterrupt), replacing(out) as directory:
        (directory / "a").write_text("new")
        raise KeyboardInterrupt
    assert read(out) == "old"
    assert names(tmp_path) == sorted([os.readlink(out), "demo"])


def test_a_link_survives_being_moved(tmp_path: Path) -> None:
    write(tmp_path / "artifacts" / "demo", "content")
    (tmp_path / "artifacts").rename(tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere" / "demo") == "content"


def test_what_no_export_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("data")
    (tmp_path / "file").write_text("data")
    (tmp_path / "link").symlink_to("folder")
    for name in ("folder", "file", "link"):
        with pytest.raises(ArtifactError, match=f"{name} (exists and no export made it|is a symlink to folder)"):
            write(tmp_path / name, "content")
    for out in (Path("."), Path("/"), tmp_path / ".."):
        with pytest.raises(ArtifactError, match="names no artifact"):
            write(out, "content")
    with pytest.raises(ArtifactError, match="file is not a directory"):
        write(tmp_path / "file" / "demo", "content")
    assert (tmp_path / "folder" / "precious").read_text() == "data"


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exists"), replacing(tmp_path / "demo"):
        (tmp_path / "demo").mkdir()
    assert names(tmp_path) == ["demo"]


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    """demo-0123abcd looks like a directory of demo, and is not."""
    write(tmp_path / "demo-0123abcd", "other")
    (tmp_path / ".demo-notes").mkdir()
    write(tmp_path / "demo", "content")
    write(tmp_path / "demo", "content")
    assert read(tmp_path / "demo-0123abcd") == "other"
    assert (tmp_path / ".demo-notes").is_dir()


def test_what_a_kill_left_goes_before_the_new_one_is_written(tmp_path: Path) -> None:
    """Disks that hold a model twice need not hold it three times."""
    (tmp_path / ".demo-0123abcd").mkdir()
    (tmp_path / ".demo-0123abcd" / "a").write_text("left")
    with replacing(tmp_path / "demo") as directory:
        assert names(tmp_path) == [directory.name]


def test_two_at_once(tmp_path: Path) -> None:
    """Neither removes what the other is writing; the last to end has the name."""
    out = tmp_path / "demo"
    with replacing(out) as slow:
        (slow / "a").write_text("slow")
        write(out, "fast")
        assert read(out) == "fast"
        (slow / "b").write_text("slow")
    assert read(out) == "slow"
    assert names(tmp_path) == sorted([os.readlink(out), "demo"])


KILLED = """
import os, shutil, sys
from pathlib import Path
from export.directory import replacing

def write(out, content):
    with replacing(out) as directory:
        for name in "ab":
            (directory / name).write_text(content)

def read(out):
    first, second = (out / "a").read_text(), (out / "b").read_text()
    assert first == second, (first, second)
    return first

def killed_at(moment, out):
    # the child ends without any clean-up just before or after the given call into C, where files are changed
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0
    def count(frame, event, argument):
        nonlocal seen
        seen += event in ("c_call", "c_return")
        if seen == moment:
            os._exit(9)
    sys.setprofile(count)
    write(out, "new")
    os._exit(0)

out, moment, found = Path(sys.argv[1]) / "demo", 0, set()
while True:
    moment += 1
    write(out, "old")
    code = killed_at(moment, out)
    found.add(read(out))
    if code == 0:
        break
    write(out, "next")
    assert read(out) == "next"
    left = set(os.listdir(out.parent))
    assert left == {"demo", os.readlink(out)}, left
print(moment, *sorted(found))
"""


def test_a_kill_at_any_moment_leaves_a_whole_directory_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    moments, *found = done.stdout.split()
    assert int(moments) > 100
    assert found == ["new", "old"]
