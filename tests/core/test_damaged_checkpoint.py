"""Checkpoints that are cut short, carry code, or are none: each is refused and named, and nothing of it is run."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixart_core as pc
from pixart_core.checkpoint import (
    CheckpointError,
)
from tests.core.checkpoint_fixture import CONFIG, assert_same


def metadata(config=CONFIG):
    return {"pixart_delta": json.dumps({"kind": "pixart", "config": config.to_dict()})}


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.999])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_truncated_files(model, tmp_path, suffix, keep):
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path, metadata())
    os.truncate(path, keep if keep > 1 else int(path.stat().st_size * keep))
    with pytest.raises(CheckpointError, match=rf"cut.{suffix}.*damaged"):
        pc.load_pixart(path, config=CONFIG)


class Payload:
    """Unpickling this would make a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_carries_code_is_refused_unexecuted(model, tmp_path, zipped):
    target = tmp_path / "executed"
    torch.save(
        {"state_dict": model.state_dict(), "extra": Payload(str(target))},
        tmp_path / "evil.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match=r"evil.pth carries code .*\((posix|nt).mkdir\); it was not executed"):
        pc.load_pixart(tmp_path / "evil.pth", config=CONFIG)
    assert not target.exists()


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "is empty: download"),
        (b"<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        (b"some text that is no model", "damaged: .* if it is one of weights at all"),
        (b"\x00" * 200, "damaged: .* if it is one of weights at all"),
        (b"PK\x03\x04" + b"\x00" * 100, "is cut short or damaged"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"model.safetensors.*{message}"):
        pc.inspect_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "value,message",
    [
        ([1, 2], "holds a list, not named weights"),
        ({"epoch": 3}, "holds no state dict.* found epoch"),
        ({}, "found nothing"),
        ({"a": torch.zeros(1), "step": 5}, "found step"),
    ],
)
def test_pickles_without_a_state_dict(tmp_path, value, message):
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        pc.inspect_file(tmp_path / "x.pth")


def test_missing_paths(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.pth does not exist: check the path"):
        pc.load_pixart(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="holds no weights: expected one of diffusion_pytorch_model.safetensors"):
        pc.load_pixart(tmp_path)


def test_missing_shard_and_broken_index(model, tmp_path):
    folder = pc.save_pixart(model, tmp_path / "t", layout="diffusers", max_shard_size=100_000)
    next(folder.glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match="of which these are missing: diffusion_pytorch_model-00002-of"):
        pc.load_pixart(folder)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no index of sharded safetensors"):
        pc.load_pixart(folder)


def test_the_index_decides_between_two_shards_with_one_tensor(model, tmp_path):
    folder = pc.save_pixart(model, tmp_path / "t", layout="diffusers", max_shard_size=100_000)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    places = json.loads(index.read_text())
    name = next(iter(places["weight_map"]))
    used = {places["weight_map"][each] for each in (name, "proj_out.weight")}
    wrong = next(file for file in places["weight_map"].values() if file not in used)
    other = folder / wrong
    state = load_file(other)
    save_file(state | {name: torch.full_like(load_file(folder / places["weight_map"][name])[name], 5.0)}, other)
    assert_same(pc.load_pixart(folder), model)
    places["weight_map"]["proj_out.weight"] = other.name
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointError, match="says that proj_out.weight is in .* two versions"):
        pc.load_pixart(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a\\b", "..", "", "n" * 300, "\0"])
def test_an_index_lists_files_of_its_folder_only(model, tmp_path, name):
    folder = pc.save_pixart(model, tmp_path / "t", layout="diffusers", max_shard_size=100_000)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["proj_out.weight"] = name
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointError, match="index.json lists what is no file of its folder"):
        pc.load_pixart(folder)


def test_broken_descriptions(model, tmp_path):
    folder = pc.save_pixart(model, tmp_path / "t", layout="diffusers")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json is not valid JSON"):
        pc.load_pixart(folder)
    save_file(model.state_dict(), tmp_path / "a.safetensors", {"pixart_delta": "{"})
    with pytest.raises(CheckpointError, match="its metadata key pixart_delta is not valid JSON"):
        pc.load_pixart(tmp_path / "a.safetensors")
    save_file(model.state_dict(), tmp_path / "b.safetensors", {"pixart_delta": '{"config": {"depht": 3}}'})
    with pytest.raises(CheckpointError, match="b.safetensors: unknown PixArt configuration keys: depht"):
        pc.load_pixart(tmp_path / "b.safetensors")
