"""What a LoRA learns from 20 pictures of one style (nano family), and what it forgets.

    python tests/bench/bench_style.py FOLDER [--steps 200] [--pictures 20] [--sheet SHEET.png]

Drawn scenes whose colours are mixed, always in the same way, are a style; 20 of them train a LoRA of the base. Then,
over captions that nothing was trained on and in 14 steps with guidance, without the LoRA and with it: the Fréchet
distance of pictures to held-out scenes in that style, and the attributes that a checker reads in them (with the LoRA,
once the colours are unmixed). All that is made lies in FOLDER: the same command again goes on. Exits with 1 unless the
distance falls by 30 %, attributes lose at most 5 points, and strength 0 is the base, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
NANO = ROOT / "models" / "nano"
BASE = NANO / "base" / "pixart_nano_base.safetensors"
MIXED = np.array([[0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.2, 0.0, 0.8]], np.float32)
"""The style: red, green and blue of it, of those of a scene. Nothing is cut off, so it can be undone."""
FALL, LOSS = 0.30, 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=20, help="that are learned from")
    parser.add_argument("--steps", type=int, default=200, help="of the training")
    parser.add_argument("--captions", type=int, default=100, help="that are measured on, more than 64")
    parser.add_argument(
        "--sheet", type=Path, help="PNG file: pictures of the style, and below without and with the LoRA"
    )
    options = parser.parse_args()
    from tests.conftest import _register_root  # the root as the package that `training` needs

    _register_root()
    from pixart_delta.training.sampling import contact_sheet

    folder = options.folder.absolute()
    learned = make_pictures(folder / "pictures", options.pictures)
    lora = train(folder, options.steps)
    measure = Measure(options.captions)
    print(json.dumps({"attributes of the style's own scenes, through the autoencoder": measure.ceiling()}), flush=True)
    before, plain = measure.draw()
    measure.apply(lora, 0.0)
    same = all(map(torch.equal, measure.draw(8)[0], before))
    measure.apply(lora, 1.0)
    after, styled = measure.draw()
    distances = [measure.distance(latents) for latents in (before, after)]
    attributes = [measure.score(plain), measure.score(unmixed(styled))]
    fall, loss = 1 - distances[1] / distances[0], attributes[0] - attributes[1]
    print(f"strength 0 is the base, bit for bit: {same}")
    print(f"distance {distances[0]:.2f} without, {distances[1]:.2f} with the LoRA: it falls by {fall:.0%}")
    print(f"attributes {attributes[0]:.1f} % without, {attributes[1]:.1f} % with it: {loss:.1f} points less")
    if options.sheet:
        contact_sheet([learned[:8], plain[:8], styled[:8]]).save(options.sheet)
    return int(fall < FALL or loss > LOSS or not same)


def mixed(picture: Image.Image, matrix: np.ndarray = MIXED) -> Image.Image:
    """A picture in the style, or with the inverse matrix out of it."""
    pixels = np.asarray(picture, np.float32) @ matrix.T
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def unmixed(pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures out of the style again."""
    return [mixed(picture, np.linalg.inv(MIXED)) for picture in pictures]


def make_pictures(folder: Path, count: int) -> list[Image.Image]:
    """Scenes of the part that is trained on, in the style, with their captions."""
    if not folder.exists():
        run("nano", {}, "scenes", folder, "--pictures", count, "--seed", 7)
        for file in folder.glob("*.png"):
            mixed(Image.open(file)).save(file)
    return [Image.open(file) for file in sorted(folder.glob("*.png"))]


def train(folder: Path, steps: int) -> Path:
    """The LoRA."""
    data = {"input": folder / "pictures", "output": folder / "features", "models": NANO, "resolution": 128}
    run("prepare", data | {"max_tokens": 40, "device": "cpu", "workers": 0})
    values = {"data": folder / "features", "base": BASE, "run": folder / "run", "steps": steps, "workers": 0}
    run("finetune", values, "--config", ROOT / "training" / "recipes" / "nano_finetune.json")
    return folder / "run" / "exports" / "lora.safetensors"


def run(command: str, values: dict, *arguments: object) -> None:
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    words = [sys.executable, "-u", ROOT / "training" / "train.py", command, *arguments, *settings]
    subprocess.run(list(map(str, words)), check=True)


class Measure:
    """Captions that nothing was trained on, and scenes of them in the style."""

    def __init__(self, captions: int):
        from pixart_delta.pixart_core.pipeline import Pipeline
        from pixart_delta.training.nano.evaluate import held_out_prompts
        from pixart_delta.training.nano.scenes import draw

        self.pipeline = Pipeline.from_pretrained(NANO, torch.float32, transformer=BASE)
        self.prompts, rng = held_out_prompts(captions), random.Random(1)
        self.scenes = [mixed(draw(scene, size, rng.randrange(2**31))) for scene, _, size in self.prompts * 4]
        self.reference = torch.cat([self._features(self._encode(scene)) for scene in self.scenes])

    def ceiling(self) -> float:
        """What is read in the style's own scenes, through the autoencoder and unmixed."""
        return self.score(
            unmixed(self._pictures([self._encode(scene)[0] for scene in self.scenes[: len(self.prompts)]]))
        )

    def apply(self, lora: Path, strength: float) -> None:
        from pixart_delta.pixart_core.delta import apply_lora
        from pixart_delta.pixart_core.lora import load_lora

        apply_lora(self.pipeline.transformer, load_lora(lora), strength)

    def draw(self, count: int | None = None) -> tuple[list[torch.Tensor], list[Image.Image]]:
        """Latents, each of its own noise, and their pictures; of all captions or the first."""
        made = []
        for index, (_, text, (height, width)) in enumerate(self.prompts[:count]):
            made += self.pipeline.sample(text, height=height, width=width, seed=index, sampler="dpm")
        return made, self._pictures(made)

    def distance(self, latents: list[torch.Tensor]) -> float:
        from pixart_delta.training.nano.frechet import frechet_distance

        return frechet_distance(torch.cat([self._features(latent[None]) for latent in latents]), self.reference)

    def score(self, drawn: list[Image.Image]) -> float:
        """Attributes right, in percent."""
        from pixart_delta.training.nano.evaluate import score

        return score(drawn, self.prompts)["all"]

    def _pictures(self, latents: list[torch.Tensor]) -> list[Image.Image]:
        from pixart_delta.training.sampling import pictures

        return pictures(self.pipeline.vae, latents)

    def _features(self, latent: torch.Tensor) -> torch.Tensor:
        from pixart_delta.training.nano.frechet import features

        return features(latent)

    def _encode(self, picture: Image.Image) -> torch.Tensor:
        from pixart_delta.pixart_core.vae import encode

        return encode(self.pipeline.vae, torch.from_numpy(np.asarray(picture, np.float32) / 255)[None])


if __name__ == "__main__":
    sys.exit(main())
