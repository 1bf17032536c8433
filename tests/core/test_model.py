"""What the transformer must do whatever its weights: masks, sizes, control, clear errors."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch

import pixart_core as pc
from pixart_core import functional
from pixart_core.layers import Conditions

CONFIG = pc.PixArtConfig(
    input_size=16,
    hidden_size=48,
    depth=3,
    num_heads=4,
    caption_channels=16,
    model_max_length=8,
    interpolation_scale=1.0,
    micro_condition=True,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = pc.PixArt(CONFIG)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_(std=0.1)
    return model.eval().requires_grad_(False)


def inputs(batch=2, height=10, width=14, length=8):
    generator = torch.Generator().manual_seed(1)
    return {
        "latent": torch.randn(batch, 4, height, width, generator=generator),
        "timestep": torch.tensor([999, 259])[:batch],
        "caption": torch.randn(batch, length, 16, generator=generator),
        "image_size": torch.tensor([[80.0, 112.0]]).expand(batch, -1),
        "aspect_ratio": torch.tensor([[80 / 112]]).expand(batch, -1),
    }


def test_padding_never_changes_a_sample(model):
    batch = inputs()
    mask = torch.tensor([[1] * 3 + [0] * 5, [1] * 8])
    together = model(**batch, caption_mask=mask)
    alone = model(**{k: v[:1] for k, v in batch.items()} | {"caption": batch["caption"][:1, :3]})
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
    changed = batch["caption"].clone()
    changed[0, 3:] = 100.0
    torch.testing.assert_close(model(**batch | {"caption": changed}, caption_mask=mask), together, rtol=0, atol=0)


@pytest.mark.parametrize("height,width", [(1, 1), (1, 16), (15, 9), (12, 20), (33, 2)])
def test_any_latent_size(model, height, width):
    out = model(**inputs(height=height, width=width))
    assert out.shape == (2, 8, height, width) and torch.isfinite(out).all()


def test_micro_conditions_default_to_the_latents_own_size(model):
    batch = inputs()
    given = model(**batch)
    del batch["image_size"], batch["aspect_ratio"]
    torch.testing.assert_close(model(**batch), given)


def test_micro_conditions_are_read(model):
    batch = inputs()
    assert not torch.equal(model(**batch), model(**batch | {"image_size": batch["image_size"] * 2}))


def test_block_hook_wraps_every_block_and_can_replace_it(model):
    seen = []

    def hook(index, run, x):
        seen.append(index)
        return run(x)

    batch = inputs()
    assert torch.equal(model(**batch, block_hook=hook), model(**batch)) and seen == [0, 1, 2]
    assert not torch.equal(model(**batch, block_hook=lambda index, run, x: x), model(**batch))


def test_attention_hook_stands_in_for_both_attentions_of_a_block(model):
    class Hook:
        def __init__(self):
            self.seen = []

        def self_attention(self, layer, x, cond):
            self.seen.append(("self", x.shape))
            return layer.proj(cond.attention(*layer.project(x, x, x.roll(1, 1)), layer.num_heads))

        def cross_attention(self, layer, x, cond):
            self.seen.append(("cross", x.shape))
            q, k, v = layer.project(x, cond.caption, cond.caption)
            return layer.proj(cond.attention(q, k, v, layer.num_heads, mask=cond.mask))

    batch, hook = inputs(), Hook()
    hooked = model(
        **batch, block_hook=lambda i, run, x: run(x, cond=dataclasses.replace(run.keywords["cond"], hook=hook))
    )
    assert hook.seen == [("self", (2, 35, 48)), ("cross", (2, 35, 48))] * 3

    class Rolled(torch.nn.Module):  # values of the tokens before
        def __init__(self, qkv):
            super().__init__()
            self.qkv = qkv

        def forward(self, x):
            q, k, _ = self.qkv(x).chunk(3, -1)
            return torch.cat([q, k, self.qkv(x.roll(1, 1)).chunk(3, -1)[2]], -1)

    plain = model(**batch)
    for block in model.blocks:
        block.attn.qkv = Rolled(block.attn.qkv)
    expected = model(**batch)
    for block in model.blocks:
        block.attn.qkv = block.attn.qkv.qkv
    torch.testing.assert_close(hooked, expected)
    assert (hooked - plain).abs().max() > 1e-3


def test_zero_initialised_control_is_the_base_to_the_last_bit(model):
    control = pc.ControlNetTransformer(CONFIG, 2).initialize_from(model)
    batch = inputs()
    residuals = control(model, hint=torch.randn(2, 4, 10, 14), **batch)
    assert len(residuals) == 2 and residuals[0].shape == (2, 35, 48)
    assert torch.equal(model(**batch, control=residuals), model(**batch))


def test_controlnet_unet_joins_the_mirrored_blocks():
    """Depth 4: copy 1 joins the input of block 2, copy 0 that of block 3; all else is the ControlNet-Transformer's."""
    config = pc.PixArtConfig(**CONFIG.to_dict() | {"depth": 4})
    model = pc.PixArt(config).initialize_weights().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    unet, plain = pc.ControlNetUNet(config).initialize_from(model), pc.ControlNetTransformer(config, 2)
    batch, hint = inputs(), torch.randn(2, 4, 10, 14)
    assert torch.equal(model(**batch, control=unet(model, hint=hint, **batch)), model(**batch))
    for name, parameter in unet.named_parameters():
        if "_proj." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(unet.state_dict())
    first, second = plain(model, hint=hint, **batch)
    control = unet(model, hint=hint, **batch)
    assert control[0] is None
    assert torch.equal(control[1], second)
    assert torch.equal(control[2], first)
    skips = {2: second, 3: first}
    expected = model(**batch, block_hook=lambda i, run, x: run(x + skips[i] if i in skips else x))
    torch.testing.assert_close(model(**batch, control=control), expected)
    assert (expected - model(**batch)).abs().max() > 1e-3


def test_controlnet_unet_takes_half_of_an_even_depth():
    for depth, copies in ((3, None), (4, 1), (4, 3)):
        with pytest.raises(ValueError, match=f"depth / 2 = {depth / 2:g}, got"):
            pc.ControlNetUNet(pc.PixArtConfig(**CONFIG.to_dict() | {"depth": depth}), copies)


@pytest.mark.parametrize("copies", [0, 3, 4])
def test_number_of_copied_blocks_is_checked(copies):
    with pytest.raises(ValueError, match="copy_blocks_num must be 1 … depth - 1 = 2"):
        pc.ControlNetTransformer(CONFIG, copies)


def test_latent_with_16_channels_names_the_autoencoder(model):
    with pytest.raises(ValueError, match=r"4 channels .* got shape \(2, 16, 8, 8\)"):
        model(**inputs() | {"latent": torch.zeros(2, 16, 8, 8)})


def test_caption_of_another_width_names_the_text_encoder(model):
    with pytest.raises(ValueError, match="captions are 24 wide, this PixArt model takes 16"):
        model(**inputs() | {"caption": torch.zeros(2, 8, 24)})


def test_missing_null_caption_says_what_to_do():
    model = pc.PixArt(CONFIG)
    assert model.null_caption(3, 5).shape == (3, 5, 16)
    model.y_embedder.y_embedding = None
    assert "y_embedder.y_embedding" not in model.state_dict()
    with pytest.raises(ValueError, match="Encode an empty prompt"):
        model.null_caption(1)


def test_fresh_model_predicts_nothing_and_position_buffer_is_the_grid():
    model = pc.PixArt(CONFIG).initialize_weights()
    assert model(**inputs()).abs().max() == 0
    first_row = model.pos_embed[0, :8, 24:]
    assert torch.equal(first_row, first_row[:1].expand(8, -1)), "the row half is constant along a row"


def test_conditions_have_a_row_for_each_picture(model):
    batch = inputs()
    cond = model.embed_conditions(batch["latent"], batch["timestep"], batch["caption"], torch.ones(2, 8))
    assert isinstance(cond, Conditions) and cond.time.shape[0] == cond.mask.shape[0] == cond.caption.shape[0] == 2


@pytest.mark.parametrize(
    "values,message",
    [
        ({"num_heads": 5}, "hidden_size 48 is not a multiple of num_heads 5"),
        ({"hidden_size": 40, "num_heads": 4}, "not a multiple of 3"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"input_size": 15}, "not a multiple of patch_size 2"),
    ],
)
def test_config_quotes_the_offending_numbers(values, message):
    with pytest.raises(ValueError, match=message):
        pc.PixArtConfig(**CONFIG.to_dict() | values)


def test_config_round_trip_and_unknown_key():
    assert pc.PixArtConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(ValueError, match="unknown PixArt configuration keys: widht"):
        pc.PixArtConfig.from_dict({"widht": 3})


@pytest.mark.parametrize(
    ("capabilities", "speed", "expected"),
    [
        ({}, 9.0, torch.float32),
        ({"avx512_bf16": True}, 0.6, torch.float32),
        ({"avx512_bf16": True}, 2.0, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True}, 0.0, torch.bfloat16),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_fast(monkeypatch, capabilities, speed, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(functional, "_bfloat16_speed", lambda: speed)
    assert functional.preferred_dtype("cpu") == expected


def test_the_speed_of_bfloat16_is_a_measured_ratio():
    assert 0 < functional._bfloat16_speed() < 100


def test_the_patch_embedding_is_not_rounded_to_tf32_on_cuda():
    """cuDNN's default for convolutions, also of float32; the flag is put back."""
    on_cuda = SimpleNamespace(device=torch.device("cuda"))
    before = torch.backends.cudnn.allow_tf32
    with functional.in_full_float32(on_cuda):
        assert not torch.backends.cudnn.allow_tf32
    with contextlib.suppress(KeyError), functional.in_full_float32(on_cuda):
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == before
    with functional.in_full_float32(torch.ones(1)):
        assert torch.backends.cudnn.allow_tf32 == before
