"""What people do wrong in a graph: each time one clear error at the node that is at fault, and the next run works."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixart_core as pc
from pixart_core.checkpoint import save_pixart
from tests.fixtures_nano import make_nano_folder
from tests.nodes.graphs import ksampler, node, pictures, text_to_image


@pytest.fixture(scope="session")
def family(comfy_server):
    return make_nano_folder(comfy_server.base / "models" / "pixart_delta" / "nano")


@pytest.fixture(scope="session")
def files(comfy_server, family):
    """One file of every kind under every folder that a loader lists, and damaged ones."""
    models = comfy_server.base / "models"
    places = [models / name for name in ("diffusion_models", "text_encoders", "vae", "loras")]
    transformer = load_file(family / "base" / "pixart_nano_base.safetensors")
    kinds = {
        "a_transformer": family / "base" / "pixart_nano_base.safetensors",
        "a_t5": family / "text_encoder" / "model.safetensors",
        "a_vae": family / "vae" / "diffusion_pytorch_model.safetensors",
    }
    for place in places:
        place.mkdir(exist_ok=True)
        for name, path in kinds.items():
            shutil.copy(path, place / f"{name}.safetensors")
        save_file(
            {
                "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 48),
                "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.zeros(48, 2),
            },
            place / "a_lora.safetensors",
        )
        save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 3)}, place / "a_flux.safetensors")
        (place / "cut.safetensors").write_bytes(kinds["a_transformer"].read_bytes()[:20000])
        (place / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>log in</html>")
    sigma = dict(transformer)
    sigma["y_embedder.y_embedding"] = torch.zeros(300, 64)
    save_file(sigma, models / "diffusion_models" / "a_sigma.safetensors")
    name = "blocks.1.mlp.fc1.weight"
    nan = {**transformer, name: torch.full_like(transformer[name], float("nan"))}
    config = pc.inspect_file(kinds["a_transformer"]).config
    save_pixart(nan, models / "diffusion_models" / "nan.safetensors", config=config)
    torch.save({"state_dict": {"weight": torch.zeros(1), "trap": Code()}}, models / "diffusion_models" / "code.pth")
    return models


class Code:
    """Would make a file if it were executed."""

    def __reduce__(self):
        return (open, ("code_was_executed", "w"))


LOADERS = {
    "model": ("PixArtDeltaModelLoader", "model_name", {"dtype": "default"}),
    "clip": ("PixArtDeltaTextEncoderLoader", "text_encoder_name", {"quantization": "none"}),
    "vae": ("PixArtDeltaVAELoader", "vae_name", {}),
}


def error_of(comfy_server, changes: dict, **options) -> str:
    """The error of a graph, which must name the node that is at fault; the server must go on working."""
    result = comfy_server.prompt(text_to_image(changes=changes, **options))
    assert len(result.errors) == 1 and not result.images, result.errors
    assert len(pictures(comfy_server.prompt(text_to_image(seed=torch.seed() % 10**9)))) == 1
    return result.errors[0]


@pytest.mark.parametrize(
    ("loader", "file", "words"),
    [
        ("model", "a_t5", "a T5 text encoder"),
        ("model", "a_vae", "an autoencoder"),
        ("model", "a_lora", "PixArt-δ LoRA Loader"),
        ("model", "a_sigma", "PixArt-Σ"),
        ("model", "a_flux", "another family"),
        ("model", "cut", "cut short or damaged"),
        ("model", "page", "web page"),
        ("model", "nan", "NaN or infinite"),
        ("clip", "a_transformer", "PixArt-δ Model Loader"),
        ("clip", "a_vae", "an autoencoder"),
        ("clip", "a_lora", "a LoRA"),
        ("clip", "a_t5", "no tokenizer"),
        ("clip", "cut", "cut short or damaged"),
        ("vae", "a_transformer", "PixArt-δ Model Loader"),
        ("vae", "a_t5", "a T5 text encoder"),
        ("vae", "a_lora", "a LoRA"),
        ("vae", "cut", "cut short or damaged"),
    ],
)
def test_wrong_and_damaged_files(comfy_server, family, files, loader, file, words):
    class_type, name, more = LOADERS[loader]
    error = error_of(comfy_server, {loader: node(class_type, **{name: f"{file}.safetensors"}, **more)})
    assert error.startswith(f"{class_type} (node {loader}): ")
    assert words in error
    assert file in error


@pytest.mark.parametrize(
    ("file", "words"), [("a_transformer", "not a LoRA"), ("a_t5", "not a LoRA"), ("cut", "damaged")]
)
def test_wrong_files_as_lora(comfy_server, family, files, file, words):
    assert words in error_of(comfy_server, with_lora(f"{file}.safetensors"))


def with_lora(name: str) -> dict:
    return {
        "plain": text_to_image()["model"],
        "model": node("PixArtDeltaLoraLoader", model=["plain", 0], lora_name=name, strength=1.0),
    }


def test_a_lora_of_another_width(comfy_server, family, files):
    save_file(
        {
            "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 1152),
            "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.zeros(1152, 2),
        },
        files / "loras" / "wide.safetensors",
    )
    assert "does not fit this PixArt model" in error_of(comfy_server, with_lora("wide.safetensors"))


def test_a_pickle_with_code_is_not_executed(comfy_server, family, files):
    error = error_of(comfy_server, {"model": node("PixArtDeltaModelLoader", model_name="code.pth", dtype="default")})
    assert "code" in error and "not executed" in error
    assert not list(comfy_server.base.rglob("code_was_executed"))


def test_a_file_that_went_away(comfy_server, family):
    """ComfyUI checks names against the list when it gets the graph."""
    result = comfy_server.prompt(
        text_to_image(changes={"model": node("PixArtDeltaModelLoader", model_name="gone.safetensors", dtype="default")})
    )
    assert result.prompt_id is None and "model_name" in result.errors[0]


def latent(channels: int, width: int = 16) -> dict:
    return {
        "size": node("PixArtDeltaResolution", width=128, height=128, bins="off", batch_size=1),
        "start": node(
            "EmptySD3LatentImage" if channels == 16 else "EmptyLatentImage", width=width * 8, height=128, batch_size=1
        ),
    }


def test_a_latent_with_16_channels(comfy_server, family):
    """A picture of another autoencoder is refused; another model's empty latent is mended, as in KSampler."""
    sample = text_to_image()["sample"]
    sample["inputs"]["latent_image"] = ["start", 0]
    values = {"latent_tensor": torch.ones(1, 16, 16, 16), "latent_format_version_0": torch.tensor([])}
    save_file(values, comfy_server.base / "input" / "sixteen.latent")
    picture = latent(16) | {"start": node("LoadLatent", latent="sixteen.latent"), "sample": sample}
    error = error_of(comfy_server, picture)
    assert "(1, 16, 16, 16)" in error
    assert "PixArt-δ Resolution" in error
    assert "(node sample)" in error
    assert pictures(comfy_server.prompt(text_to_image(changes=latent(16) | {"sample": sample})))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("width", 100, "must be a multiple of 8: try 96"), ("height", 130, "must be a multiple of 8: try 128")],
)
def test_a_size_that_is_no_multiple_of_8(comfy_server, family, name, value, words):
    error = error_of(comfy_server, {}, **{name: value})
    assert "(node size)" in error and words in error


def test_the_smallest_size(comfy_server, family):
    assert pictures(comfy_server.prompt(text_to_image(width=8, height=8)))[0].shape == (8, 8, 3)


@pytest.mark.parametrize("steps", [0, 9])
def test_steps_outside_1_to_8(comfy_server, family, steps):
    result = comfy_server.prompt(text_to_image(steps=steps))
    assert result.prompt_id is None and "steps" in result.errors[0]


def test_denoise_too_low_for_the_steps(comfy_server, family):
    sample = text_to_image(steps=4)["sample"]
    sample["inputs"]["denoise"] = 0.04
    assert "too few for 4 steps" in error_of(comfy_server, {"sample": sample})


def test_captions_of_another_width(comfy_server, family):
    make_nano_folder(comfy_server.base / "models" / "pixart_delta" / "wide", caption_channels=32)
    changes = {"model": node("PixArtDeltaModelLoader", model_name="wide/transformer/", dtype="default")}
    assert "captions are 64 wide, this PixArt model takes 32" in error_of(comfy_server, changes)


def test_learned_null_caption_without_model_and_without_one_in_the_file(comfy_server, family):
    text = text_to_image()["text"]
    text["inputs"]["unconditional"] = "learned null caption"
    assert "connect the model input" in error_of(comfy_server, {"text": text})
    text["inputs"]["model"] = ["model", 0]
    result = comfy_server.prompt(text_to_image(changes={"text": text} | ksampler(steps=1)))
    if pc.load_pixart(family / "transformer").y_embedder.y_embedding is None:
        assert "no learned null caption" in result.errors[0]


def test_a_model_of_the_stock_loader_is_named(comfy_server, family, files):
    """Our sampler needs our MODEL."""
    checkpoint = node("CLIPTextEncode", clip=["clip", 0], text="")
    sample = text_to_image()["sample"]
    sample["inputs"]["model"] = ["stock", 0]
    save = {
        "stock": node("UNETLoader", unet_name="stock.safetensors", weight_dtype="default"),
        "sample": sample,
        "text": checkpoint,
    }
    config = pc.PixArtConfig(depth=1)
    state = pc.PixArt(config, dtype=torch.float16).state_dict()
    save_file(
        {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        files / "diffusion_models" / "stock.safetensors",
    )
    error = error_of(comfy_server, save)
    assert "load it with PixArt-δ Model Loader" in error
