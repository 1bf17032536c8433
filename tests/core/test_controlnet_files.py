"""Files of ControlNets in every layout, joined, split and of another shape."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pixart_core as pc
from pixart_core import convert
from pixart_core.checkpoint import (
    CheckpointError,
    load_controlnet,
    merge_controlnet,
    read_controlnet,
    save_controlnet,
    split_controlnet,
)
from tests.core.checkpoint_fixture import CONFIG, assert_same, randomized


def contents(path):
    """Metadata and tensors of a safetensors file, byte by byte (the order of its metadata differs from run to run)."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}


def test_controlnet_layouts(model, control, tmp_path):
    joint = tmp_path / "joint.pth"
    state = {f"base_model.{k}": v for k, v in model.state_dict().items()} | dict(control.state_dict())
    torch.save({"state_dict": state}, joint)
    assert pc.inspect_file(joint).kind == "pixart+controlnet"
    files = [
        joint,
        save_controlnet(control, tmp_path / "a.safetensors"),
        save_controlnet(control, tmp_path / "b.safetensors", layout="diffusers"),
        save_controlnet(control, tmp_path / "c.safetensors", base=model),
    ]
    for path in files:
        loaded = load_controlnet(path, config=CONFIG)
        assert_same(loaded, control)
        assert not loaded.training
    for path in files[1:]:
        config, copies, wiring, _ = read_controlnet(path)
        assert (config, copies, wiring) == (CONFIG, 2, "transformer")
    assert load_controlnet(files[1], dtype=torch.bfloat16).controlnet[0].after_proj.weight.dtype == torch.bfloat16
    for path in (files[0], files[3]):
        assert_same(pc.load_pixart(path, config=CONFIG), model)


def test_controlnet_folder_of_diffusers_example(control, tmp_path):
    state = convert.authors_to_diffusers(control.state_dict())
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in state.items()},
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "PixArtControlNetAdapterModel", "num_layers": 2}))
    assert_same(load_controlnet(tmp_path, config=CONFIG), control)
    with pytest.raises(CheckpointError, match="does not say its number of attention heads"):
        load_controlnet(tmp_path)


def test_split_and_merge_are_inverse(model, control, tmp_path):
    joint = save_controlnet(control, tmp_path / "joint.safetensors", base=model)
    base, only = split_controlnet(joint, tmp_path / "base.safetensors", tmp_path / "control.safetensors")
    assert pc.inspect_file(base).kind == "pixart" and pc.inspect_file(only).kind == "controlnet"
    merged = merge_controlnet(base, only, tmp_path / "merged.safetensors")
    assert contents(merged) == contents(joint)
    with pytest.raises(CheckpointError, match="is not a base model and its ControlNet in one file but a PixArt"):
        split_controlnet(base, tmp_path / "x.safetensors", tmp_path / "y.safetensors")


def test_a_controlnet_unet_stays_one_in_every_layout(model, tmp_path):
    config = pc.PixArtConfig(**CONFIG.to_dict() | {"depth": 4})
    base, control = randomized(pc.PixArt(config)), randomized(pc.ControlNetUNet(config), seed=1)
    joint = save_controlnet(control, tmp_path / "joint.safetensors", base=base)
    parts = split_controlnet(joint, tmp_path / "base.safetensors", tmp_path / "control.safetensors")
    files = [
        joint,
        save_controlnet(control, tmp_path / "theirs.safetensors", layout="diffusers"),
        parts[1],
        merge_controlnet(*parts, tmp_path / "merged.safetensors"),
    ]
    for path in files:
        loaded = load_controlnet(path)
        assert type(loaded) is pc.ControlNetUNet and pc.inspect_file(path).wiring == "unet"
        assert_same(loaded, control)
    with pytest.raises(CheckpointError, match="ControlNet of 2 blocks does not fit a base model of depth 3"):
        load_controlnet(parts[1], config=CONFIG)
    with pytest.raises(CheckpointError, match="first half of the base's blocks"):
        save_controlnet(
            pc.ControlNetTransformer(config, 3).state_dict(), tmp_path / "x.safetensors", config=config, wiring="unet"
        )
    save_file(
        load_file(parts[1]),
        tmp_path / "new.safetensors",
        {"pixart_delta": json.dumps({"config": config.to_dict(), "wiring": "ring"})},
    )
    with pytest.raises(CheckpointError, match="unknown wiring 'ring'"):
        load_controlnet(tmp_path / "new.safetensors")


def test_controlnet_of_another_shape(control, tmp_path):
    path = save_controlnet(control, tmp_path / "control.safetensors")
    wide = pc.PixArtConfig(**CONFIG.to_dict() | {"hidden_size": 96})
    with pytest.raises(CheckpointError, match="does not fit a PixArt ControlNet of 2 blocks of hidden size 96"):
        load_controlnet(path, config=wide)
    shallow = pc.PixArtConfig(**CONFIG.to_dict() | {"depth": 2})
    with pytest.raises(CheckpointError, match="2 blocks does not fit a base model of depth 2: .* depth - 1 = 1"):
        load_controlnet(path, config=shallow)
    base = pc.save_pixart(randomized(pc.PixArt(wide)), tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match="hidden size 96"):
        merge_controlnet(base, path, tmp_path / "joint.safetensors")
    state = dict(control.state_dict())
    state.pop("controlnet.1.after_proj.bias")
    with pytest.raises(CheckpointError, match="it lacks controlnet.1.after_proj.bias"):
        save_controlnet(state, tmp_path / "x.safetensors", config=CONFIG)
