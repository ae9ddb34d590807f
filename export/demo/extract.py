"""Extracts data.jsonl: the first paragraph of the docstring of about 2,000 standard-library objects.

Run once; the result is committed with the Python version it came from, so that training and tests do not depend on the
interpreter at hand. It runs as a program of its own (`python -m export.demo.extract`): libraries such as PyTorch put
functions of theirs in the place of the standard library's. The texts are Copyright Python Software Foundation, under
the PSF licence (LICENSE-PSF).
"""

import importlib
import inspect
import json
import random
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

MODULES = """
builtins os os.path re json itertools functools collections pathlib subprocess asyncio shutil random threading math
datetime time sys string logging argparse typing contextlib dataclasses enum csv io copy operator tempfile glob
collections.abc urllib.parse urllib.request http.client http.server socket statistics decimal fractions heapq bisect
queue multiprocessing concurrent.futures unittest unittest.mock inspect traceback warnings weakref types abc pickle
shelve sqlite3 hashlib hmac secrets base64 struct zlib gzip bz2 lzma zipfile tarfile configparser tomllib textwrap
pprint difflib fnmatch uuid calendar signal platform getpass gettext locale codecs unicodedata html html.parser
xml.etree.ElementTree xml.dom.minidom email email.message email.utils email.policy smtplib imaplib ftplib ssl select
selectors socketserver ipaddress urllib.error urllib.robotparser mimetypes array cmath numbers graphlib contextvars
sched zoneinfo timeit cProfile profile pstats trace tracemalloc gc dis ast tokenize token keyword symtable code
codeop pdb bdb doctest importlib importlib.util importlib.metadata importlib.resources importlib.abc
importlib.machinery pkgutil zipimport runpy site sysconfig venv filecmp fileinput linecache stat errno ctypes mmap
fcntl resource pwd grp pty tty termios shlex cmd readline rlcompleter curses netrc plistlib binascii quopri colorsys
wave turtle copyreg marshal dbm webbrowser wsgiref.util wsgiref.simple_server xmlrpc.client http.cookies
http.cookiejar poplib nntplib telnetlib mailbox optparse reprlib atexit faulthandler compileall py_compile pyclbr
tabnanny zipapp ensurepip modulefinder pickletools
""".split()
TARGET = 2000
HELD_OUT = 60
ALWAYS_TRAINED = 400  # the best known objects come first and are never held out, nor is any module's own function
LONGEST = 300
SHORTEST = 25

SIGNATURE = re.compile(r"^[\w.]+\s*\(.*\)\s*(-+>\s*.*|=\s*.*)?:?$")
LEADING_CALL = re.compile(r"^[\w.]+\s*\([^()]*\)\s*(?:->\s*[\w ,()\[\]]+?)?\s*(?:--|:)\s+")
UNWANTED = re.compile(
    r"deprecated|>>>|->|\[,|help\(type|\bTODO\b|\bXXX\b|\bFIXME\b|\|\s|={3,}|-{3,}|\*\*\*|^Not implemented", re.I
)
LIST_ITEM = re.compile(r"^\s*([-*+]|\d+[.)])\s|^\s*@\w+|^\s{4,}\S")


def answer_of(doc: object) -> str | None:
    """The first paragraph of prose in a docstring as sentences of up to 300 characters, or None when there is none."""
    if not isinstance(doc, str):
        return None
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        lines = paragraph.splitlines()
        while lines and SIGNATURE.match(lines[0].strip()):
            lines.pop(0)
        for index, line in enumerate(lines):
            if index and LIST_ITEM.match(line):
                del lines[index:]
                break
        text = LEADING_CALL.sub("", " ".join(" ".join(lines).split()))
        if text[:1].isalpha():
            return _sentences(text)
    return None


def _sentences(text: str) -> str | None:
    """Plain text cut to whole sentences; None when it is not a good answer."""
    text = re.sub(r"^\w+\.py\s*-+\s*", "", text)
    text = text.rstrip("\\ ")
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "`")
    if not text.isascii() or UNWANTED.search(text):
        return None
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"(])", text)
    if parts[-1].endswith((":", ",", ";", "-")):
        parts.pop()
    answer = ""
    for part in parts:
        if len(answer) + 1 + len(part) > LONGEST - 1:
            break
        answer = f"{answer} {part}".strip()
    if len(answer) < SHORTEST or len(answer.split()) < 3:
        return None
    if answer.count("(") != answer.count(")") or answer.count("`") % 2:
        return None
    first = answer.split()[0].rstrip(",;")
    if first.isalpha() and first.islower():
        answer = answer[0].upper() + answer[1:]
    return answer if answer.endswith((".", "!", "?", ".)")) else answer + "."


def _public(module: types.ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _methods(name: str, cls: type) -> Iterator[tuple[str, object]]:
    for attribute, value in vars(cls).items():
        if attribute.startswith("_"):
            continue
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if callable(value) or isinstance(value, property) or inspect.isdatadescriptor(value):
            yield f"{name}.{attribute}", value


def objects() -> Iterator[tuple[str, object]]:
    """(name, docstring) of every public object, top-level ones of a module before its methods."""
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        prefix = "" if module_name == "builtins" else module_name + "."
        if prefix:
            yield module_name, module.__doc__
        classes: list[tuple[str, type]] = []
        for name in _public(module):
            value = getattr(module, name, None)
            home = getattr(value, "__module__", None)
            foreign = (
                isinstance(home, str)
                and home.split(".")[0].lstrip("_") in MODULES
                and (home.split(".")[0].lstrip("_") != module_name.split(".")[0])
            )
            if isinstance(value, types.ModuleType) or not callable(value):
                continue
            if foreign and not (module_name in ("builtins", "os") or home in ("builtins", "posix", "genericpath")):
                continue
            yield prefix + name, getattr(value, "__doc__", None)
            if isinstance(value, type) and not issubclass(value, BaseException):
                classes.append((prefix + name, value))
        for name, cls in classes:
            for method, value in _methods(name, cls):
                yield method, getattr(value, "__doc__", None)


def extract() -> list[dict[str, object]]:
    """The first TARGET objects with a good answer no other object has, HELD_OUT of them marked as held out."""
    seen: set[str] = set()
    names: set[str] = set()
    rows: list[dict[str, object]] = []
    for name, doc in objects():
        answer = answer_of(doc)
        if answer is None or answer.casefold() in seen or name in names:
            continue
        seen.add(answer.casefold())
        names.add(name)
        rows.append({"name": name, "answer": answer, "heldout": False})
    rows = rows[:TARGET]
    methods = [row for row in rows[ALWAYS_TRAINED:] if str(row["name"]).rpartition(".")[0] not in ["", *MODULES]]
    for row in random.Random(0).sample(methods, HELD_OUT):
        row["heldout"] = True
    return rows


def write(path: Path) -> int:
    """Write the header line and one line an object; the number of objects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = extract()
    header = {"python": sys.version.split()[0], "licence": "PSF-2.0", "objects": len(rows)}
    path.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]))
    return len(rows)


if __name__ == "__main__":
    data = Path(__file__).with_name("data.jsonl")
    print(f"{write(data)} objects in {data}")
