"""PyTorch files: read as torch.save wrote them, but nothing is made that the file does not hold."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from pixart_core.errors import CheckpointError
from pixart_core.weightfile import open_weights

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
]


def state():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    out = OrderedDict((str(dtype), (torch.rand(3, 5) * 4).to(dtype)) for dtype in DTYPES)
    out |= {
        "view": base[1:3, ::2],
        "turned": base.T,
        "tied": base,
        "number": torch.tensor(3.0),
        "none": torch.empty(0, 4),
    }
    out["parameter"] = torch.nn.Parameter(torch.rand(7))
    out._metadata = {"": {"version": 1}}  # as state_dict() has it
    return out


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_are_those_that_torch_saved(tmp_path, zipped):
    path = tmp_path / "model.pth"
    saved = {
        "state_dict": state(),
        "optimizer": {"state": {0: {"step": torch.tensor(1)}}, "groups": [{"betas": (0, 1)}]},
    }
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    expected, found = saved["state_dict"], open_weights(path).read()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype and tensor.shape == expected[name].shape
        assert tensor.stride() == expected[name].stride() or not tensor.numel()
        assert torch.equal(tensor.float(), expected[name].float()) if tensor.dtype != torch.complex64 else True
    assert found["tied"].untyped_storage().data_ptr() == found["turned"].untyped_storage().data_ptr()


def test_what_is_written_to_a_tensor_stays_in_memory(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pth")
    open_weights(tmp_path / "a.pth").read()["a"].fill_(1)
    assert open_weights(tmp_path / "a.pth").read()["a"].sum() == 0


def archive(path, data, compress=zipfile.ZIP_STORED, **parts):
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("m/data.pkl", data)
        for name, content in parts.items():
            file.writestr(f"m/data/{name[1:]}", content)
    return path


def tensor_pickle(count=4, offset=0, shape=(4,), stride=(1,)):
    """The pickle of {'a': …} as torch.save writes it, with numbers of our own."""

    def number(value):
        data = value.to_bytes(16, "little", signed=True)
        return pickle.LONG1 + bytes([len(data)]) + data

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0" + b"X\x03\0\0\0cpu" + number(count) + b"tQ"
    one = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape) + numbers(stride)
    return b"\x80\x02}(X\x01\0\0\0a" + one + b"\x89N" + b"tRu."


def test_the_crafted_pickle_is_a_good_one(tmp_path):
    path = archive(tmp_path / "a.pth", tensor_pickle(), _0=struct.pack("<4f", 1, 2, 3, 4))
    assert open_weights(path).read()["a"].tolist() == [1, 2, 3, 4]


CLAIMS = {
    "storage": {"count": 2**31},
    "shape": {"shape": (2**31,)},
    "repeated": {"shape": (2**20, 4), "stride": (0, 1)},
    "offset": {"offset": 1},
    "negative offset": {"offset": -1},
    "negative size": {"shape": (-4,)},
    "negative step": {"stride": (-1,)},
    "dimensions": {"shape": (1,) * 99, "stride": (1,) * 99},
    "two lengths": {"stride": (1, 1)},
    "beyond 64 bits": {"shape": (2**70,)},
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_what_a_tensor_claims_has_to_be_there(tmp_path, claim):
    path = archive(tmp_path / "a.pth", tensor_pickle(**claim), _0=bytes(16))
    with pytest.raises(CheckpointError, match=r"a\.pth .* is cut short or damaged"):
        open_weights(path)


BOMBS = {
    "a storage is called": b"\x80\x02ctorch\nFloatStorage\nJ\0\0\0\x7f\x85R.",
    "a bytearray is called": b"\x80\x02c__builtin__\nbytearray\nJ\0\0\0\x7f\x85Rq\x00]h\x00a.",
    "a bytearray of its own opcode": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b".",
    "an index of the memo": b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".",
    "a text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b".",
    "a nested key": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"Ns.",
    "items for a dictionary": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
    "a number is called": b"\x80\x02K\x01)R.",
    "a class of torch": b"\x80\x02ctorch.nn.parameter\nParameter\n)R}b.",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("zipped", [True, False])
def test_small_pickles_that_ask_for_much(tmp_path, data, zipped):
    import tracemalloc

    path = archive(tmp_path / "a.pth", data) if zipped else tmp_path / "a.pth"
    if not zipped:
        path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"a\.pth"):
            open_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 32e6
    finally:
        tracemalloc.stop()


def test_archives_that_are_none_of_torchs(tmp_path):
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    path = archive(tmp_path / "small.pth", tensor_pickle(), zipfile.ZIP_DEFLATED, _0=numbers)
    with pytest.raises(CheckpointError, match=r"small\.pth is a compressed archive.*torch\.save"):
        open_weights(path)
    with zipfile.ZipFile(tmp_path / "twice.pth", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for data in (numbers, bytes(16)):
            file.writestr("m/data/0", data)
        file.writestr("m/data.pkl", tensor_pickle())
    with zipfile.ZipFile(tmp_path / "plain.pth", "w") as file:
        file.writestr("readme.txt", "no weights")
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as file:
        for name, data in (("data.pkl", tensor_pickle()), ("byteorder", b"big"), ("data/0", numbers)):
            file.writestr(f"m/{name}", data)
    for name, words in (("twice", "two parts of one name"), ("plain", "without a data.pkl"), ("big", "big-endian")):
        with pytest.raises(CheckpointError, match=words):
            open_weights(tmp_path / f"{name}.pth")


def test_names_that_are_no_text(tmp_path):
    torch.save({("a", 1): torch.zeros(2)}, tmp_path / "tuple.pth")
    torch.save({7: torch.zeros(2)}, tmp_path / "number.pth")
    with pytest.raises(CheckpointError, match="keys are no names"):
        open_weights(tmp_path / "tuple.pth")
    with pytest.raises(CheckpointError, match="expected named tensors.* found 7"):
        open_weights(tmp_path / "number.pth")
