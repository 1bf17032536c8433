"""Checkpoints: every layout loads strictly as the same model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import pixart_core as pc
from pixart_core import convert, weightfile
from pixart_core.checkpoint import (
    CheckpointError,
    load_controlnet,
    read_pixart,
)
from pixart_core.layers import is_in_stream
from tests.core.checkpoint_fixture import CONFIG, OFFICIAL, ROOT, assert_same, sparse_file


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
