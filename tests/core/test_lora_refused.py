"""What is no LoRA, no plain one, or damaged, is named, with the way out."""

import pytest
import torch
from safetensors.torch import save_file

import pixart_core as pc
from pixart_core.delta import apply_lora
from pixart_core.lora import load_lora, parse_lora
from pixart_core.weightfile import CheckpointError
from tests.core.lora_fixture import pair, random_model, stem_state


@pytest.mark.parametrize(
    "state,message",
    [
        (stem_state("unet.down_blocks.0.attentions.0.proj_in"), "is a LoRA for another model: PixArt has no unet"),
        (stem_state("lora_te_encoder_block_0"), "is a LoRA for another model: PixArt has no lora_te"),
        (stem_state("lora_unet_input_blocks_1_1_proj_in"), "is a LoRA for another model"),
        ({"blocks.0.attn.qkv.hada_w1_a": torch.zeros(1)}, "is a LoHa, not a plain LoRA"),
        ({"blocks.0.attn.qkv.lokr_w1": torch.zeros(1, 1)}, ": blocks.0.attn.qkv is damaged: it has no lokr_w2"),
        ({"blocks.0.attn.qkv.lokr_t2": torch.zeros(1)}, "is a LoKr of Tucker's kind"),
        ({"blocks.0.attn.qkv.weight": torch.zeros(1)}, "is not a LoRA: it holds blocks.0.attn.qkv.weight"),
        (
            stem_state("proj_out", **{"proj_out.dora_scale": torch.zeros(1)}),
            r": proj_out.dora_scale is \[1\], of a DoRA of another kind",
        ),
        (
            stem_state("proj_out", **{"proj_out.weight": torch.zeros(1)}),
            "holds more than a plain LoRA: proj_out.weight",
        ),
        (
            {"transformer.proj_out.lora_A.weight": torch.zeros(2, 3)},
            "is damaged: transformer.proj_out has no up matrix",
        ),
        (
            {"proj_out.lora_A.weight": torch.zeros(2, 3), "proj_out.lora_B.weight": torch.zeros(3, 4)},
            "is damaged: proj_out has rank 2 and 4",
        ),
    ],
)
def test_what_is_no_lora_for_pixart_is_named(state, message):
    with pytest.raises(CheckpointError, match=f"^x ?{message}"):
        parse_lora(state, name="x")


def test_lora_of_another_width_changes_nothing():
    up, down = pair(rows=64, columns=64)
    good = stem_state("transformer.transformer_blocks.0.attn1.to_q")
    bad = {
        "transformer.transformer_blocks.0.attn1.to_k.lora_A.weight": down,
        "transformer.transformer_blocks.0.attn1.to_k.lora_B.weight": up,
    }
    model = random_model()
    before = model.blocks[0].attn.qkv.weight.clone()
    message = r"does not fit .* blocks.0.attn.qkv.weight is \[144, 48\], the LoRA is made for \[192, 64\]"
    with pytest.raises(CheckpointError, match=message):
        apply_lora(model, parse_lora(good | bad))
    deep = parse_lora(stem_state("transformer.transformer_blocks.9.attn1.to_q"))
    with pytest.raises(CheckpointError, match="blocks.9.attn.qkv.weight is missing"):
        apply_lora(model, deep)
    assert torch.equal(model.blocks[0].attn.qkv.weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_lora_file(tmp_path, value):
    up, down = pair()
    up[3, 1] = value
    save_file({"proj_out.lora_A.weight": down, "proj_out.lora_B.weight": up}, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinite weights .proj_out.lora_B.weight"):
        load_lora(tmp_path / "nan.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_quantised_matrices_are_no_numbers(dtype):
    state = stem_state("proj_out")
    name = next(name for name in state if "lora_A" in name)
    with pytest.raises(CheckpointError, match=rf"^x: the down matrix of proj_out .* of {dtype}; 16- or 32-bit"):
        parse_lora(state | {name: state[name].to(dtype)}, name="x")


@pytest.mark.parametrize("matrix", [torch.tensor(1.0), torch.ones(4), torch.empty(0, 48)])
def test_matrices_that_are_none(matrix):
    state = stem_state("proj_out")
    name = next(name for name in state if "lora_A" in name)
    with pytest.raises(CheckpointError, match="^x: the down matrix of proj_out"):
        parse_lora(state | {name: matrix}, name="x")


@pytest.mark.parametrize("alpha", [torch.tensor(float("nan")), torch.ones(2), torch.empty(0), torch.tensor(1j)])
def test_an_alpha_that_is_no_number(alpha):
    with pytest.raises(CheckpointError, match="proj_out.alpha is no finite number"):
        parse_lora(stem_state("proj_out") | {"proj_out.alpha": alpha}, name="x")


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": [8]},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400},
        {"alpha_pattern": ["to_q"]},
        {"alpha_pattern": {"to_q": "8"}},
        {"alpha_pattern": {"(a+)+$": 8}},
        {"alpha_pattern": {".*" * 50: 8}},
        {"alpha_pattern": {"(": 8}},
    ],
    ids=lambda config: str(config)[:40],
)
def test_an_adapter_config_that_is_wrong(config):
    with pytest.raises(CheckpointError, match="^x: .*(lora_alpha|alpha_pattern|to_q)"):
        parse_lora(stem_state("transformer.transformer_blocks.0.attn1.to_q"), "x", None, config)


def test_model_given_to_the_lora_loader(tmp_path):
    path = pc.save_pixart(random_model(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a LoRA but a PixArt transformer"):
        load_lora(path)
