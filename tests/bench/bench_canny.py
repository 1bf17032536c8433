"""A ControlNet of another hint than the paper's: Canny edges (nano family).

    python tests/bench/bench_canny.py FOLDER [--pictures 6000] [--steps 2500] [--sheet SHEET.png]

Drawn scenes and their edges as OpenCV's Canny finds them (thresholds 100 and 200) train a ControlNet of the bundled
base model; the edges are files, taken with `hints=folder`. Then held-out scenes: how far the edges of what the 4-step
model makes of their captions agree with theirs (F1), at strength 0, 0.5 and 1. All that is made lies in FOLDER; what is
there is not made again. Exits with 1 unless F1 at strength 1 is 0.25 above that at strength 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.bench_style import BASE, NANO, run  # noqa: E402

GAIN = 0.25
"""What F1 has to gain from strength 0 to 1."""
STRENGTHS = (0.0, 0.5, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=6000, help="that are learned from")
    parser.add_argument("--steps", type=int, default=2500, help="of the training")
    parser.add_argument("--count", type=int, default=40, help="scenes that are measured on")
    parser.add_argument("--sheet", type=Path, help="PNG file: scene, edges and pictures at each strength")
    options = parser.parse_args()
    from tests.conftest import _register_root  # the root as the package that `training` needs

    _register_root()
    from pixart_delta.pixart_core.pipeline import Pipeline
    from pixart_delta.training.nano.evaluate_control import ControlTest

    control = train(options.folder.absolute(), options.pictures, options.steps)
    test = ControlTest(lambda pictures: [canny(picture) for picture in pictures], options.count)
    pipeline = Pipeline.from_pretrained(NANO, torch.float32, controlnet=control)
    results, marks = [], {}
    for strength in STRENGTHS:
        made, marks[strength] = test.run(pipeline, strength, steps=4, sampler="lcm", guidance=None)
        results.append(made)
        print(json.dumps({"strength": strength, **marks[strength]}), flush=True)
    if options.sheet:
        test.sheet(results, range(8)).save(options.sheet)
    return int(marks[1.0]["f1"] - marks[0.0]["f1"] < GAIN)


def canny(picture: Image.Image) -> torch.Tensor:
    """Edges (1, H, W, 1) of a picture, 0 or 1."""
    edges = cv2.Canny(np.asarray(picture.convert("RGB")), 100, 200)
    return torch.from_numpy(edges.astype(np.float32) / 255)[None, :, :, None]


def train(folder: Path, pictures: int, steps: int) -> Path:
    """The ControlNet."""
    made = folder / "run" / "exports" / "controlnet.safetensors"
    if made.exists():
        return made
    scenes, hints = folder / "pictures", folder / "hints"
    if not (scenes / f"{pictures - 1:06d}.txt").exists():
        run("nano", {}, "scenes", scenes, "--pictures", pictures)
    hints.mkdir(exist_ok=True)
    for file in sorted(scenes.glob("*.png")):
        if not (hints / file.name).exists():
            cv2.imwrite(str(hints / file.name), cv2.Canny(np.asarray(Image.open(file).convert("RGB")), 100, 200))
    data = {"input": scenes, "output": folder / "features", "models": NANO, "resolution": 128, "max_tokens": 40}
    run("prepare", data | {"hints": "folder", "hint_folder": hints, "workers": 0})
    values = {"data": folder / "features", "base": BASE, "run": folder / "run", "steps": steps, "workers": 0}
    run("controlnet", values, "--config", ROOT / "training" / "recipes" / "nano_controlnet.json")
    return made


if __name__ == "__main__":
    sys.exit(main())
