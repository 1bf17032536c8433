"""Autoencoders: both kinds against diffusers, scaling, pictures, and folders that are something else."""

import json
import shutil

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pixart_core.checkpoint import CheckpointError
from pixart_core.vae import decode, encode, load_vae, to_pil


@pytest.fixture(params=["AutoencoderTiny", "AutoencoderKL"])
def folder(request, nano, nano_released):
    return nano if request.param == "AutoencoderTiny" else nano_released


@pytest.fixture
def copy(nano, tmp_path):
    return shutil.copytree(nano / "vae", tmp_path / "vae")


def test_decode_is_the_pipelines(folder):
    from diffusers.image_processor import VaeImageProcessor

    vae = load_vae(folder)
    latent = torch.randn(2, 4, 5, 3)
    images = decode(vae, latent)
    assert images.shape == (2, 40, 24, 3) and images.dtype == torch.float32
    with torch.no_grad():
        raw = vae.decode(latent / vae.config.scaling_factor).sample
    expected = VaeImageProcessor().postprocess(raw, output_type="np")
    torch.testing.assert_close(images, torch.from_numpy(expected))
    assert vae.config.scaling_factor == (0.18215 if type(vae).__name__ == "AutoencoderKL" else 1.0)


def test_tiles_are_put_together(folder):
    """A decoder that looks at one place only gives the same in tiles; others nearly, and the same where one tile is."""
    from types import SimpleNamespace

    vae, latent = load_vae(folder), torch.randn(2, 4, 9, 21) / 2

    def local(x):
        return SimpleNamespace(sample=torch.nn.functional.interpolate(x[:, :3], scale_factor=8.0))

    alone = SimpleNamespace(config=vae.config, device=vae.device, dtype=vae.dtype, decode=local)
    torch.testing.assert_close(decode(alone, latent, tile=64), decode(alone, latent))
    assert torch.equal(decode(vae, latent, tile=256), decode(vae, latent))
    assert (decode(vae, latent, tile=96) - decode(vae, latent)).abs().mean() < 0.1
    for tile in (0, 100):
        with pytest.raises(ValueError, match=f"tile must be a multiple of 32 px, got {tile}"):
            decode(vae, latent, tile=tile)


def test_encode_scales_and_samples(folder):
    vae = load_vae(folder)
    images = torch.rand(2, 16, 24, 3)
    latent = encode(vae, images)
    assert latent.shape == (2, 4, 2, 3)
    with torch.no_grad():
        encoded = vae.encode(images.permute(0, 3, 1, 2) * 2 - 1)
    mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    torch.testing.assert_close(latent, mean * vae.config.scaling_factor)
    sampled = encode(vae, images, torch.Generator().manual_seed(0))
    assert torch.equal(sampled, encode(vae, images, torch.Generator().manual_seed(0)))
    assert torch.equal(sampled, latent) == hasattr(encoded, "latents")  # the tiny one has no posterior to sample


def test_dtype_is_float32_on_a_cpu_unless_asked(nano):
    assert load_vae(nano).dtype == torch.float32
    vae = load_vae(nano / "vae", torch.bfloat16)
    assert vae.dtype == torch.bfloat16 and decode(vae, torch.randn(1, 4, 2, 2)).dtype == torch.float32


def test_pictures_are_rounded():
    images = torch.tensor([0.0, 0.499 / 255, 0.501 / 255, 1.0]).reshape(1, 2, 2, 1).expand(1, 2, 2, 3)
    (picture,) = to_pil(images)
    assert isinstance(picture, Image.Image) and numpy.asarray(picture)[..., 0].ravel().tolist() == [0, 0, 1, 255]


def test_shapes_are_checked(nano):
    vae = load_vae(nano)
    with pytest.raises(ValueError, match=r"decodes latents \(B, 4, h, w\), got shape \(1, 16, 4, 4\)"):
        decode(vae, torch.zeros(1, 16, 4, 4))
    with pytest.raises(ValueError, match=r"multiples of 8, got shape \(1, 20, 16, 3\)"):
        encode(vae, torch.zeros(1, 20, 16, 3))


def test_folders_that_are_no_autoencoder(nano, copy):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_vae(nano / "missing")
    with pytest.raises(CheckpointError, match="is a file: give the folder"):
        load_vae(nano / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="holds PixArtTransformer2DModel; PixArt-α's autoencoder is one of"):
        load_vae(nano / "transformer")
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_vae(copy)


def test_weights_must_fit_the_config(copy):
    file = copy / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({name: value for name, value in state.items() if name != "decoder.layers.0.bias"}, file)
    with pytest.raises(CheckpointError, match=r"does not hold the weights .* decoder\.layers\.0\.bias"):
        load_vae(copy)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_vae(copy)


def test_an_autoencoder_with_16_channels(copy):
    from diffusers import AutoencoderTiny

    AutoencoderTiny.from_config(
        json.loads((copy / "config.json").read_text()) | {"latent_channels": 16}
    ).save_pretrained(copy)
    with pytest.raises(CheckpointError, match="has 16 latent channels and factor 8; PixArt-α needs 4 channels"):
        load_vae(copy)


def test_nan_weights_are_named(copy):
    file = copy / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["decoder.layers.0.bias"][0] = float("nan")
    save_file(state, file)
    with pytest.raises(ValueError, match="the autoencoder returned NaN or infinite values"):
        decode(load_vae(copy), torch.randn(1, 4, 2, 2))


def change(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "values",
    [
        {"num_encoder_blocks": [1, 1, 1, 10**9]},
        {"num_decoder_blocks": 7},
        {"encoder_block_out_channels": [8] * 5000},
        {"encoder_block_out_channels": [10**12] * 4},
        {"decoder_block_out_channels": "8888"},
        {"latent_channels": "4"},
        {"in_channels": None},
        {"act_fn": "magic"},
        {"scaling_factor": "1"},
        {"scaling_factor": float("nan")},
        {"scaling_factor": 0},
        {"upsampling_scaling_factor": 100},
        {"upsample_fn": "trilinear"},
        {"_class_name": ["AutoencoderTiny"]},
    ],
    ids=lambda values: str(values)[:60],
)
def test_what_a_config_claims_is_checked(copy, values):
    change(copy, **values)
    with pytest.raises(CheckpointError, match="vae"):
        load_vae(copy)


@pytest.mark.parametrize(
    "values",
    [
        {"layers_per_block": 10**9},
        {"norm_num_groups": 0},
        {"norm_num_groups": 3},
        {"down_block_types": ["Magic"] * 4},
        {"up_block_types": []},
        {"block_out_channels": [8, "8", 8, 8]},
    ],
    ids=str,
)
def test_what_a_kl_config_claims_is_checked(nano_released, tmp_path, values):
    folder = shutil.copytree(nano_released / "vae", tmp_path / "vae")
    change(folder, **values)
    with pytest.raises(CheckpointError, match="vae"):
        load_vae(folder)


def test_quantised_weights_are_no_numbers(copy):
    file = copy / "diffusion_pytorch_model.safetensors"
    save_file({name: value.to(torch.int8) for name, value in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"quantised to torch\.int8"):
        load_vae(copy)


def test_attention_by_its_names_of_2022(nano_released, tmp_path):
    """As stabilityai/sd-vae-ft-ema has it, the autoencoder of the released PixArt-α."""
    folder = shutil.copytree(nano_released / "vae", tmp_path / "vae")
    file = folder / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, old in names.items():
        state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for name, value in state.items()}
    assert any("proj_attn" in name for name in state)
    save_file(state, file)
    expected = load_vae(nano_released).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_vae(folder).state_dict().items())
