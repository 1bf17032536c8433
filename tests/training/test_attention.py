"""What replaces fused operations on a CPU is the same function with the same gradient."""

import pytest
import torch
from pixart_delta.pixart_core.functional import attention, gelu
from pixart_delta.training.task import plain_attention


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_attention(masked):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 5, 8, generator=generator, requires_grad=True)
    k, v = torch.randn(3, 7, 16, generator=generator, requires_grad=True).chunk(2, -1)
    mask = (torch.arange(7) < torch.tensor([[7], [1], [4]]))[:, None] if masked else None
    outs = [call(q, k, v, 2, mask) for call in (attention, plain_attention)]
    assert torch.allclose(*outs, atol=1e-6)
    gradients = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in outs]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_compiled_gelu_is_gelu():
    x = torch.linspace(-8, 8, 1001, requires_grad=True)
    compiled = torch.compile(gelu, backend="eager")
    assert torch.allclose(compiled(x), gelu(x), atol=1e-6)
    one, other = (torch.autograd.grad(call(x).sum(), x)[0] for call in (compiled, gelu))
    assert torch.allclose(one, other, atol=1e-6)
