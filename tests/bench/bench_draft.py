"""How well one step foretells four: drafts and the pictures that come of them, from the same noise (nano family).

    python tests/bench/bench_draft.py [--count 48] [--captions 4] [--sheet SHEET.png]

A caption's pictures of one step are compared with those of more steps from the same noise, and with those that are made
of the drafts themselves (image to image, 4 steps on the last part of the schedule). What all pictures of a caption have
in common says nothing about the choice between them, so it is taken away first (their mean). Then: the correlation of a
draft with its picture; how often its own picture is the nearest of all (chance is one in as many); SSIM; how often a
checker reads the same attributes in both; and how many attributes of the picture are the caption's. Exits with 1 when
fewer than three in five pictures that were made of a draft are nearest to it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LIMIT = 0.6
SIDE = 32
"""Pictures are compared at this size: composition, not the last pixel."""
WAYS = ((2, None), (4, None), (4, 0.75), (4, 0.5))
"""Steps, and the part of the schedule that is run on a draft; None: all of it, from the draft's noise."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=48, help="pictures of a caption")
    parser.add_argument("--captions", type=int, default=4)
    parser.add_argument("--sheet", type=Path, help="PNG file: drafts, and below them what came of them")
    options = parser.parse_args()
    from tests.conftest import _register_root  # the root as the package that `training` needs

    _register_root()
    import pixart_delta.training.nano.evaluate as nano
    from pixart_delta.pixart_core.pipeline import Pipeline
    from pixart_delta.training.nano.checker import read_scene
    from pixart_delta.training.sampling import contact_sheet, pictures

    pipeline = Pipeline.from_pretrained(ROOT / "models" / "nano", torch.float32)
    held_out = [each for each in nano.held_out_prompts(8 * options.captions) if each[2] == (128, 128)]
    figures: dict[tuple, list[dict[str, float]]] = {way: [] for way in WAYS}
    for index, (scene, prompt, _) in enumerate(held_out[: options.captions]):
        drafts = draw(pipeline, prompt, 1, options.count)
        rows = [pictures(pipeline.vae, drafts)]
        seen = [read_scene(picture) for picture in rows[0]]
        for steps, part in WAYS:
            if part is None:
                latents = draw(pipeline, prompt, steps, options.count)
            else:
                latents = finish(pipeline, prompt, drafts, steps, part)
            rows.append(pictures(pipeline.vae, latents))
            scenes = [read_scene(picture) for picture in rows[-1]]
            found = compare(rows[0], rows[-1])
            found["same attributes"] = alike(zip(seen, scenes, strict=True))
            found["right"] = alike((scene, each) for each in scenes)
            figures[steps, part].append(found)
        print(
            f"caption {index + 1}: attributes right in the drafts {alike((scene, each) for each in seen):.2f}",
            flush=True,
        )
        if index == 0 and options.sheet:
            contact_sheet([row[:12] for row in rows]).save(options.sheet)
    for (steps, part), found in figures.items():
        mean = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        how = "from the same noise" if part is None else f"on the draft, denoise {part}"
        print(
            f"{steps} steps {how}, {options.count} pictures of {len(found)} captions: "
            + ", ".join(f"{name} {value:.2f}" for name, value in mean.items()),
            flush=True,
        )
    return 0 if np.mean([each["found"] for each in figures[4, 0.5]]) >= LIMIT else 1


@torch.no_grad()
def draw(pipeline, prompt: str, steps: int, count: int) -> torch.Tensor:
    """Latents; the starting noise is the same for any number of steps."""
    return pipeline.sample(prompt, steps=steps, seed=7, width=128, height=128, batch=count)


@torch.no_grad()
def finish(pipeline, prompt: str, drafts: torch.Tensor, steps: int, part: float) -> torch.Tensor:
    """Drafts made better, as PixArt-δ LCM Sampler does with `denoise`."""
    from pixart_delta.pixart_core.lcm import lcm_timesteps, sample_lcm
    from pixart_delta.pixart_core.sampling import guided
    from pixart_delta.pixart_core.schedule import add_noise

    caption, mask = pipeline.text.encode([prompt], pipeline.transformer.config.model_max_length)
    conditions = {"caption": caption.repeat(len(drafts), 1, 1), "caption_mask": mask.repeat(len(drafts), 1)}
    generator, timesteps = torch.Generator().manual_seed(7), lcm_timesteps(steps, strength=part)
    noise = torch.randn(drafts.shape, generator=generator)
    start = add_noise(drafts, noise, torch.full((len(drafts),), timesteps[0]))
    return sample_lcm(guided(pipeline.transformer, conditions, 1.0), start, timesteps, generator=generator)


def alike(pairs) -> float:
    """Share of attributes that are the same in pairs of scenes."""
    from pixart_delta.training.nano.scenes import ATTRIBUTES

    return float(np.mean([getattr(one, name) == getattr(other, name) for one, other in pairs for name in ATTRIBUTES]))


def compare(drafts: list, finals: list) -> dict[str, float]:
    """Figures of one caption, each 0 … 1 (correlation -1 … 1)."""
    one, other = (own_part(each) for each in (drafts, finals))
    likeness = one @ other.T
    return {
        "correlation": float(np.diag(likeness).mean()),
        "found": float((likeness.argmax(1) == np.arange(len(one))).mean()),
        "SSIM": float(np.mean([ssim(a, b) for a, b in zip(drafts, finals, strict=True)])),
    }


def own_part(pictures: list) -> np.ndarray:
    """(N, SIDE² · 3): each picture less the mean of all, of length 1, so that a product is a correlation."""
    small = np.stack([np.asarray(picture.resize((SIDE, SIDE)), np.float32).ravel() for picture in pictures])
    own = small - small.mean(0)
    own -= own.mean(1, keepdims=True)
    return own / np.linalg.norm(own, axis=1, keepdims=True)


def ssim(one, other) -> float:
    """Mean structural similarity of grey values in windows of 8 px (Wang et al. 2004, uniform windows)."""
    a, b = (
        torch.nn.functional.unfold(torch.from_numpy(np.asarray(p.convert("L"), np.float32))[None, None], 8, stride=4)[0]
        for p in (one, other)
    )
    ma, mb, va, vb = a.mean(0), b.mean(0), a.var(0), b.var(0)
    cov = ((a - ma) * (b - mb)).sum(0) / (len(a) - 1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


if __name__ == "__main__":
    sys.exit(main())
