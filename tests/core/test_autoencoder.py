"""The autoencoders against diffusers' classes on random weights: names, encode, decode, and what may stand for them."""

import pytest
import torch
from torch import nn

from pixart_core.autoencoder import AutoencoderKL, AutoencoderTiny
from pixart_core.autoencoder_config import KLConfig, TinyConfig, read_config
from pixart_core.vae import decode, encode, load_vae, moments, save_vae

KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 16, 24],
    "norm_num_groups": 4,
    "layers_per_block": 2,
}
WIDTHS = {"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [16] * 4}
SHAPES = {
    "kl": (KLConfig, KL),
    "kl, one layer": (KLConfig, KL | {"layers_per_block": 1, "block_out_channels": [8] * 4, "act_fn": "gelu"}),
    "kl, no quant_conv": (KLConfig, KL | {"use_quant_conv": False, "use_post_quant_conv": False}),
    "kl, no attention": (KLConfig, KL | {"mid_block_add_attention": False}),
    "tiny": (TinyConfig, WIDTHS),
    "tiny, as nano": (TinyConfig, WIDTHS | {"num_encoder_blocks": [0, 1, 2, 3], "num_decoder_blocks": [3, 3, 2, 1]}),
    "tiny, other functions": (TinyConfig, WIDTHS | {"act_fn": "silu", "upsample_fn": "bilinear"}),
}


@pytest.fixture(params=SHAPES)
def pair(request):
    """Ours and diffusers' with the same random weights."""
    import diffusers

    kind, description = SHAPES[request.param]
    name = "AutoencoderKL" if kind is KLConfig else "AutoencoderTiny"
    torch.manual_seed(0)
    theirs = getattr(diffusers, name).from_config(description).eval()
    ours = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[name](read_config(kind, description))
    ours.load_state_dict(theirs.state_dict())  # strict: the very names
    return ours.eval(), theirs


def test_pictures_and_latents_are_diffusers(pair):
    ours, theirs = pair
    images, latent = torch.rand(2, 40, 24, 3), 2 * torch.randn(2, 4, 5, 3)
    for function in (encode, moments):
        torch.testing.assert_close(function(ours, images), function(theirs, images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decode(ours, latent), decode(theirs, latent), rtol=1e-4, atol=1e-5)
    drawn = [encode(vae, images, torch.Generator().manual_seed(3)) for vae in pair]
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)


def test_what_is_saved_is_read_by_both(pair, tmp_path):
    ours, theirs = pair
    save_vae(ours, tmp_path / "vae")
    latent = torch.randn(1, 4, 2, 3)
    expected = decode(ours, latent)
    assert torch.equal(decode(load_vae(tmp_path / "vae"), latent), expected)
    torch.testing.assert_close(decode(type(theirs).from_pretrained(tmp_path / "vae"), latent), expected)


def test_the_decoder_compiles_in_one_graph(pair):
    ours, _ = pair
    latent = torch.randn(1, 4, 2, 3)
    compiled = torch.compile(ours.decoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(latent), ours.decoder(latent))


@pytest.mark.parametrize(("network", "config"), [(AutoencoderKL, KLConfig()), (AutoencoderTiny, TinyConfig())])
def test_layers_come_from_the_operations_that_are_given(network, config):
    class Operations:
        class Conv2d(nn.Conv2d):
            pass

        class Linear(nn.Linear):
            pass

        class GroupNorm(nn.GroupNorm):
            pass

    vae = network(config, torch.float16, "meta", Operations)
    layers = {type(module) for module in vae.modules() if next(module.parameters(recurse=False), None) is not None}
    assert layers <= {Operations.Conv2d, Operations.Linear, Operations.GroupNorm}
    assert {p.dtype for p in vae.parameters()} == {torch.float16} and vae.device.type == "meta"


def test_a_latent_far_out_stays_a_picture():
    """TAESD draws latents in before it decodes them, so that a sampler's overshoot does not burn."""
    vae = AutoencoderTiny(TinyConfig())
    far, farther = (decode(vae, torch.full((1, 4, 2, 2), value)) for value in (60.0, 600.0))
    torch.testing.assert_close(far, farther)
