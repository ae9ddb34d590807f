"""Steps of packed trees and chunks for tests, the native kernel, and what it must compute, in float64."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from runtime.native.library import Library

TYPES = {"fp32": (0, np.float32), "fp16": (1, np.float16), "int8": (2, np.int8)}
MARK = 77  # what cache places hold that nobody has written: a number of every type
SIZES = ("rows", "tokens", "nodes", "heads", "kv_heads", "head_dim", "capacity", "positions")


class _Arguments(ctypes.Structure):
    """TreeAttention of runtime/native/tree_attention.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in ("qkv", "depth", "length", "count", "ancestors", "cosine", "sine")),
        ("type", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("key", "value", "key_scale", "value_scale", "out")),
    ]


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    capacity: int = 512
    type: str = "fp32"


@dataclass(frozen=True)
class Cache:
    """[rows, kv_heads, capacity, head_dim], and for int8 scales [rows, kv_heads, capacity]."""

    key: np.ndarray
    value: np.ndarray
    key_scale: np.ndarray
    value_scale: np.ndarray

    @classmethod
    def empty(cls, shape: Shape, rows: int) -> "Cache":
        places = (rows, shape.kv_heads, shape.capacity)
        full = lambda: np.full((*places, shape.head_dim), MARK, TYPES[shape.type][1])  # noqa: E731
        return cls(full(), full(), np.full(places, MARK, np.float32), np.full(places, MARK, np.float32))

    def copy(self) -> "Cache":
        return Cache(*(array.copy() for array in self.arrays))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.key, self.value, self.key_scale, self.value_scale

    def row(self, row: int) -> "Cache":
        return Cache(*(array[row : row + 1].copy() for array in self.arrays))


@dataclass(frozen=True)
class Step:
    """What rows bring: `parents` of each row's nodes, -1 for a root, and their projections."""

    length: np.ndarray  # [rows]
    parents: list[list[int]]
    qkv: np.ndarray  # [tokens, (heads + 2 kv_heads) * head_dim]

    @property
    def count(self) -> np.ndarray:
        return np.array([len(row) for row in self.parents])

    @property
    def depth(self) -> np.ndarray:
        return np.concatenate([_depth(row) for row in self.parents]) if self.parents else np.zeros(0, np.int64)

    @property
    def ancestors(self) -> np.ndarray:
        """bool [rows, nodes, nodes]; beyond a row's count anything may stand."""
        width = max([1, *self.count])
        seen = np.ones((len(self.parents), width, width), bool)
        for row, parents in enumerate(self.parents):
            n = len(parents)
            seen[row, :n, :n] = _ancestors(parents)
        return seen

    def row(self, row: int) -> "Step":
        ends = np.cumsum(self.count)
        return Step(self.length[row : row + 1], [self.parents[row]], self.qkv[ends[row] - self.count[row] : ends[row]])

    def nodes(self, row: int, slots: list[int], parents: list[int], length: int) -> "Step":
        """Some nodes of one row as a step of their own."""
        return Step(np.array([length]), [parents], self.row(row).qkv[slots])


def _depth(parents: list[int]) -> np.ndarray:
    depth = np.zeros(len(parents), np.int64)
    for i, parent in enumerate(parents):
        depth[i] = depth[parent] + 1 if parent >= 0 else 0
    return depth


def _ancestors(parents: list[int]) -> np.ndarray:
    seen = np.eye(len(parents), dtype=bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            seen[i] |= seen[parent]
    return seen


def chain(nodes: int) -> list[int]:
    return list(range(-1, nodes - 1))


def random_parents(rng: np.random.Generator, nodes: int) -> list[int]:
    """A tree, parents first; now and then deep, now and then flat."""
    back = int(rng.integers(1, nodes + 1))
    return [-1, *(int(rng.integers(max(0, i - back), i)) for i in range(1, nodes))]


def random_step(rng: np.random.Generator, shape: Shape, length: list[int], parents: list[list[int]]) -> Step:
    tokens = sum(map(len, parents))
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return Step(np.array(length, np.int64), parents, 2 * rng.standard_normal((tokens, width), np.float32))


@cache
def tables(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arange(shape.capacity)[:, None] / 10000 ** (np.arange(0, shape.head_dim, 2) / shape.head_dim)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def random_cache(rng: np.random.Generator, shape: Shape, length: list[int]) -> Cache:
    """Committed tokens hold random numbers, what follows MARK."""
    cache = Cache.empty(shape, len(length))
    for row, n in enumerate(length):
        for part, scale in ((cache.key, cache.key_scale), (cache.value, cache.value_scale)):
            place = part[row, :, :n]
            place[:] = (
                rng.integers(-127, 128, place.shape) if shape.type == "int8" else rng.standard_normal(place.shape)
            )
            scale[row, :, :n] = rng.uniform(0.005, 0.02, (shape.kv_heads, n))
    return cache


class Refused(Exception):
    """What the library says is wrong."""


@dataclass(frozen=True)
class Kernel:
    """The library's tree attention on one path, over so many threads."""

    library: Library
    path: str
    threads: int = 1

    def run(self, shape: Shape, step: Step, cache: Cache, **changes: Any) -> np.ndarray:
        """[tokens, heads * head_dim]; the cache takes the nodes. `changes` replace arguments by wrong ones."""
        call, arrays = self.prepare(shape, step, cache, **changes)
        with self.library.forced(self.path):
            call()
        return arrays["out"]

    def prepare(
        self, shape: Shape, step: Step, cache: Cache, **changes: Any
    ) -> tuple[Callable[[], None], dict[str, np.ndarray]]:
        """What runs one step, on the path in force then, and the arrays that it reads and writes."""
        cosine, sine = tables(shape)
        arrays = {
            "qkv": np.ascontiguousarray(step.qkv), "depth": step.depth, "length": step.length, "count": step.count,
            "ancestors": step.ancestors, "cosine": cosine, "sine": sine, "key": cache.key, "value": cache.value,
            "key_scale": cache.key_scale, "value_scale": cache.value_scale,
            "out": np.full((len(step.qkv), shape.heads * shape.head_dim), np.nan, np.float32),
        }  # fmt: skip
        arrays |= {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
        sizes = {
            "rows": len(step.parents), "tokens": len(step.qkv), "nodes": arrays["ancestors"].shape[-1],
            "heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "capacity": shape.capacity,
            "positions": len(cosine), "type": TYPES[shape.type][0],
        }  # fmt: skip
        sizes |= {name: value for name, value in changes.items() if isinstance(value, int)}
        addresses = {name: array.ctypes.data for name, array in arrays.items()}
        arguments = _Arguments(**(addresses | sizes))

        def call() -> None:
            if self.library.functions.gorgon_tree_attention(ctypes.byref(arguments), self.threads):
                raise Refused(self.library.functions.gorgon_error().decode())

        return call, arrays

    def exponential(self, x: np.ndarray) -> np.ndarray:
        """e^x of float32 numbers, a multiple of 16 of them."""
        y, at = np.empty_like(x), ctypes.c_void_p
        with self.library.forced(self.path):
            self.library.functions.gorgon_exponential(at(x.ctypes.data), at(y.ctypes.data), ctypes.c_int64(x.size))
        return y


def rotated(x: np.ndarray, position: np.ndarray, shape: Shape) -> np.ndarray:
    """x [tokens, heads, head_dim]"""
    cosine, sine = (table[position][:, None].astype(np.float64) for table in tables(shape))
    half = shape.head_dim // 2
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], -1)


def plain(cache: np.ndarray, scale: np.ndarray, shape: Shape) -> np.ndarray:
    return cache * scale[..., None].astype(np.float64) if shape.type == "int8" else cache.astype(np.float64)


def expected(shape: Shape, step: Step, cache: Cache) -> np.ndarray:
    """[tokens, heads, head_dim] in float64. The nodes' keys and values are taken from `cache`, which has taken them."""
    heads, kv_heads, group = shape.heads, shape.kv_heads, shape.heads // shape.kv_heads
    key, value = plain(cache.key, cache.key_scale, shape), plain(cache.value, cache.value_scale, shape)
    out, first = [], 0
    for row, parents in enumerate(step.parents):
        n, length = len(parents), int(step.length[row])
        if n == 0:
            continue
        x = step.qkv[first : first + n].reshape(n, heads + 2 * kv_heads, shape.head_dim).astype(np.float64)
        q = rotated(x[:, :heads], length + _depth(parents), shape)
        k, v = (part[row, :, : length + n].repeat(group, 0) for part in (key, value))
        score = q.swapaxes(0, 1) @ k.swapaxes(1, 2) / np.sqrt(shape.head_dim)  # [heads, nodes, tokens]
        score[:, :, length:][:, ~_ancestors(parents)] = -np.inf
        weight = np.exp(score - score.max(-1, keepdims=True))
        out.append((weight / weight.sum(-1, keepdims=True) @ v).swapaxes(0, 1))
        first += n
    return np.concatenate(out)


def new_keys(shape: Shape, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Keys after the rotary embedding, and values, [tokens, kv_heads, head_dim] in float64."""
    x = step.qkv.reshape(len(step.qkv), -1, shape.head_dim).astype(np.float64)
    position = np.repeat(step.length, step.count) + step.depth
    return rotated(x[:, shape.heads : -shape.kv_heads], position, shape), x[:, -shape.kv_heads :]
