"""Blocks in 8 bits on a CPU: near float32, through every way that blocks are called; what cannot be quantised."""

import copy
import sys

import pytest
import torch

import pixart_core as pc
from pixart_core.controlnet import ControlNetTransformer
from pixart_core.int8 import quantize_blocks
from pixart_core.steps import Control, Steps
from tests.fixtures_nano import nano_config, random_controlnet, random_pixart


@pytest.fixture(scope="module")
def models():
    plain = random_pixart(nano_config())
    return plain, quantize_blocks(copy.deepcopy(plain))


def off(made, expected):
    return ((made - expected).norm() / expected.norm()).item()


@torch.no_grad()
def test_blocks_are_near_float32_and_a_quarter_of_its_size(models):
    plain, small = models
    arguments = torch.randn(2, 4, 9, 12), torch.tensor([999, 499]), torch.randn(2, 8, 64), torch.ones(2, 8)
    assert 1e-4 < off(small(*arguments), plain(*arguments)) < 0.1
    assert small.product_dtype == torch.float32 and not any("attn" in name for name, _ in small.named_parameters())
    assert small.x_embedder.proj.weight.dtype == small.final_layer.linear.weight.dtype == torch.float32


@torch.no_grad()
def test_steps_and_control_take_them(models):
    plain, small = models
    control = random_controlnet(plain)
    assert isinstance(control, ControlNetTransformer)
    noisy, t, caption = torch.randn(1, 4, 8, 8), torch.tensor([999]), torch.randn(1, 8, 64)
    one, other = (Steps(each, [999], Control(control, noisy, 1.0, [True]))(noisy, t, caption, None) for each in models)
    assert 1e-4 < off(other, one) < 0.1


def test_a_pipeline_draws_with_them(nano):
    pipeline = pc.Pipeline.from_pretrained(nano, torch.float32, "cpu")
    before, planned = pipeline.sample("sun", width=64, height=64), pipeline.memory_plan()["sample"].transformer
    floats = sum(weight.numel() for weight in pipeline.transformer.blocks.parameters())
    quantize_blocks(pipeline.transformer)
    left = sum(weight.numel() for weight in pipeline.transformer.blocks.parameters())
    less = planned - pipeline.memory_plan()["sample"].transformer
    assert less == pytest.approx(3 * (floats - left) / 1e9, rel=0.01), "a byte is left of four"
    assert 1e-5 < off(pipeline.sample("sun", width=64, height=64), before) < 0.5


def test_what_cannot_be_quantised_is_named(models, monkeypatch):
    with pytest.raises(ValueError, match="quantised already"):
        quantize_blocks(models[1])
    with pytest.raises(ValueError, match=r"these are torch\.bfloat16 on cpu"):
        quantize_blocks(pc.PixArt(nano_config(), dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="on meta"):
        quantize_blocks(pc.PixArt(nano_config(), device="meta"))
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(ImportError, match=r"has no torch\.ao\.quantization"):
        quantize_blocks(random_pixart(nano_config()))
