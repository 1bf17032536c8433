"""Ways to damage files of weights: safetensors, pickles, PyTorch's archives. Every one is decided by a `Random`."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fuzz.text_mutations import (
    bytes_mutation,
    json_mutation,
)

DTYPES = [
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.int64,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
]
NAMES = [
    "",
    "x",
    "blocks.999999999.attn.qkv.weight",
    "controlnet.5.x",
    "lora_A",
    "\ud800",
    "é",
    "a" * 5000,
    "..",
    "alpha",
    "x.lora_A.weight",
]


def state_mutation(state: dict, rng: Random) -> tuple[dict, str]:
    """Rename, remove, add or alter tensors."""
    state = dict(state)
    what = []
    for _ in range(rng.choice([1, 1, 1, 4])):
        if not state:
            break
        name = rng.choice(sorted(state, key=str))
        kind = rng.choice(["remove", "rename", "add", "shape", "dtype", "values", "swap", "scalar", "empty"])
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            break
        if kind == "remove":
            del state[name]
        elif kind == "rename":
            part = str(name).split(".")
            part[rng.randrange(len(part))] = rng.choice(["x", "9", "999999999", "", "weight"])
            state[rng.choice([".".join(part), rng.choice(NAMES)])] = state.pop(name)
        elif kind == "add":
            state[rng.choice([*NAMES, f"{name}.x", f"module.{name}"])] = torch.zeros(
                rng.choice([(), (1,), (0, 3), (2, 2)])
            )
        elif kind == "shape":
            flat = tensor.flatten()
            state[name] = rng.choice(
                [flat, tensor[None], flat[:1], flat[:-1], tensor.T if tensor.ndim == 2 else flat]
            ).clone()
        elif kind == "dtype":
            wanted = rng.choice(DTYPES)
            for each in [name] if rng.random() < 0.5 else list(state):
                if isinstance(state[each], torch.Tensor):
                    state[each] = state[each].float().to(wanted)
        elif kind == "values":
            number = rng.choice([float("nan"), float("inf"), 1e30, 0.0])
            state[name] = torch.full_like(tensor.float(), number)
        elif kind == "swap":
            other = rng.choice(sorted(state, key=str))
            state[name], state[other] = state[other], state[name]
        else:
            state[name] = torch.tensor(1.0) if kind == "scalar" else torch.empty(0, 4)
        what.append(f"{kind} {str(name)[:60]}")
    return state, ", ".join(what)


def safetensors_mutation(file: Path, rng: Random) -> str:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    kind = rng.choice(["tensors", "tensors", "header", "metadata", "length", "bytes"])
    if kind == "tensors":
        with safe_open(file, "pt") as opened:
            state, about = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()
        state, what = state_mutation(state, rng)
        try:
            save_file({name: each.contiguous().clone() for name, each in state.items()}, file, about)
        except Exception as error:  # what safetensors does not write is no file that anybody has
            return f"nothing, as safetensors refuses: {error}"
        return what
    if kind == "bytes":
        data, what = bytes_mutation(data, rng)
    elif kind == "length":
        number = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1])
        data, what = struct.pack("<Q", number) + data[8:], f"header length {number}"
    else:
        header = json.loads(data[8 : 8 + length])
        about = header.get("__metadata__", {})
        key = next((key for key, text in about.items() if text.startswith("{")), None)
        if kind == "metadata" and key:
            if rng.random() < 0.2:
                about[key], what = rng.choice(["[" * 100_000, "", "{", "null", "NaN", '{"a":' * 5000]), "other text"
            else:
                value, what = json_mutation(json.loads(about[key]), rng)
                about[key] = json.dumps(value)
        else:
            header, what = json_mutation(header, rng)
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + length :]
    file.write_bytes(data)
    return f"{kind}: {what}"


# Pickles ---------------------------------------------------------------------------------------------------------


def fragments(canary: Path) -> list[bytes]:
    """Opcodes that run code, or ask for much."""
    path = str(canary).encode()
    text = b"X" + struct.pack("<I", len(path)) + path
    code = f"open({str(canary)!r}, 'w')".encode()
    shell = b"X" + struct.pack("<I", len(path) + 6) + b"touch " + path
    return [
        b"cos\nmkdir\n" + text + b"\x85R",
        b"cposix\nsystem\n" + shell + b"\x85R",
        b"cbuiltins\nexec\nX" + struct.pack("<I", len(code)) + code + b"\x85R",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ctorch\nFloatStorage\nJ\0\0\0\x7f\x85R",
        b"c__builtin__\nbytearray\nJ\0\0\0\x7f\x85R",
        b"ccollections\nOrderedDict\n" + text + b"\x85R",
        b"r\xff\xff\xff\x7f",
        b"\x96" + struct.pack("<Q", 2**34),
        b"\x8e" + struct.pack("<Q", 2**40),
        b"\x8b\xff\xff\xff\x7f",
        b"\x95" + struct.pack("<Q", 2**60),
        b")" + b"\x85" * 100_000,
        b"}" + b")" + b"\x85" * 100_000 + b"Ns",
        b"2" * 1000,
        b"]q\0h\0a" * 100,
        b"Q",
        b"R",
        b"b",
        b"0" * 50,
    ]


def pickle_mutation(data: bytes, rng: Random, canary: Path) -> tuple[bytes, str]:
    operations, stream = [], io.BytesIO(data)
    try:
        for _ in range(5):  # before PyTorch 1.6 a file was five pickles, then the data
            operations += [(code.name, argument, place) for code, argument, place in pickletools.genops(stream)]
    except Exception:
        if not operations:
            return bytes_mutation(data, rng)
    places = [place for *_, place in operations] + [operations[-1][2] + 1]
    index = rng.randrange(len(operations))
    start, end = places[index], places[index + 1]
    kind = rng.choice(["insert", "insert", "remove", "repeat", "number", "bytes"])
    if kind == "insert":
        number = rng.randrange(len(fragments(canary)))
        return data[:start] + fragments(canary)[number] + data[start:], f"fragment {number} at {start}"
    if kind == "remove":
        return data[:start] + data[end:], f"without {operations[index][0]} at {start}"
    if kind == "repeat":
        return data[:start] + data[start:end] * 3 + data[end:], f"{operations[index][0]} three times at {start}"
    if kind == "number":
        numbers = [each for each in range(len(operations)) if operations[each][0] in ("BININT", "BININT1", "BININT2")]
        if not numbers:
            return bytes_mutation(data, rng)
        index = rng.choice(numbers)
        value = rng.choice(
            [b"J\xff\xff\xff\x7f", b"J\0\0\0\x80", b"K\0", b"\x8a\x10" + b"\xff" * 15 + b"\0", b"N", b"]"]
        )
        return data[: places[index]] + value + data[places[index + 1] :], f"{value} for {operations[index][1]}"
    return bytes_mutation(data, rng)


OBJECTS = [
    7,
    None,
    "text",
    [1],
    {"a": 1},
    torch.zeros(2).to_sparse(),
    torch.zeros(1).expand(10**9),
    torch.zeros(2, dtype=torch.complex64),
]
KEYS = [7, None, ("a", 1), 2.5, b"x", True, "\ud800"]


def torch_mutation(file: Path, rng: Random, canary: Path) -> str:
    data = file.read_bytes()
    is_zip = data.startswith(b"PK")
    kind = rng.choice(["tensors", "objects", "keys", "pickle", "pickle", "archive", "archive", "bytes"])
    if kind in ("tensors", "objects", "keys"):
        loaded = torch.load(file, weights_only=True)
        state = loaded.get("state_dict", loaded)
        if kind == "tensors":
            state, what = state_mutation(state, rng)
        else:
            state, name = dict(state), rng.choice(list(state))
            if kind == "objects":
                state[name] = what = rng.choice(OBJECTS)
            else:
                what = rng.choice(KEYS)
                state[what] = state.pop(name)
        whole = {**loaded, "state_dict": state} if "state_dict" in loaded else state
        torch.save(
            rng.choice([whole, whole, whole, state, [state], {"state_dict_ema": state}]),
            file,
            _use_new_zipfile_serialization=is_zip,
        )
        return f"{kind}: {str(what)[:100]}"
    if not is_zip or kind == "bytes":
        data, what = (bytes_mutation if kind == "bytes" else lambda *a: pickle_mutation(*a, canary))(data, rng)
        file.write_bytes(data)
        return f"{kind}: {what}"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    main = next(name for name in parts if name.endswith("data.pkl"))
    compression, twice = zipfile.ZIP_STORED, None
    if kind == "pickle":
        parts[main], what = pickle_mutation(parts[main], rng, canary)
    else:
        name, what = (
            rng.choice([*parts, main]),
            rng.choice(["deflate", "remove", "rename", "cut", "grow", "twice", "order"]),
        )
        if what == "deflate":
            compression = zipfile.ZIP_DEFLATED
        elif what == "remove":
            del parts[name]
        elif what == "rename":
            parts[rng.choice([name + "x", "../" + name, "/" + name, "data.pkl", name.upper()])] = parts.pop(name)
        elif what in ("cut", "grow"):
            parts[name] = parts[name][: len(parts[name]) // 2] if what == "cut" else parts[name] + bytes(1000)
        elif what == "order":
            parts[main.replace("data.pkl", "byteorder")] = rng.choice([b"big", b"", b"middle"])
        else:
            twice = name
        what += f" {name}"
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
            if name == twice:
                archive.writestr(name, bytes(len(part)))
    return f"{kind}: {what}"


# Files -----------------------------------------------------------------------------------------------------------
