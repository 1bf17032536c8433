"""What half precision costs in numbers, on the bundled models: of a one-step picture, and of what LCD learns from."""

import pytest
import torch
from pixart_delta.pixart_core.schedule import consistency

import pixart_core as pc
from tests.bench import bench_precision
from tests.bench.half import HalfByRounding


@pytest.fixture(scope="module")
def batch():
    return bench_precision.scenes(8, "cpu")


@pytest.fixture(scope="module")
def exact(batch):
    """One-step pictures in float32, 32 of them."""
    return bench_precision.one_step(batch, "cpu", torch.float32)


class HostOperations:
    """Layers that cast their weights to what comes in, as ComfyUI's do where it computes in another type."""

    class Linear(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.to(x), None if self.bias is None else self.bias.to(x))

    class Conv2d(torch.nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight.to(x), self.bias.to(x))


def deviation(found, exact):
    return ((found - exact).square().mean().sqrt() / exact.std()).item()


@pytest.mark.parametrize("dtype,most", [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_one_step(dtype, most, batch, exact):
    """The error of x₀ at t = 999, in standard deviations."""
    with HalfByRounding():
        assert 0 < deviation(bench_precision.one_step(batch, "cpu", dtype), exact) < most


@pytest.mark.parametrize("dtype,most", [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
@torch.no_grad()
def test_one_step_where_the_host_casts(dtype, most, batch, exact):
    whole = pc.load_pixart(bench_precision.NANO / "transformer", torch.float32)
    model = pc.PixArt(whole.config, operations=HostOperations)
    model.load_state_dict(whole.state_dict())
    found = []
    for seed in range(1, 5):
        noise = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(seed))
        t = torch.full((len(noise),), 999)
        conditions = batch["caption_mask"], batch["image_size"], batch["aspect_ratio"]
        with HalfByRounding():
            epsilon = model(noise, t, batch["caption"].to(dtype), *conditions)[:, :4]
        found.append(consistency(noise, epsilon, t))
    assert 0 < deviation(torch.cat(found), exact) < most


@pytest.mark.parametrize("command", ["lcd", "lcm-lora"])
def test_what_distillation_learns_from(command, batch):
    """In the default of GPUs, with the average and with blocks that are recomputed: a tenth may be rounding."""
    few = {name: each[:2] for name, each in batch.items()}
    expected = bench_precision.lcd_signal(few, "cpu", command, precision="fp32")
    with HalfByRounding():
        found = bench_precision.lcd_signal(few, "cpu", command, precision="fp16", gradient_checkpointing=True)
    for t in bench_precision.TIMESTEPS:
        assert 0 < (found[t] - expected[t]).abs().mean() / expected[t].abs().mean() < 0.10
