"""Against diffusers' PixArtTransformer2DModel on the same random weights, both ways, and the LoRA of PEFT on top of it.

float32, relative error below 1e-5: masks, prompts of different lengths, non-square sizes, micro-conditions. In half
precision float32 is the reference of both.
"""

import pytest
import torch

import pixart_core as pc
from pixart_core import convert
from tests.conftest import ROOT

NANO_BASE = ROOT / "models" / "nano" / "base" / "pixart_nano_base.safetensors"
MICRO = pc.PixArtConfig(
    input_size=16, hidden_size=72, depth=3, num_heads=6, caption_channels=32, interpolation_scale=2.0
)
PLAIN = pc.PixArtConfig(
    input_size=8,
    hidden_size=64,
    depth=2,
    num_heads=4,
    caption_channels=32,
    interpolation_scale=1.0,
    micro_condition=False,
)
CONFIGS = pytest.mark.parametrize("config", [MICRO, PLAIN], ids=["micro-conditioned", "plain"])
SIZES = pytest.mark.parametrize("height,width", [(16, 16), (8, 8), (20, 12), (6, 30), (34, 18)])


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def randomized(module):
    """Every weight matters: diffusers' and our own initialisation leave some at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.normal_(std=fan_in**-0.5, generator=generator)
    return module.eval()


def diffusers_model(config, state=None):
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_config(convert.config_to_diffusers(config))
    if state is None:
        return randomized(model)
    model.load_state_dict(
        convert.authors_to_diffusers(
            {name: tensor for name, tensor in state.items() if name != "y_embedder.y_embedding"}
        )
    )
    return model.eval()


def batch(config, height, width, lengths=(9, 3, 1)):
    generator = torch.Generator().manual_seed(1)
    count, longest = len(lengths), max(lengths)
    values = {
        "latent": torch.randn(count, 4, height, width, generator=generator),
        "timestep": torch.tensor([999, 499, 19])[:count],
        "caption": torch.randn(count, longest, config.caption_channels, generator=generator),
        "caption_mask": (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long(),
    }
    if config.micro_condition:
        values["image_size"] = torch.tensor([[height * 8.0, width * 8.0], [1024.0, 1024.0], [640.0, 1536.0]])[:count]
        values["aspect_ratio"] = torch.tensor([[height / width], [1.0], [0.42]])[:count]
    return values


@torch.no_grad()
def theirs(model, values):
    conditions = None
    if "image_size" in values:
        conditions = {"resolution": values["image_size"], "aspect_ratio": values["aspect_ratio"]}
    return model(
        values["latent"],
        encoder_hidden_states=values["caption"],
        timestep=values["timestep"],
        added_cond_kwargs=conditions,
        encoder_attention_mask=values.get("caption_mask"),
    ).sample


@CONFIGS
@SIZES
@torch.no_grad()
def test_our_weights_in_diffusers(config, height, width):
    model = randomized(pc.PixArt(config))
    values = batch(config, height, width)
    out = model(**values)
    assert out.abs().max() > 0.1
    assert relative(out, theirs(diffusers_model(config, model.state_dict()), values)) < 1e-5


@CONFIGS
@SIZES
def test_diffusers_weights_in_ours(config, height, width, tmp_path):
    reference = diffusers_model(config)
    reference.save_pretrained(tmp_path)
    values = batch(config, height, width)
    with torch.no_grad():
        out = pc.load_pixart(tmp_path)(**values)
    assert relative(out, theirs(reference, values)) < 1e-5


@CONFIGS
def test_the_authors_file_there_and_back_through_diffusers(config, tmp_path):
    """Authors' .pth -> our loader -> diffusers folder -> diffusers' loader and its own save -> our loader."""
    from diffusers import PixArtTransformer2DModel

    model = randomized(pc.PixArt(config))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "authors.pth")
    folder = pc.save_pixart(pc.load_pixart(tmp_path / "authors.pth", config=config), tmp_path / "a", layout="diffusers")
    PixArtTransformer2DModel.from_pretrained(folder).save_pretrained(tmp_path / "b")
    last, first = pc.load_pixart(tmp_path / "b").state_dict(), model.state_dict()
    assert last.keys() == first.keys() - {"y_embedder.y_embedding"}
    assert all(torch.equal(last[name], first[name]) for name in last if name != "pos_embed")


@torch.no_grad()
def test_mixed_lengths_equal_every_prompt_alone():
    model, values = randomized(pc.PixArt(MICRO)), batch(MICRO, 12, 20)
    together = model(**values)
    reference = diffusers_model(MICRO, model.state_dict())
    for index, length in enumerate((9, 3, 1)):
        alone = {name: value[index : index + 1] for name, value in values.items() if name != "caption_mask"}
        alone["caption"] = alone["caption"][:, :length]
        assert relative(together[index : index + 1], model(**alone)) < 1e-5
        assert relative(together[index : index + 1], theirs(reference, alone)) < 1e-5


@torch.no_grad()
def test_what_is_padded_matters_without_the_mask():
    """The comparison above would also pass if nobody read the caption; this one would not."""
    model, values = randomized(pc.PixArt(MICRO)), batch(MICRO, 12, 20)
    masked = model(**values)
    del values["caption_mask"]
    unmasked = model(**values)
    assert relative(unmasked[:1], masked[:1]) < 1e-5 and relative(unmasked[1:], masked[1:]) > 1e-2
    assert relative(unmasked, theirs(diffusers_model(MICRO, model.state_dict()), values)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_nearer_to_float32_than_diffusers(dtype):
    """The bundled base at t = 999, where a rounding of the noise is multiplied by 157: eleven times nearer."""
    exact, half = (pc.load_pixart(NANO_BASE, each).eval() for each in (torch.float32, dtype))
    reference = diffusers_model(exact.config, exact.state_dict()).to(dtype)
    values = batch(exact.config, 16, 16, lengths=(20, 20)) | {"timestep": torch.tensor([999, 999])}
    rounded = {name: value.to(dtype) if name in ("latent", "caption") else value for name, value in values.items()}
    right = exact(**values)[:, :4]
    ours = half(**values | {"caption": rounded["caption"]})[:, :4]
    assert relative(ours, right) < 0.3 * relative(theirs(reference, rounded)[:, :4].float(), right)
