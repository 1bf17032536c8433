"""What ComfyUI's previews are made with: colours in a file, and a decoder in TAESD's shape that draws the same."""

from dataclasses import replace

import pytest
import torch

from pixart_core.autoencoder import AutoencoderTiny
from pixart_core.autoencoder_config import TinyConfig
from pixart_core.checkpoint import CheckpointError, merge_controlnet, save_controlnet, save_pixart, split_controlnet
from pixart_core.identify import inspect_file
from pixart_core.preview import COLOURS, preview_colours, taesd_decoder
from pixart_core.vae import load_vae
from tests.conftest import ROOT
from tests.fixtures_nano import nano_config, random_controlnet, random_pixart

SHOWN = {"factors": [[0.5, 0.25, 0.0]] * 4, "bias": [0.0, -1.0, 0.125]}


def as_taesd(state):
    """The state in an AutoencoderTiny of TAESD's shape, which ComfyUI's class is but for a first layer that clamps."""
    taesd = AutoencoderTiny(TinyConfig())
    names = ((name.split(".", 1), value) for name, value in state.items())
    taesd.decoder.layers.load_state_dict({f"{int(index) - 1}.{rest}": value for (index, rest), value in names})
    return taesd


@pytest.mark.parametrize("blocks", [(3, 3, 2, 1), (1, 2, 3, 1), (3, 3, 3, 1)])
@pytest.mark.parametrize("width", [5, 64])
def test_pictures_of_a_taesd_are_the_decoders_own(blocks, width):
    torch.manual_seed(0)
    vae = AutoencoderTiny(TinyConfig((8,) * 4, (width,) * 4, (0, 0, 1, 0), blocks))
    vae.load_state_dict({name: value.half().float() for name, value in vae.state_dict().items()})
    latent = torch.randn(2, 4, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(as_taesd(taesd_decoder(vae)).decode(latent).sample, vae.decode(latent).sample)


def test_pictures_of_the_bundled_one_are_its_own():
    vae, latent = load_vae(ROOT / "models" / "nano"), torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(as_taesd(taesd_decoder(vae)).decode(latent).sample, vae.decode(latent).sample)


@pytest.mark.parametrize(
    "other",
    [
        {"decoder_block_out_channels": (65,) * 4},
        {"num_decoder_blocks": (3, 3, 2, 0)},  # what a convolution leaves may be negative
        {"num_decoder_blocks": (3, 3, 4, 1)},
        {"num_decoder_blocks": (3, 3, 1), "decoder_block_out_channels": (8,) * 3},
        {"act_fn": "silu"},
        {"upsample_fn": "bilinear"},
        {"scaling_factor": 0.5},
        {"latent_channels": 16},
    ],
)
def test_what_a_taesd_cannot_hold_is_refused(other):
    if len(other.get("num_decoder_blocks", (1,) * 4)) == 3:
        other |= {"encoder_block_out_channels": (8,) * 3, "num_encoder_blocks": (0, 0, 0)}
    vae = AutoencoderTiny(replace(TinyConfig((8,) * 4, (8,) * 4), **other))
    with pytest.raises(ValueError, match="cannot hold the decoder of TinyConfig"):
        taesd_decoder(vae)


def test_an_autoencoder_of_another_kind_is_refused(nano_released):
    with pytest.raises(ValueError, match="cannot hold the decoder of KLConfig"):
        taesd_decoder(load_vae(nano_released))


def test_colours_stay_with_a_base_that_is_split_from_its_control_and_joined_again(tmp_path):
    base, joint = tmp_path / "base.safetensors", tmp_path / "joint.safetensors"
    model = random_pixart(nano_config())
    save_pixart(model, base, metadata={COLOURS: SHOWN})
    assert preview_colours(inspect_file(base)) == {COLOURS: SHOWN}
    save_controlnet(random_controlnet(model), tmp_path / "control.safetensors")
    merge_controlnet(base, tmp_path / "control.safetensors", joint)
    again, control = split_controlnet(joint, tmp_path / "again.safetensors", tmp_path / "other.safetensors")
    assert preview_colours(inspect_file(joint)) == preview_colours(inspect_file(again)) == {COLOURS: SHOWN}
    assert preview_colours(inspect_file(control)) == {}


@pytest.mark.parametrize(
    "wrong", [None, "blue", {}, {**SHOWN, "bias": [1.0]}, {**SHOWN, "factors": [[1.0, "x", 0.0]] * 4}]
)
def test_other_things_than_colours_are_named(tmp_path, wrong):
    save_pixart(random_pixart(nano_config()), tmp_path / "base.safetensors", metadata={COLOURS: wrong})
    with pytest.raises(CheckpointError, match=r"base\.safetensors: the colours of its previews are .*make the file"):
        preview_colours(inspect_file(tmp_path / "base.safetensors"))
