"""Ways to damage bytes of any kind, and what JSON is made of. Every one is decided by a `Random`."""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

HUGE = 10**400
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    40_000,
    2**31 - 1,
    10**9,
    2**63,
    10**20,
    HUGE,
    0.5,
    -1e308,
    1e308,
    float("nan"),
    float("inf"),
]
TEXTS = [
    "",
    "x",
    "7",
    "nan",
    "a" * 10_000,
    "../../x",
    "/etc/passwd",
    "\ud800",
    "\0",
    "(a+)+$",
    "Sigma",
    "__import__('os')",
]
OTHERS = [None, True, False, [], {}, [[[]]], [10**9] * 4, {"a": {"a": 1}}, [None], {"": ""}, ["a", 1, None]]


def evil(rng: Random) -> Any:
    return rng.choice(rng.choice([NUMBERS, TEXTS, OTHERS]))


def altered(value: Any, rng: Random) -> Any:
    """Like a value, or something else."""
    if rng.random() < 0.5 or value is None:
        return evil(rng)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice([value + 1, value - 1, value * 2, value * 1000, -value, str(value), float(value), [value]])
    if isinstance(value, str):
        return rng.choice([value + "x", value[:-1], value.upper(), [value], value * 50, rng.choice(TEXTS)])
    if isinstance(value, list):
        return rng.choice([value[:-1], value + value, value * 1000, [value], value + [evil(rng)], value[::-1]])
    return rng.choice([{}, [value], {**value, rng.choice(TEXTS): evil(rng)}, list(value.items())])


# Bytes -----------------------------------------------------------------------------------------------------------

JUNK = [
    b"",
    b"\0" * 64,
    b"<!DOCTYPE html><html>",
    b"GGUF\3\0\0\0",
    b"PK\3\4",
    b"\x80\2",
    b"{",
    b"\xff\xfe",
    b"[" * 200_000,
    b"\x80\4.",
]


def bytes_mutation(data: bytes, rng: Random) -> tuple[bytes, str]:
    out, size = bytearray(data), len(data)
    place = rng.randrange(size + 1) if rng.random() < 0.5 else rng.randrange(min(size, 400) + 1)
    length = rng.choice([1, 2, 8, 100])
    kind = rng.choice(["flip", "flip", "cut", "zero", "insert", "remove", "repeat", "junk", "append", "number"])
    if kind == "flip" and size:
        for _ in range(rng.randint(1, 8)):
            out[min(place + rng.randrange(64), size - 1)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del out[place:]
    elif kind == "zero":
        out[place : place + length] = bytes(min(length, size - place))
    elif kind == "insert":
        out[place:place] = rng.randbytes(length)
    elif kind == "remove":
        del out[place : place + length]
    elif kind == "repeat":
        out[place:place] = out[place : place + length] * rng.choice([1, 2, 1000])
    elif kind == "junk":
        out[:] = rng.choice(JUNK)
    elif kind == "append":
        out += rng.randbytes(length)
    else:
        number = struct.pack("<Q", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1]))
        out[place : place + rng.choice([4, 8])] = number[: rng.choice([4, 8])]
    return bytes(out), f"{kind} at {place}"


# JSON ------------------------------------------------------------------------------------------------------------


def paths(value: Any, path: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, each in list(items)[:200]:
        found += paths(each, (*path, key))
    return found


def json_mutation(value: Any, rng: Random) -> tuple[Any, str]:
    places = paths(value)
    if not places or rng.random() < 0.05:
        return evil(rng), "the whole"
    shallow = [place for place in places if len(place) <= 2]
    path = rng.choice(shallow if rng.random() < 0.7 else places)
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.choice(["change", "change", "change", "remove", "rename", "add"])
    if kind == "remove":
        del parent[path[-1]]
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice([*TEXTS, str(path[-1]) + "x"])] = parent.pop(path[-1])
    elif kind == "add" and isinstance(parent, dict):
        more = ["num_labels", "auto_map", "quantization_config", "torch_dtype", "use_rslora", "sample_size", "x"]
        parent[rng.choice(more)] = evil(rng)
    else:
        parent[path[-1]] = altered(parent[path[-1]], rng)
    return value, f"{kind} {'.'.join(map(str, path))}"


def json_text(data: bytes, rng: Random) -> tuple[bytes, str]:
    try:
        value, what = json_mutation(json.loads(data), rng)
        return json.dumps(value).encode(), what
    except ValueError:
        return bytes_mutation(data, rng)


def json_lines(data: bytes, rng: Random) -> tuple[bytes, str]:
    lines = data.splitlines(keepends=True)
    index = rng.randrange(len(lines))
    line, what = json_text(lines[index], rng) if rng.random() < 0.7 else bytes_mutation(lines[index], rng)
    lines[index] = line + b"\n"
    return b"".join(lines), f"line {index}: {what}"


# Tensors ---------------------------------------------------------------------------------------------------------
