"""An 8-bit transformer on this CPU: what torch's dynamic int8 products gain, and what they cost the bundled model.

    python -m tools.bench int8 [--count 200] [--seeds 1]

Speed: a forward of two blocks of the released models at 512 px, in CPU seconds, the best of several in turns; all 28
are alike. Quality: attributes right of the bundled student's pictures, over captions that nothing was trained on. To be
offered, the 8 bits have to stay within 1 point at 4 steps and be 1.2 times as fast. Weights are in 8 bits a
channel, activations a tensor, as `torch.ao.quantization` has it; the ends of the model stay float32. torch's other
product of int8, `_int_mm`, on which ComfyUI's int8 format computes, is timed beside it.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

import pixart_core as pc
from pixart_core.int8 import quantize_blocks
from tests import conftest  # registers the root folder as a package

NANO = conftest.ROOT / "models" / "nano"


def seconds(calls: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """Best CPU seconds of each: what else the machine does shall not decide."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begin)
    return best


@torch.no_grad()
def speed() -> float:
    """Prints times; how many times as fast the blocks are in int8."""
    config = pc.PixArtConfig(**{**pc.PIXART_1024_MS.to_dict(), "depth": 2})
    plain = pc.PixArt(config).initialize_weights().eval()
    small = quantize_blocks(copy.deepcopy(plain))
    latent, caption = torch.randn(1, 4, 64, 64), torch.randn(1, 40, config.caption_channels)
    arguments = latent, torch.tensor([999]), caption
    blocks = seconds({"float32": lambda: plain(*arguments), "int8": lambda: small(*arguments)})
    print(f"two blocks at 512 px: float32 {blocks['float32']:.2f}, int8 {blocks['int8']:.2f} CPU s")
    x, weight = torch.randn(256, 1152), torch.randn(1152, 1152)
    eight = weight.mul(40).round().clamp(-127, 127).to(torch.int8)
    products = seconds(
        {
            "float32": lambda: x @ weight,
            "_int_mm": lambda: torch._int_mm(x.mul(40).round().clamp(-127, 127).to(torch.int8), eight),
        },
        rounds=2,
    )
    print(f"a product by _int_mm: {products['float32'] / products['_int_mm']:.2f} x as fast as float32")
    return blocks["float32"] / blocks["int8"]


def quality(count: int, seeds: int) -> dict[tuple[str, int], float]:
    """(kind, steps) -> percent of attributes right."""
    evaluate = importlib.import_module("pixart_delta.training.nano.evaluate")
    pipelines = {"float32": pc.Pipeline.from_pretrained(NANO, torch.float32, "cpu")}
    plain = pipelines["float32"]
    pipelines["int8"] = pc.Pipeline(quantize_blocks(copy.deepcopy(plain.transformer)), plain.text, plain.vae)
    prompts, found = evaluate.held_out_prompts(count * seeds), {}
    for steps in (4, 1):
        for name, pipeline in pipelines.items():
            parts = [prompts[index::seeds] for index in range(seeds)]
            marks = [evaluate.score(evaluate.pictures(pipeline, part, steps=steps), part)["all"] for part in parts]
            found[name, steps] = statistics.fmean(marks)
            print(f"{steps} steps, {name}: {found[name, steps]:.1f} % of attributes right", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="captions of each seed")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    faster, marks = speed(), quality(options.count, options.seeds)
    lost = {steps: marks["float32", steps] - marks["int8", steps] for steps in (4, 1)}
    print(f"\nint8: {faster:.2f} x as fast; loses {lost[4]:.1f} points at 4 steps, {lost[1]:.1f} at 1")
    print(f"worth an option here: {'yes' if faster >= 1.2 and lost[4] <= 1 else 'no'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
