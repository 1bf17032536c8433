"""What is kept for the backward pass and what is computed again: gradient_checkpointing with keep_attention."""

import pytest
import torch
from pixart_delta.pixart_core.checkpoint import save_pixart
from pixart_delta.training import task as tasks
from pixart_delta.training.config import ConfigError, make_config
from pixart_delta.training.data.draws import Draws
from pixart_delta.training.estimate import estimate
from pixart_delta.training.tasks import TASKS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from tests.fixtures_nano import nano_config, random_pixart

CONFIG = nano_config(depth=3)
COMMANDS = ["finetune", "lcd", "lcm-lora", "controlnet"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_pixart(random_pixart(CONFIG), tmp_path_factory.mktemp("base") / "base.safetensors")


def make(command, base, **values):
    copies = {"copy_blocks": 2} if command == "controlnet" else {}
    common = {"run": "r", "data": "d", "base": str(base), "gradient_checkpointing": True, "precision": "fp32"}
    return TASKS[command](make_config(command, {**common, **copies, **values}))


def loss_of(task):
    generator = torch.Generator().manual_seed(0)
    batch = {
        "latent": torch.randn(2, 4, 6, 10, generator=generator),
        "hint": torch.randn(2, 4, 6, 10, generator=generator),
        "caption": torch.randn(2, 7, CONFIG.caption_channels, generator=generator),
        "caption_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        "image_size": torch.tensor([[48.0, 80.0]]).repeat(2, 1),
        "aspect_ratio": torch.full((2, 1), 0.6),
    }
    with task.autocast():
        return task.loss(task.model, batch, Draws(1, 5, 0, 2, slice(None)))


class Attention(TorchDispatchMode):
    """Counts attention among the tokens, and from the tokens to the caption; not its backward pass."""

    def __init__(self):
        super().__init__()
        self.among, self.to_caption = 0, 0

    def __torch_dispatch__(self, function, types, inputs=(), options=None):
        if function.overloadpacket in tasks._ATTENTION:
            same = inputs[0].shape[2] == inputs[1].shape[2]
            self.among, self.to_caption = self.among + same, self.to_caption + (not same)
        return function(*inputs, **(options or {}))


def backward(task):
    """(attentions among tokens, to the caption) that the backward pass computes, and the gradients."""
    loss = loss_of(task)
    with Attention() as seen:
        loss.backward()
    gradients = {name: each.grad for name, each in task.model.named_parameters() if each.grad is not None}
    return (seen.among, seen.to_caption), gradients


@pytest.mark.parametrize("command", COMMANDS)
def test_kept_attention_is_not_computed_again_and_changes_no_gradient(command, base):
    """While that to the caption, and all else, is."""
    (again, caption), expected = backward(make(command, base))
    (kept, caption_still), gradients = backward(make(command, base, keep_attention=True))
    assert again > 0 == kept and caption == caption_still > 0
    assert expected.keys() == gradients.keys() and all(torch.equal(gradients[n], expected[n]) for n in expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_also_in_half_precision(precision, base):
    (kept, caption), gradients = backward(make("lcd", base, keep_attention=True, precision=precision))
    _, expected = backward(make("lcd", base))
    assert kept == 0 < caption
    near = [torch.nn.functional.cosine_similarity(gradients[n].flatten(), expected[n].flatten(), 0) for n in expected]
    assert torch.stack(near).mean() > 0.98


def test_also_compiled(base, monkeypatch):
    """Blocks are a graph each then, whose operations are looked at as it runs."""
    answers, policy = [], tasks._policy

    def watched(context, operation, *inputs, **options):
        answers.append((context.is_recompute, policy(context, operation, *inputs, **options)))
        return answers[-1][1]

    monkeypatch.setattr(tasks, "_policy", watched)
    task = make("lcd", base, keep_attention=True)
    torch._dynamo.reset()
    task.compile(backend="aot_eager")
    loss_of(task).backward()
    torch._dynamo.reset()
    kept = [recomputed for recomputed, answer in answers if answer == CheckpointPolicy.MUST_SAVE]
    assert kept == [False] * CONFIG.depth
    _, expected = backward(make("lcd", base))
    gradients = {name: each.grad for name, each in task.model.named_parameters() if each.grad is not None}
    assert all(torch.allclose(gradients[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_estimate_counts_what_is_kept_and_what_is_not_computed_again(command, base):
    common = {"run": "r", "data": "d", "base": "b", "gradient_checkpointing": True, "precision": "fp16"}
    common |= {"copy_blocks": 2} if command == "controlnet" else {}
    plain, kept = (
        estimate(make_config(command, {**common, "batch_size": 2, "keep_attention": keep}), CONFIG, 96, 160)
        for keep in (False, True)
    )
    blocks = {"controlnet": 2 + CONFIG.depth - 1}.get(command, CONFIG.depth)
    one = 2 * (6 * 10) * CONFIG.hidden_size  # numbers a block, at a patch of 2
    assert kept.activations - plain.activations == 2 * one * blocks
    assert kept.flops < plain.flops and kept.weights == plain.weights


def test_keeping_without_recomputing_is_refused():
    with pytest.raises(ConfigError, match="gradient_checkpointing recomputes: set that to true"):
        make_config("lcd", {"run": "r", "data": "d", "base": "b", "keep_attention": True})
