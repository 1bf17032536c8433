"""torch.compile without a graph for every size: sizes are dynamic, and Dynamo's limit is never reached."""

import pytest
import torch
from pixart_delta.pixart_core.checkpoint import save_pixart
from pixart_delta.pixart_core.layers import compile_blocks
from pixart_delta.training.config import make_config
from pixart_delta.training.data.draws import Draws
from pixart_delta.training.tasks import TASKS
from torch._dynamo.testing import CompileCounter

from tests.fixtures_nano import nano_config, random_pixart

BUCKETS = [(8, 8), (6, 10), (10, 6), (4, 14), (16, 4)]
CAPTIONS = [8, 16, 24, 40]


@pytest.fixture
def counter():
    """Counts graphs; reaching the limit, where Dynamo gives up in silence, is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield CompileCounter()
    torch._dynamo.reset()


def batch(size, length, rows=2):
    return {
        "latent": torch.randn(rows, 4, *size),
        "caption": torch.randn(rows, length, 64),
        "caption_mask": torch.ones(rows, length),
        "image_size": torch.full((rows, 2), 64.0),
        "aspect_ratio": torch.ones(rows, 1),
    }


@pytest.mark.parametrize("precision,keep", [("fp32", False), ("bf16", False), ("bf16", True)])
def test_a_training_over_all_buckets_and_caption_lengths(precision, keep, tmp_path, counter):
    """Student with a gradient, recomputed; teacher and average without: as many graphs as these, whatever the sizes."""
    base = save_pixart(random_pixart(nano_config()), tmp_path / "base.safetensors")
    values = {"run": "r", "data": "d", "base": str(base), "precision": precision, "gradient_checkpointing": True}
    values["keep_attention"] = keep
    task = TASKS["lcd"](make_config("lcd", values))
    task.compile(backend=counter)
    counts = []
    for index, size in enumerate(BUCKETS):
        for length in CAPTIONS:
            with task.autocast():
                loss = task.loss(task.model, batch(size, length), Draws(0, index, 0, 2, slice(None)))
            loss.backward()
        counts.append(counter.frame_count)
    assert 0 < counts[-1] <= 6 and counts[-1] == counts[0]


@torch.no_grad()
def test_pictures_of_all_sizes_and_prompts(counter):
    """Also after a LoRA, in place or not."""
    model = random_pixart(nano_config())
    values = batch((8, 8), 8)
    plain = model(values["latent"], torch.tensor([999, 999]), values["caption"], values["caption_mask"])
    compile_blocks(model, backend=counter)
    for size in BUCKETS:
        for length in CAPTIONS:
            each = batch(size, length)
            model(each["latent"], torch.tensor([999, 999]), each["caption"], each["caption_mask"])
    out = model(values["latent"], torch.tensor([999, 999]), values["caption"], values["caption_mask"])
    assert torch.allclose(out, plain, atol=1e-4) and counter.frame_count <= 2
    before = counter.frame_count
    for block in model.blocks:
        block.mlp.fc1.weight.add_(0.1)
        block.attn.qkv.weight = torch.nn.Parameter(block.attn.qkv.weight * 1.1)
    changed = model(values["latent"], torch.tensor([999, 999]), values["caption"], values["caption_mask"])
    assert counter.frame_count <= before + 1 and not torch.allclose(changed, plain, atol=1e-4)
