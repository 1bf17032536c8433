"""The memory plan: weights counted exactly, activations measured op by op, the 8 GB recipe."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pixart_core as pc
from pixart_core.autoencoder import AutoencoderKL, AutoencoderTiny
from pixart_core.autoencoder_config import KLConfig, TinyConfig
from pixart_core.memory import AUTOENCODER_KL, T5_XXL, TextShape, VaeShape, memory_plan, transformer_parameters
from pixart_core.text import TextEncoder
from pixart_core.vae import _tiled, load_vae
from tests.fixtures_nano import nano_config


class PeakBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive at once; works on meta tensors, which cost nothing."""

    def __init__(self, *known: torch.nn.Module):
        super().__init__()
        self.live = self.peak = 0
        self.seen = {
            tensor.untyped_storage()._cdata for module in known for tensor in (*module.parameters(), *module.buffers())
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out

    def _free(self, key, size):
        self.seen.discard(key)
        self.live -= size


@pytest.fixture
def flash_attention(monkeypatch):
    """Attention that allocates its result only, as the fused kernels do; on meta tensors torch takes the plain one."""
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, **kwargs: torch.empty_like(q)
    )


@pytest.mark.parametrize("config", [pc.PIXART_1024_MS, pc.PIXART_512, pc.PIXART_256, nano_config()])
def test_transformer_weights_are_counted(config):
    model = pc.PixArt(config, device="meta")
    y_embedding = config.model_max_length * config.caption_channels
    assert transformer_parameters(config) == sum(p.numel() for p in model.parameters()) + y_embedding


def test_t5_xxl_is_counted():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    with torch.device("meta"):
        model = T5EncoderModel(config)
    assert TextShape.from_config(config.to_dict()) == T5_XXL
    assert T5_XXL.linears + T5_XXL.others == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_quantised_bytes_are_those_in_memory(nano, quantization):
    text = TextEncoder.from_pretrained(nano, dtype=torch.bfloat16, quantization=quantization)
    used = 0
    for weight in text.load().parameters():
        used += weight.numel() * weight.element_size()
        if getattr(weight, "SCB", None) is not None:
            used += weight.SCB.numel() * 4
        if getattr(weight, "quant_state", None) is not None:
            used += weight.quant_state.absmax.numel() * 4
    shape = TextShape.from_config(text.config)
    assert shape.weight_bytes(torch.bfloat16, quantization) == pytest.approx(used, rel=1e-3)


def test_autoencoders_are_counted(nano):
    assert VaeShape.from_module(AutoencoderKL(KLConfig(), device="meta")) == AUTOENCODER_KL
    assert VaeShape.from_module(load_vae(nano)).channels == 8


@pytest.mark.parametrize("guidance", [False, True])
def test_sampling_activations_are_what_a_forward_needs(flash_attention, guidance):
    config = pc.PixArtConfig(depth=3)  # the width of the released models; depth does not matter to the peak
    model = pc.PixArt(config, dtype=torch.bfloat16, device="meta")
    rows = 2 if guidance else 1
    inputs = (
        torch.empty(rows, 4, 128, 96, device="meta"),
        torch.empty(rows, device="meta"),
        torch.empty(rows, 120, 4096, device="meta", dtype=torch.bfloat16),
        torch.empty(rows, 120, device="meta", dtype=torch.int64),
    )
    model.position_grid(inputs[0])  # kept from picture to picture
    with torch.no_grad(), PeakBytes(model) as peak:
        model(*inputs)
    plan = memory_plan(config, height=1024, width=768, dtype=torch.bfloat16, guidance=guidance)
    assert plan["sample"].activations == pytest.approx(peak.peak / 1e9, rel=0.15)


class PeakOnCuda(PeakBytes):
    """With the copies that cuDNN makes of a half-precision convolution's input and output, channels last: its tensor
    cores read no other order. Kernels that do it address up to 2^29 numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.convolution.default:
            numbers = [args[0].numel(), out.numel()]
            if out.dtype.itemsize == 2 and max(numbers) < 2**29:
                self.peak = max(self.peak, self.live + out.itemsize * sum(numbers))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderTiny])
@pytest.mark.parametrize("side", [512, 1024, 1536, 2048])
def test_decoding_activations_are_what_a_decode_needs(flash_attention, kind, dtype, side):
    vae = kind(KLConfig() if kind is AutoencoderKL else TinyConfig(), device="meta", dtype=dtype)
    with torch.no_grad(), PeakOnCuda(vae) as peak:
        vae.decode(torch.empty(2, 4, side // 8, 3 * side // 32, device="meta", dtype=dtype))
    expected = VaeShape.from_module(vae).activation_bytes(2, side, 3 * side // 4, dtype)
    assert expected == pytest.approx(peak.peak, rel=0.05)


@pytest.mark.parametrize(("side", "measured"), [(1024, 2.55), (2048, 6.7)])
def test_the_plan_of_a_decode_is_what_a_gpu_showed(side, measured):
    """One H200, torch 2.11, bfloat16, above the weights."""
    plan = memory_plan(pc.PIXART_1024_MS, height=side, width=side, dtype=torch.bfloat16)
    assert plan["decode"].activations == pytest.approx(measured, rel=0.1)


def test_a_decode_in_tiles_is_measured_too(flash_attention):
    vae, latent = AutoencoderKL(KLConfig(), device="meta"), torch.empty(1, 4, 256, 192, device="meta")
    with torch.no_grad(), PeakBytes(vae) as peak:
        _tiled(lambda part: vae.decode(part).sample, latent, 512)
    plan = memory_plan(pc.PIXART_1024_MS, height=2048, width=1536, dtype=torch.float32, tile=512)["decode"]
    assert plan.activations == pytest.approx(peak.peak / 1e9, rel=0.1)
    assert memory_plan(pc.PIXART_1024_MS, tile=1024) == memory_plan(pc.PIXART_1024_MS)


def test_8_bit_recipe_stays_under_8_gb():
    plan = memory_plan(pc.PIXART_1024_MS, dtype=torch.bfloat16, quantization="int8")
    assert plan.peak < 8 and plan.peak == plan["encode"].total == pytest.approx(5.9, abs=0.1)
    assert plan["sample"].text == plan["decode"].text == plan["encode"].transformer == 0
    assert plan["sample"].total < 2 and plan["decode"].total < 3
    assert memory_plan(pc.PIXART_1024_MS, dtype=torch.bfloat16, quantization="int4").peak < 5
    assert memory_plan(pc.PIXART_1024_MS, dtype=torch.bfloat16).peak > 9.5
    guided = memory_plan(pc.PIXART_1024_MS, dtype=torch.bfloat16, quantization="int8", guidance=True, batch=2)
    assert guided["sample"].activations == pytest.approx(4 * plan["sample"].activations)


def test_keeping_everything_adds_up():
    plan = memory_plan(pc.PIXART_1024_MS, dtype=torch.bfloat16, keep=True)
    weights = {(stage.text, stage.transformer, stage.vae) for stage in plan.stages}
    assert len(weights) == 1 and plan.peak == pytest.approx(sum(*weights) + plan["decode"].activations)


def test_plan_as_a_table():
    lines = str(
        memory_plan(pc.PIXART_1024_MS, dtype=torch.bfloat16, quantization="int8", width=1280, height=768)
    ).splitlines()
    assert lines[0].startswith("memory for 1 x 1280x768 px, bfloat16, text encoder int8, each model leaves")
    assert [line.split()[0] for line in lines[1:5]] == ["GB", "encode", "sample", "decode"]
    assert len({len(line) for line in lines[1:5]}) == 1 and lines[5].startswith("peak 5.9")
    nano = memory_plan(nano_config(), dtype=torch.bfloat16)  # no T5-XXL for a model that could not read it
    assert nano["encode"].total == nano["decode"].total == 0 and "MB" in str(nano)


def test_unknown_quantization():
    with pytest.raises(ValueError, match="choose one of none, int8, int4"):
        memory_plan(pc.PIXART_1024_MS, quantization="fp8")
