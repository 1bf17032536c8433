"""Names and configurations between the authors' layout and diffusers': a bijection, bit for bit."""

import pytest
import torch

import pixart_core as pc
from pixart_core import convert
from pixart_core.controlnet import ControlNetTransformer

CONFIG = pc.PixArtConfig(
    input_size=16, hidden_size=48, depth=3, num_heads=4, caption_channels=16, interpolation_scale=1.0
)


def random_state(module):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("micro_condition", [True, False])
def test_there_and_back_is_the_same_to_the_last_bit(micro_condition):
    state = random_state(pc.PixArt(pc.PixArtConfig(**CONFIG.to_dict() | {"micro_condition": micro_condition})))
    theirs = convert.authors_to_diffusers(state)
    back = convert.diffusers_to_authors(theirs)
    del state["pos_embed"]  # diffusers computes it
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_other_way_there_and_back():
    from diffusers import PixArtTransformer2DModel

    state = random_state(PixArtTransformer2DModel.from_config(convert.config_to_diffusers(CONFIG)))
    ours = convert.diffusers_to_authors(state)
    back = convert.authors_to_diffusers(ours)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert ours.keys() == pc.PixArt(CONFIG).state_dict().keys() - {"pos_embed", "y_embedder.y_embedding"}


def test_controlnet_there_and_back():
    state = random_state(ControlNetTransformer(CONFIG, 2))
    theirs = convert.authors_to_diffusers(state)
    assert "controlnet_blocks.0.before_proj.weight" in theirs
    assert "controlnet_blocks.1.transformer_block.attn2.to_k.bias" in theirs
    assert "controlnet_blocks.1.after_proj.bias" in theirs
    back = convert.diffusers_to_authors(theirs)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_names_one_by_one():
    assert convert.diffusers_names("blocks.7.cross_attn.kv_linear.weight") == (
        "transformer_blocks.7.attn2.to_k.weight",
        "transformer_blocks.7.attn2.to_v.weight",
    )
    assert convert.authors_name("transformer_blocks.7.attn1.to_v.bias") == ("blocks.7.attn.qkv.bias", 2, 3)
    assert convert.authors_name("scale_shift_table") == ("final_layer.scale_shift_table", 0, 1)
    assert convert.authors_name("transformer_blocks.0.scale_shift_table") == ("blocks.0.scale_shift_table", 0, 1)


def test_unfused_weights_are_shared_not_copied():
    state = random_state(pc.PixArt(CONFIG))
    theirs = convert.authors_to_diffusers(state)
    name = "transformer_blocks.0.ff.net.2.weight"
    assert theirs[name].data_ptr() == convert.diffusers_to_authors(theirs)["blocks.0.mlp.fc2.weight"].data_ptr()


def test_unknown_and_missing_names_are_listed():
    theirs = convert.authors_to_diffusers(random_state(pc.PixArt(CONFIG)))
    with pytest.raises(ValueError, match="no part of a PixArt transformer in diffusers' layout: surprise"):
        convert.diffusers_to_authors(theirs | {"surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match="no part of a PixArt transformer in the authors' layout: surprise"):
        convert.authors_to_diffusers({"surprise": torch.zeros(1)})
    del theirs["transformer_blocks.1.attn1.to_k.weight"]
    with pytest.raises(ValueError, match="weights are missing: transformer_blocks.1.attn1.to_k.weight"):
        convert.diffusers_to_authors(theirs)


@pytest.mark.parametrize(
    "config",
    [CONFIG, pc.PIXART_256, pc.PIXART_512, pc.PIXART_1024_MS, pc.PixArtConfig(in_channels=16, learn_sigma=False)],
)
def test_configuration_there_and_back(config):
    assert convert.config_from_diffusers(convert.config_to_diffusers(config)) == config


def test_configuration_of_the_first_releases():
    """What PixArt-LCM-XL-2-1024-MS ships: the general class, without the keys that came later."""
    values = {
        "_class_name": "Transformer2DModel",
        "norm_type": "ada_norm_single",
        "sample_size": 128,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_layers": 28,
        "caption_channels": 4096,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "cross_attention_dim": 1152,
    }
    assert convert.config_from_diffusers(values) == pc.PIXART_1024_MS
    assert convert.config_from_diffusers(values | {"sample_size": 64}) == pc.PIXART_512
    assert convert.config_from_diffusers(values | {"sample_size": 32}) == pc.PIXART_256


@pytest.mark.parametrize(
    "values",
    [
        {"_class_name": "UNet2DConditionModel"},
        {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "caption_channels": 4096},
        {"_class_name": "PixArtTransformer2DModel", "caption_channels": None},
    ],
)
def test_configuration_of_another_model_is_refused(values):
    with pytest.raises(ValueError, match=f"describes a {values['_class_name']}, not a PixArt"):
        convert.config_from_diffusers(values)


def test_what_diffusers_cannot_express_is_refused():
    with pytest.raises(ValueError, match="this model has 2.0: save it in the authors' layout"):
        convert.config_to_diffusers(pc.PixArtConfig(mlp_ratio=2.0))


def test_position_buffer_is_the_grid_of_the_configuration():
    config = pc.PixArtConfig(**CONFIG.to_dict() | {"interpolation_scale": 2.0})
    buffer = convert.position_buffer(config)
    assert buffer.shape == (1, 64, 48)
    # The authors' file of this shape starts its second row with sin(1 / 2) (goldens/transformer_ms).
    assert buffer[0, 1, 0].item() == pytest.approx(0.4794255, abs=1e-6)
