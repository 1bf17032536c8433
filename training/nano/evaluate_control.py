"""Measure how well a ControlNet is followed: edges of its pictures against the hint's, on scenes that were held out."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...pixart_core.controlnet import ControlNetTransformer
from ...pixart_core.hed import HED, detect, load_hed
from ...pixart_core.pipeline import Pipeline
from ..checkpoint import restore
from ..run_dir import RunDir
from ..sampling import contact_sheet
from .evaluate import held_out_prompts, pictures, resolution_of, score
from .worlds import WORLDS, Size, World, world_of

TOLERANCE = 1
"""Pixels that an edge may lie beside its place."""
_EDGE = 0.5
"""Soft edges above this count."""
_OUTLINE = 2
"""Pixels around a thing that still are its own edge."""


def soft_edges(hed: HED, made: Sequence[Image.Image]) -> list[Tensor]:
    """Edge maps (1, H, W, 1) of pictures of any sizes."""
    arrays = (np.asarray(picture.convert("RGB"), np.float32) / 255 for picture in made)
    return [detect(hed, torch.from_numpy(array)[None]) for array in arrays]


def edge_f1(found: Tensor, hint: Tensor, tolerance: int = TOLERANCE) -> float:
    """Agreement of two edge maps (1, H, W, 1): harmonic mean of precision and recall, 0 … 1.

    An edge pixel is right if the other map has one at most `tolerance` px away, in the 8-neighbourhood.
    """
    precision, recall = edge_recall(hint, found, tolerance), edge_recall(found, hint, tolerance)
    return 2 * precision * recall / max(precision + recall, 1e-9)


def edge_recall(found: Tensor, hint: Tensor, tolerance: int = TOLERANCE, within: Tensor | float = 1.0) -> float:
    """Share of the hint's edges, of those where `within` (1, 1, H, W) is 1, that have a found one beside them."""
    found, hint = ((edges > _EDGE).float().permute(0, 3, 1, 2) for edges in (found, hint))
    asked = hint * within
    return float((asked * _grown(found, tolerance)).sum() / asked.sum().clamp(min=1))


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask (N, 1, H, W) and what lies at most so many pixels beside it."""
    return F.max_pool2d(mask, 2 * pixels + 1, 1, pixels)


class ControlTest:
    """Held-out scenes, drawn, with their captions and edges; what a pipeline makes of these is compared with them.

    Args:
        find: pictures of any sizes -> their edge maps (1, H, W, 1).
        count: of the scenes.
        resolution: of the model, px.
        world: that the model was trained on.
    """

    def __init__(
        self,
        find: Callable[[Sequence[Image.Image]], list[Tensor]],
        count: int,
        resolution: int = 128,
        world: World = WORLDS[1],
    ):
        self.find, self.world, self.prompts = find, world, held_out_prompts(count, resolution, world)
        self.drawn = [world.draw(scene, size, seed) for seed, (scene, _, size) in enumerate(self.prompts)]
        self.edges = find(self.drawn)
        self.things = [self._things(*each) for each in zip(self.prompts, self.drawn, range(count), strict=True)]

    def _things(self, prompt: tuple[Any, str, Size], drawn: Image.Image, seed: int) -> Tensor:
        """Where things stand on the ground, with their outline: (1, 1, H, W), 1 there and 0 elsewhere."""
        scene, _, size = prompt
        bare = self.world.draw(self.world.bare(scene), size, seed)
        changed = (np.asarray(drawn) != np.asarray(bare)).any(-1)
        return _grown(torch.from_numpy(changed)[None, None].float(), _OUTLINE)

    def run(
        self, pipeline: Pipeline, strength: float, each: list[float] | None = None, **options
    ) -> tuple[list[Image.Image], dict[str, float]]:
        """The pictures, their mean F1, the share of the edges of things (where there are any) and of all else that is
        found in them, 0 … 1, and the share of attributes that they show, in percent; `each` gets every F1."""
        hints = [edges.expand(-1, -1, -1, 3) for edges in self.edges]
        made = pictures(pipeline, self.prompts, hints, strength, **options)
        found = self.find(made)
        agreement = [edge_f1(one, other) for one, other in zip(found, self.edges, strict=True)]
        if each is not None:
            each += agreement
        pairs = list(zip(found, self.edges, self.things, strict=True))
        of_things = [edge_recall(one, other, within=things) for one, other, things in pairs if things.any()]
        of_land = [edge_recall(one, other, within=1 - things) for one, other, things in pairs]
        return made, {
            "f1": statistics.fmean(agreement),
            **({"recall_things": statistics.fmean(of_things)} if of_things else {}),
            "recall_land": statistics.fmean(of_land),
            "attributes": score(made, self.prompts, self.world)["all"],
        }

    def sheet(self, results: list[list[Image.Image]], examples: Sequence[int], scale: int = 1) -> Image.Image:
        """A row for each example: the drawn scene, its edges, and every result."""
        maps = [Image.fromarray((255 * edges[0, :, :, 0].numpy()).round().astype(np.uint8)) for edges in self.edges]
        rows = [[column[index] for column in (self.drawn, maps, *results)] for index in examples]
        return contact_sheet(
            [
                [picture.convert("RGB").resize((picture.width * scale, picture.height * scale)) for picture in row]
                for row in rows
            ]
        )


def plot(points: list[tuple[int, float]], without: float, path: Path) -> None:
    """F1 over training steps as a picture, with the line that no control reaches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), marker="o", ms=3, label="with control")
    axes.axhline(without, color="grey", linestyle="--", label="without")
    axes.set(xlabel="training step", ylabel="F1 of edges", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def curve(run: Path, pipeline: Pipeline, measure: Callable[..., dict[str, float]]) -> list[tuple[int, float]]:
    """(step, F1 at strength 1) of every checkpoint of a `controlnet` run, oldest first; before the first step a control
    changes nothing, and is measured as none."""
    points, dtype = [(0, measure(0.0, step=0)["f1"])], pipeline.transformer.product_dtype
    for path in RunDir(run).checkpoints():
        task, _, _, step = restore(str(path))
        network = task.result()
        assert isinstance(network, ControlNetTransformer), f"{run} is no `controlnet` run"
        pipeline.controlnet = network.eval().to(pipeline.device, dtype)
        points.append((step, measure(1.0, step=step)["f1"]))
    return points


def main(arguments: list[str]) -> None:
    """Command line of `train.py nano evaluate_control`."""
    parser = argparse.ArgumentParser(prog="train.py nano evaluate_control", description=__doc__)
    parser.add_argument("models", type=Path, help="pipeline folder with hed/hed.safetensors")
    parser.add_argument("--controlnet", type=Path, help="another ControlNet than the folder's")
    parser.add_argument("--hed", type=Path, help="another edge detector than the folder's")
    parser.add_argument("--transformer", help="another transformer than the folder's")
    parser.add_argument("--sampler", choices=("lcm", "dpm"), default="lcm")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.5, 1])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sheet", type=Path, help="a row for each example: scene, edges, every strength (checkpoint)")
    parser.add_argument("--examples", type=int, nargs="+", default=list(range(12)), help="scenes in the sheet")
    parser.add_argument("--scale", type=int, default=1, help="of the sheet's pictures")
    parser.add_argument("--curve", type=Path, help="a `controlnet` run: measure its checkpoints instead, each scene")
    parser.add_argument("--plot", type=Path, help="PNG or SVG of F1 over the steps of --curve")
    options = parser.parse_args(arguments)
    pipeline = Pipeline.from_pretrained(options.models, transformer=options.transformer, controlnet=options.controlnet)
    find = partial(soft_edges, load_hed(options.hed or options.models / "hed" / "hed.safetensors"))
    test = ControlTest(find, options.count, resolution_of(pipeline), world_of(options.models))
    settings = {"steps": options.steps, "sampler": options.sampler, "guidance": options.guidance}
    results = []

    def measure(strength: float, **about) -> dict[str, float]:
        each: list[float] = []
        made, numbers = test.run(pipeline, strength, each, **settings)
        results.append(made)
        line: dict[str, Any] = {name: round(value, 3) for name, value in numbers.items()}
        if options.curve is not None:
            line["each"] = [round(value, 3) for value in each]
        print(json.dumps({**about, **settings, "strength": strength, "scenes": options.count, **line}), flush=True)
        return numbers

    if options.curve is not None:
        points = curve(options.curve, pipeline, measure)
        if options.plot is not None:
            plot(points, points[0][1], options.plot)
    else:
        for strength in options.strengths:
            measure(strength)
    if options.sheet is not None:
        test.sheet(results, options.examples, options.scale).save(options.sheet)
