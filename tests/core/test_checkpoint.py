"""Checkpoints: every layout loads strictly as the same model; every other file is named; saving is atomic."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pixart_core as pc
from pixart_core import convert, saving, weightfile
from pixart_core.checkpoint import (
    CheckpointError,
    load_controlnet,
    merge_controlnet,
    read_controlnet,
    read_pixart,
    save_controlnet,
    split_controlnet,
)
from pixart_core.layers import is_in_stream
from tests.core.checkpoint_fixture import CONFIG, OFFICIAL, ROOT, assert_same, randomized, sparse_file


def contents(path):
    """Metadata and tensors of a safetensors file, byte by byte (the order of its metadata differs from run to run)."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}


def metadata(config=CONFIG):
    return {"pixart_delta": json.dumps({"kind": "pixart", "config": config.to_dict()})}


# Layouts ---------------------------------------------------------------------------------------------------------

PICKLES = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
    "state_dict_ema": lambda state: {"state_dict_ema": state, "epoch": 3},
    "bare": lambda state: state,
    "distributed": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("wrap", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("zipped", [True, False])
def test_authors_pth(model, tmp_path, wrap, zipped):
    path = tmp_path / "model.pth"
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
    assert_same(pc.load_pixart(path, config=CONFIG), model)


def test_state_dict_is_preferred_to_its_average(model, tmp_path):
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({"state_dict_ema": other, "state_dict": model.state_dict()}, tmp_path / "both.pth")
    assert_same(pc.load_pixart(tmp_path / "both.pth", config=CONFIG), model)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model.", "transformer."])
def test_prefixed_safetensors(model, tmp_path, prefix):
    path = tmp_path / "model.safetensors"
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    if "diffusion_model." in prefix:  # ComfyUI's Save Checkpoint puts everything into one file
        state |= {
            "first_stage_model.decoder.conv_in.weight": torch.zeros(1),
            "text_encoders.t5xxl.transformer.shared.weight": torch.zeros(1),
        }
    save_file(state, path, metadata())
    assert pc.inspect_file(path).layout == ("comfyui" if "diffusion_model." in prefix else "authors")
    assert_same(pc.load_pixart(path), model)


@pytest.mark.parametrize("max_shard_size", [None, 100_000])
def test_diffusers_folder_file_and_shards(model, tmp_path, max_shard_size):
    folder = pc.save_pixart(model, tmp_path / "transformer", layout="diffusers", max_shard_size=max_shard_size)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert (len(files) > 2) == (max_shard_size is not None)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    assert index.exists() == (max_shard_size is not None)
    for path in [folder, folder / files[0], folder / files[-1], *([index] if index.exists() else [])]:
        info = pc.inspect_file(path)
        assert (info.kind, info.layout, info.config) == ("pixart", "diffusers", CONFIG)
        assert_same(pc.load_pixart(path), model)


def test_pipeline_folder(model, tmp_path):
    pc.save_pixart(model, tmp_path / "transformer", layout="diffusers")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    assert_same(pc.load_pixart(tmp_path), model)


@pytest.mark.parametrize("part", ["transformer", "."])
def test_a_folder_without_its_weights(model, tmp_path, part):
    folder = pc.save_pixart(model, tmp_path / part, layout="diffusers")
    (tmp_path / "model_index.json").write_text("{}")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights: expected one of"):
        pc.load_pixart(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_what_diffusers_itself_saves(tmp_path, sharded):
    """No metadata of ours, no null caption: config.json says the rest."""
    from diffusers import PixArtTransformer2DModel

    theirs = PixArtTransformer2DModel.from_config(convert.config_to_diffusers(CONFIG))
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if sharded else "10GB")
    config, state = read_pixart(tmp_path)
    assert config == pc.PixArtConfig(**CONFIG.to_dict() | {"model_max_length": 120})
    back = convert.authors_to_diffusers(state)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    loaded = pc.load_pixart(tmp_path)
    assert loaded.y_embedder.y_embedding is None
    torch.testing.assert_close(loaded.pos_embed, convert.position_buffer(CONFIG))


@pytest.mark.parametrize("max_shard_size", [None, 100_000])
def test_diffusers_loads_what_we_save(model, tmp_path, max_shard_size):
    from diffusers import PixArtTransformer2DModel

    folder = pc.save_pixart(model, tmp_path / "t", layout="diffusers", max_shard_size=max_shard_size)
    theirs, report = PixArtTransformer2DModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert report["unexpected_keys"] == ["caption_projection.y_embedding"]
    expected = convert.authors_to_diffusers(model.state_dict())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in theirs.state_dict().items())


def test_converted_there_and_back_is_the_same_file(model, tmp_path):
    first = pc.save_pixart(model, tmp_path / "a.safetensors")
    folder = pc.save_pixart(pc.load_pixart(first), tmp_path / "folder", layout="diffusers")
    last = pc.save_pixart(pc.load_pixart(folder), tmp_path / "b.safetensors")
    assert contents(first) == contents(last)


def test_files_of_early_diffusers_keep_their_buffers(model, tmp_path):
    state = convert.authors_to_diffusers(model.state_dict()) | {"pos_embed.pos_embed": model.pos_embed}
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors", metadata())
    assert_same(pc.load_pixart(tmp_path / "model.safetensors"), model)


# Precision, device, memory ---------------------------------------------------------------------------------------


def test_dtype_is_the_files_unless_asked(model, tmp_path):
    path = pc.save_pixart(model, tmp_path / "half.safetensors", dtype=torch.float16, metadata={"distilled": True})
    info = pc.inspect_file(path)
    assert info.dtype == torch.float16 and info.metadata["distilled"] is True
    for name, tensor in pc.load_pixart(path).state_dict().items():
        assert tensor.dtype == (torch.float32 if is_in_stream(name) else torch.float16)
    loaded = pc.load_pixart(path, dtype=torch.bfloat16).state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor.half().float() if is_in_stream(name) else tensor.half().bfloat16()
        assert torch.equal(loaded[name], expected) and loaded[name].dtype == expected.dtype


def test_half_precision_keeps_the_stream_as_the_file_has_it(model, tmp_path):
    """What is at the ends of the token stream is float32, and never went through half precision on the way."""
    path = pc.save_pixart(model, tmp_path / "full.safetensors")
    loaded = pc.load_pixart(path, dtype=torch.bfloat16)
    kept = {name for name, tensor in loaded.state_dict().items() if tensor.dtype == torch.float32}
    assert kept == {name for name in model.state_dict() if is_in_stream(name)}
    assert {"final_layer.linear.weight", "t_block.1.bias", "blocks.0.scale_shift_table"} <= kept
    assert all(torch.equal(loaded.state_dict()[name], model.state_dict()[name]) for name in kept)
    # A file that was saved from it says what it is: half, and not the few float32 modules.
    again = pc.load_pixart(pc.save_pixart(loaded, tmp_path / "mixed.safetensors"))
    assert again.product_dtype == torch.bfloat16 and again.stream_dtype() == torch.float32


def test_mixed_precision_files_become_the_widest_and_float8_bfloat16(model, tmp_path):
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].float()
    save_file(state, tmp_path / "mixed.safetensors", metadata())
    assert {t.dtype for t in pc.load_pixart(tmp_path / "mixed.safetensors").state_dict().values()} == {torch.float32}
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()},
        tmp_path / "f8.safetensors",
        metadata(),
    )
    loaded = pc.load_pixart(tmp_path / "f8.safetensors").state_dict()
    assert {tensor.dtype for name, tensor in loaded.items() if not is_in_stream(name)} == {torch.bfloat16}


def mapped_files():
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc")
    return maps.read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_weights_stay_in_the_mapped_file_and_casts_let_go_of_it(model, tmp_path, name):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path, metadata())
    loaded = pc.load_pixart(path, config=CONFIG)
    assert str(path) in mapped_files()
    with torch.no_grad():  # the mapping is private: training in place never reaches the file
        loaded.blocks[0].mlp.fc1.weight.zero_()
    del loaded
    assert str(path) not in mapped_files()
    cast = pc.load_pixart(path, dtype=torch.bfloat16, config=CONFIG)
    assert str(path) not in mapped_files() and cast.pos_embed.dtype == torch.bfloat16
    assert_same(pc.load_pixart(path, config=CONFIG), model)


def test_cast_in_many_chunks(model, tmp_path, monkeypatch):
    monkeypatch.setattr(weightfile, "CHUNK_BYTES", 20_000)
    folder = pc.save_pixart(model, tmp_path / "t", layout="diffusers", max_shard_size=100_000)
    loaded = pc.load_pixart(folder, dtype=torch.float64)
    assert all(torch.equal(tensor, model.state_dict()[name].double()) for name, tensor in loaded.state_dict().items())


def test_loaded_models_can_be_trained(model, tmp_path):
    loaded = pc.load_pixart(pc.save_pixart(model, tmp_path / "model.safetensors"))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    loaded(torch.randn(1, 4, 8, 8), torch.tensor([9]), torch.randn(1, 3, 16)).sum().backward()
    assert loaded.blocks[0].attn.qkv.weight.grad is not None


# Strictness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,problem",
    [
        (lambda s: s.pop("blocks.2.mlp.fc1.bias"), "it lacks blocks.2.mlp.fc1.bias"),
        (lambda s: s.update({"blocks.0.extra": torch.zeros(1)}), "it has unknown blocks.0.extra"),
        (
            lambda s: s.update({"blocks.0.mlp.fc1.bias": torch.zeros(3)}),
            r"blocks.0.mlp.fc1.bias is \[3\] instead of .192",
        ),
        (lambda s: s.update({"blocks.3.mlp.fc1.bias": torch.zeros(192)}), "it has unknown blocks.3.mlp.fc1.bias"),
    ],
)
def test_every_tensor_has_to_fit(model, tmp_path, change, problem):
    state = dict(model.state_dict())
    change(state)
    save_file(state, tmp_path / "wrong.safetensors", metadata())
    with pytest.raises(CheckpointError, match=rf"wrong.safetensors does not fit .* depth 3: {problem}"):
        pc.load_pixart(tmp_path / "wrong.safetensors")


def test_a_released_model_with_a_tensor_missing_says_which(tmp_path):
    shapes = dict(OFFICIAL["PixArt-XL-2-1024-MS"])
    del shapes["blocks.5.attn.qkv.weight"]
    with pytest.raises(CheckpointError, match="hidden size 1152, depth 28: it lacks blocks.5.attn.qkv.weight"):
        pc.load_pixart(sparse_file(tmp_path / "gap.safetensors", shapes))


def test_prefixed_file_with_strangers(model, tmp_path):
    state = {f"diffusion_model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(state | {"stranger": torch.zeros(1)}, tmp_path / "x.safetensors", metadata())
    with pytest.raises(CheckpointError, match="tensors that do not belong to one: stranger"):
        pc.load_pixart(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_weights(model, tmp_path, value, dtype):
    state = {name: tensor.clone().to(dtype) for name, tensor in model.state_dict().items()}
    state["blocks.1.mlp.fc2.weight"][5, 7] = value
    save_file(state, tmp_path / "nan.safetensors", metadata())
    with pytest.raises(CheckpointError, match=r"nan.safetensors holds NaN or infinite .*\(blocks.1.mlp.fc2.weight\)"):
        pc.load_pixart(tmp_path / "nan.safetensors")


def test_weights_too_large_for_float16(model, tmp_path):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["t_block.1.bias"][0] = 1e6  # float32 in every model
    path = tmp_path / "large.safetensors"
    save_file(state, path, metadata())
    assert pc.load_pixart(path, dtype=torch.float16).t_block[1].bias[0] == 1e6
    state["blocks.1.attn.qkv.bias"][0] = 1e6
    save_file(state, path, metadata())
    pc.load_pixart(path)
    with pytest.raises(CheckpointError, match=r"infinite weights \(blocks.1.attn.qkv.bias\).* cast to float16"):
        pc.load_pixart(path, dtype=torch.float16)


# Damaged files ---------------------------------------------------------------------------------------------------


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


# Saving ----------------------------------------------------------------------------------------------------------


def test_saved_file_describes_itself_and_can_be_read_by_others(model, tmp_path):
    path = pc.save_pixart(model, tmp_path / "model.safetensors", metadata={"trained": "12 steps"})
    info = pc.inspect_file(path)
    assert info.config == CONFIG
    assert info.metadata["trained"] == "12 steps"
    assert info.parameters > 0
    assert load_file(path).keys() == model.state_dict().keys()
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_state_dicts_are_saved_with_their_configuration(model, tmp_path):
    path = pc.save_pixart(model.state_dict(), tmp_path / "model.safetensors", config=CONFIG)
    assert_same(pc.load_pixart(path), model)
    with pytest.raises(CheckpointError, match="needs its configuration: give config="):
        pc.save_pixart(model.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit .* it lacks t_block.1.bias"):
        pc.save_pixart(
            {k: v for k, v in model.state_dict().items() if k != "t_block.1.bias"},
            tmp_path / "other.safetensors",
            config=CONFIG,
        )
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
    "name,layout,message",
    [
        ("model.pth", "authors", "let it end in .safetensors"),
        ("no/m.safetensors", "authors", "folder .* does not exist"),
        ("m.safetensors", "diffusers", "diffusers layout is a folder"),
        ("m", "onnx", "unknown layout 'onnx'"),
    ],
)
def test_bad_destinations(model, tmp_path, name, layout, message):
    with pytest.raises(CheckpointError, match=message):
        pc.save_pixart(model, tmp_path / name, layout=layout)
    assert not list(tmp_path.rglob("*"))


def test_disk_that_is_too_small_is_seen_before_writing(model, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="takes 0.00 GB, but only 0.00 GB are free there"):
        pc.save_pixart(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
def test_disk_that_fills_up_leaves_the_old_file(model, tmp_path):
    """A real write error half-way, by the system's limit on file sizes, in a process of its own."""
    path = pc.save_pixart(model, tmp_path / "model.safetensors")
    before = path.read_bytes()
    script = textwrap.dedent(f"""
        import resource, pixart_core as pc
        from pixart_core.checkpoint import CheckpointError
        model = pc.load_pixart({str(path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            pc.save_pixart(model, {str(path)!r})
        except CheckpointError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "could not write" in done.stdout and "File too large" in done.stdout, done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"] and path.read_bytes() == before


def test_saving_over_the_file_that_is_mapped(model, tmp_path):
    path = pc.save_pixart(model, tmp_path / "model.safetensors")
    loaded = pc.load_pixart(path)
    with torch.no_grad():
        loaded.blocks[0].mlp.fc1.bias.add_(1)
    pc.save_pixart(loaded, path)
    assert_same(pc.load_pixart(path), loaded)


# ControlNet ------------------------------------------------------------------------------------------------------


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


def test_a_pickle_by_the_name_of_safetensors(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.safetensors")
    assert_same(pc.load_pixart(tmp_path / "model.safetensors", config=CONFIG), model)


PREFIXES = ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "ema.", "student.", "generator.model.net.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_found(model, control, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state | {"n_averaged": torch.tensor(3)}, "epoch": 1}, tmp_path / "m.ckpt")
    assert_same(pc.load_pixart(tmp_path / "m.ckpt", config=CONFIG), model)
    torch.save({prefix + name: tensor for name, tensor in control.state_dict().items()}, tmp_path / "c.pt")
    assert_same(load_controlnet(tmp_path / "c.pt", config=CONFIG), control)


def test_wrappers_inside_of_names(model, tmp_path):
    wrapped = {
        name.replace("blocks.1.", "blocks.1._orig_mod.").replace("mlp.", "_checkpoint_wrapped_module.mlp."): tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(wrapped, tmp_path / "m.pth")
    assert_same(pc.load_pixart(tmp_path / "m.pth", config=CONFIG), model)


def test_entries_of_a_training_file_and_other_components(model, tmp_path, caplog):
    state = dict(model.state_dict())
    torch.save({"net": state, "discriminator": {"head.weight": torch.ones(2)}, "step": 3}, tmp_path / "m.pt")
    assert_same(pc.load_pixart(tmp_path / "m.pt", config=CONFIG), model)
    assert "the transformer is taken; left out are discriminator.head.weight" in caplog.text
    torch.save({"student": state, "teacher": state}, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match="several PixArt transformers, under student., teacher.: which is meant"):
        pc.load_pixart(tmp_path / "both.pt", config=CONFIG)


def test_the_bundled_model_is_known_by_its_shapes(tmp_path):
    """As ComfyUI's ModelSave writes it: without a word of its configuration."""
    expected = pc.load_pixart(ROOT / "models" / "nano" / "transformer")
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in expected.state_dict().items()}
    save_file(state, tmp_path / "saved.safetensors")
    loaded = pc.load_pixart(tmp_path / "saved.safetensors")
    assert_same(loaded, expected)
    assert loaded.config == expected.config


@pytest.mark.parametrize("layout", ["authors", "diffusers"])
def test_a_config_beside_a_renamed_file_is_read_if_it_fits(model, tmp_path, layout):
    state = model.state_dict() if layout == "authors" else convert.authors_to_diffusers(model.state_dict())
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "step3000.safetensors")
    description = convert.config_to_diffusers(CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(description | {"num_layers": 9}))
    with pytest.raises(CheckpointError, match="config.json .of the same shape. beside it, or .* Save Checkpoint"):
        pc.load_pixart(tmp_path / "step3000.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(description))
    assert pc.load_pixart(tmp_path / "step3000.safetensors").config == CONFIG
