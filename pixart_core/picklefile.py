"""PyTorch's own files (.pth, .bin, .ckpt), read as a list of tensors and where their bytes lie, then mapped.

torch.load(weights_only=True) runs nothing, but makes whatever a pickle asks for before anyone can look at it: storages
of 8 GB from 41 bytes. Here a pickle can only describe: nothing of it is called, names and sizes are known before a
tensor is made, and what does not lie inside the file is refused. Both formats are read: the zip archives of PyTorch
since 1.6, and the pickles one after another before that.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import IO, Any, ClassVar, Protocol

import torch
from torch import Tensor

from .errors import CheckpointError, damaged

_MAX_PICKLE_BYTES = 16 * 2**20
"""Largest size of the pickle alone; that of a training file of 28 blocks with its optimizer has 0.5 MB."""
_MAX_DIMENSIONS = 16
_MAGIC = 0x1950A86A20F9469CFC6C  # what files before PyTorch 1.6 begin with


class _Readable(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


@dataclass
class _Storage:
    """Bytes that tensors are views of."""

    key: str
    dtype: torch.dtype
    nbytes: int
    start: int = -1
    """Where they begin in the file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been made."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    """In numbers, from the storage's beginning."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype | None
    """None: bytes, whose meaning the tensor tells."""


class _Other:
    """Stands for whatever is no tensor and is never looked at."""


def _other(*_: Any) -> _Other:
    return _Other()


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None
) -> StoredTensor:
    """torch._utils._rebuild_tensor and _v2, described. Every number has to have a place of its own in the storage."""
    dtype = dtype or storage.dtype
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) != len(stride):
        raise ValueError("a tensor of impossible shape")
    count = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else -1
    if len(shape) > _MAX_DIMENSIONS or max(last + 1, count) * dtype.itemsize > storage.nbytes:
        raise ValueError("a tensor that is larger than its data")
    return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _tensor_v3(*arguments: Any) -> StoredTensor:
    return _tensor(*arguments[:4], dtype=arguments[6])


def _same(value: Any, *_: Any) -> Any:
    return value


def _from_type(function: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    return _call(function, arguments)


def _call(function: Any, arguments: Any) -> Any:
    if type(function) is not FunctionType:  # all that find_class gives out are this module's
        raise ValueError("something that is no function is called")
    return function(*arguments)


def _dict(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an OrderedDict that is not made item by item")
    return OrderedDict()


_FUNCTIONS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "collections.OrderedDict": _dict,
}
# What else torch.load(weights_only=True) lets pass and trainers keep beside the weights.
_OTHERS = {
    "torch.Size",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "collections.Counter",
    "_codecs.encode",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "complex", "bytearray")),
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.UntypedStorage": None,
    "torch.storage.UntypedStorage": None,
}
_SIMPLE = (str, int, float, bool, bytes, type(None))


class _Unpickler(pickle._Unpickler):
    """The standard library's own, in Python, without what it could do: import, call, set attributes.

    The one in C would be quicker, but keeps its memo in an array as long as the largest index that a file claims.
    """

    # Of the base class, whose published types leave them out.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]]

    def __init__(self, stream: _Readable, storages: dict[str, _Storage]):
        super().__init__(stream, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in _FUNCTIONS:
            return _FUNCTIONS[path]
        if path in _STORAGES:
            return _StorageType(_STORAGES[path])
        if path in _OTHERS:
            return _other
        if path in _DTYPES:
            return _DTYPES[path]
        raise _CarriesCode(path)

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, count, *_ = pid
        if type(count) is not int or count < 0 or not isinstance(kind, _StorageType):
            raise ValueError("a storage of impossible size")
        dtype = kind.dtype or torch.uint8
        storage = _Storage(str(key), dtype, count * dtype.itemsize)
        return self._storages.setdefault(storage.key, storage)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def _build(self) -> None:
        self.stack.pop()  # attributes, such as the `_metadata` of a state dict

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._set(items[::2], items[1::2])

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key], [value])

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items[::2], items[1::2])

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        # Hashing a tuple nested 10⁶ deep, as a key, would overflow the stack; so would asking other objects.
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, _SIMPLE) for key in keys):
            raise ValueError("a mapping whose keys are no names")
        self.stack[-1].update(zip(keys, values, strict=True))

    _kept = (
        "PROTO FRAME MARK STOP POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
        "BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
        "EMPTY_LIST EMPTY_DICT EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 LIST APPEND APPENDS BINPUT LONG_BINPUT BINGET "
        "LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL BINPERSID"
    )
    dispatch = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _kept.split())
    } | {
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
    }


class _CarriesCode(Exception):
    """Its text is the name of what a pickle wanted to import."""


class _Limited:
    """As many bytes of a stream as a pickle may have."""

    def __init__(self, stream: _Readable):
        self._stream, self._left = stream, _MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        return self._take(self._stream.read(min(count, self._left + 1)))

    def readline(self) -> bytes:
        return self._take(self._stream.readline())

    def _take(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"a pickle of more than {_MAX_PICKLE_BYTES:,} bytes")
        return data


def read_pickle(file: Path) -> Any:
    """What a PyTorch file holds, with a `StoredTensor` for every tensor. Nothing is run, made or mapped.

    Raises:
        CheckpointError: if it is damaged, compressed, carries code, or claims more than it holds.
    """
    with open(file, "rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
        try:
            return (_read_zip if is_zip else _read_legacy)(file, stream)
        except _CarriesCode as error:
            raise CheckpointError(
                f"{file} carries code or objects other than weights ({error}); it was not executed. "
                "Take the safetensors version, or have whoever made the file save its state_dict only"
            ) from None
        # Whatever a program of opcodes, written by anybody, can do to the few types above.
        except (
            *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError),
            *(AssertionError, RecursionError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile),
            OSError,  # zipfile's, for a place before the file's beginning
        ) as error:
            if isinstance(error, CheckpointError):
                raise
            hint = "" if is_zip else ", if it is one of weights at all: expected safetensors or a PyTorch .pth"
            text = (str(error) or type(error).__name__).splitlines()[0]
            if isinstance(error, KeyError) and isinstance(error.args[0], int):  # the byte alone says nothing to anybody
                text = "it holds what is no instruction of a pickle"
            raise damaged(file, f"{hint} [{text[:200]}]") from error


def _read_zip(file: Path, stream: IO[bytes]) -> Any:
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise ValueError("it holds two parts of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise CheckpointError(
                f"{file} is a compressed archive, which cannot be mapped: unpack it if it was zipped, or save it again "
                "with torch.save, which does not compress"
            )
        main = next((name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if main is None:
            raise ValueError("it is an archive without a data.pkl")
        root = main.removesuffix("data.pkl")
        if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
            raise CheckpointError(f"{file} was written on a big-endian machine: take the safetensors version")
        if entries[main].file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"a pickle of more than {_MAX_PICKLE_BYTES:,} bytes")
        storages: dict[str, _Storage] = {}
        loaded = _Unpickler(io.BytesIO(archive.read(main)), storages).load()
        for storage in storages.values():
            entry = entries[f"{root}data/{storage.key}"]
            if entry.file_size < storage.nbytes:
                raise ValueError(f"a storage of {storage.nbytes:,} bytes of which {entry.file_size:,} are there")
            storage.start = _data_start(stream, entry)
    _require_room(file, storages.values())
    return loaded


def _data_start(stream: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind its own header, whose last field may be longer than the directory's."""
    stream.seek(entry.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError("its directory is wrong")
    name, extra = struct.unpack("<HH", header[26:30])
    return entry.header_offset + 30 + int(name) + int(extra)


def _read_legacy(file: Path, stream: IO[bytes]) -> Any:
    stream.seek(0)
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:  # whose `read` makes no more than there is
        storages: dict[str, _Storage] = {}
        if _Unpickler(_Limited(view), {}).load() != _MAGIC:
            raise ValueError("its first number is not PyTorch's")
        _, system = _Unpickler(_Limited(view), {}).load(), _Unpickler(_Limited(view), {}).load()
        if not system["little_endian"]:
            raise CheckpointError(f"{file} was written on a big-endian machine: take the safetensors version")
        loaded, keys = _Unpickler(_Limited(view), storages).load(), _Unpickler(_Limited(view), {}).load()
        for key in keys:
            storage = storages[str(key)]
            (count,) = struct.unpack("<q", view.read(8))
            if count * storage.dtype.itemsize != storage.nbytes or storage.start >= 0:
                raise ValueError("a storage of two sizes")
            storage.start = view.tell()
            view.seek(storage.start + storage.nbytes)
    _require_room(file, storages.values())
    return loaded


def _require_room(file: Path, storages: Iterable[_Storage]) -> None:
    """All storages lie in the file, and are together no larger: none is counted twice."""
    size, total = file.stat().st_size, 0
    for storage in storages:
        total += storage.nbytes
        if storage.start < 0 or storage.start + storage.nbytes > size or total > size:
            raise ValueError("its tensors are larger than itself")


def map_tensors(file: Path, wanted: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Make tensors that are the mapped file itself; what is written to them stays in memory."""
    with open(file, "rb") as stream:
        buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    stores: dict[tuple[str, torch.dtype], Tensor] = {}
    out = {}
    for name, stored in wanted.items():
        place, count = stored.storage, stored.storage.nbytes // stored.dtype.itemsize
        if not count:
            out[name] = torch.empty(stored.shape, dtype=stored.dtype)
            continue
        key = (place.key, stored.dtype)
        if key not in stores:
            data = torch.frombuffer(buffer, dtype=stored.dtype, count=count, offset=place.start)
            # Files before PyTorch 1.6 put data anywhere; products want numbers where the processor wants them.
            stores[key] = data.clone() if place.start % stored.dtype.itemsize else data
        out[name] = stores[key].as_strided(stored.shape, stored.stride, stored.offset)
    return out
