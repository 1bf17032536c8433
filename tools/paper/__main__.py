"""Draw the paper's figures anew on the nano family: train, measure, plot, and say what came out.

    python -m tools.paper [FIGURE …] [--work FOLDER]    e.g. python -m tools.paper 3 loss
    python -m tools.paper --list
    python -m tools.paper --check [FIGURE …]            recompute the beginnings, and compare
    python -m tools.paper --scale 0.05 3                a rehearsal: everything small, in the work folder

Every figure is restartable: what was trained and measured is kept in the work folder. Pictures and figures go to
docs/paper, and docs/paper.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..comfy_server import ROOT
from . import family, page, plots
from .figures import FIGURES
from .work import CAPTIONS, Workshop, circumstances

PREFIX = 10
"""Steps of a training that --check repeats."""
LOSS_TOLERANCE = 0.02
"""By which a loss may differ from the one that is written down, as a share of it: other CPUs round otherwise."""
MARK_TOLERANCE = 2.0
"""Points, of attributes right."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["7", *FIGURES]
    parser.add_argument("figures", nargs="*", help=f"which: {', '.join(names)}; all when none is named")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "paper", help="where trainings are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: a rehearsal of so large a part")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.list:
        for name in names:
            print(f"{name:8} {family.PAPER if name == '7' else FIGURES[name].paper}")
        return 0
    if unknown := sorted(set(options.figures) - set(names)):
        parser.error(f"no figure {', '.join(unknown)}; there are: {', '.join(names)}")
    shop = Workshop(options.work, options.scale)
    place = ROOT / "docs" / "paper" if options.scale == 1 else shop.folder / "paper"
    if options.check:
        return check(shop, place, options.figures or names)
    place.mkdir(parents=True, exist_ok=True)
    for name in options.figures or names:
        started = time.monotonic()
        found = draw_family(shop, place) if name == "7" else draw(shop, place, name)
        found |= {"seconds": round(time.monotonic() - started), "made_with": circumstances()}
        (place / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{name}: {found['verdict']}", flush=True)
    page.write(place)
    return 0


def draw(shop: Workshop, place: Path, name: str) -> dict[str, Any]:
    """Train and measure a figure of `FIGURES`, and write its pictures."""
    figure, found, runs = FIGURES[name], {}, {}
    for label, changed in figure.variants.items():
        print(f"{name}: {label}", flush=True)
        runs[label] = shop.run(figure, changed)
        found[label] = shop.measure(figure, runs[label])
    pictures = [f"{name}.png"]
    plots.plot(found, place / pictures[0])
    if name == "3":
        pictures.insert(0, "3_schedules.png")
        plots.plot_schedules(place / pictures[0])
    if figure.strip:
        pictures.append(f"{name}_strip.png")
        plots.strip(shop.samples(figure, next(iter(runs.values()))), place / pictures[-1])
    return {
        "paper": figure.paper,
        "verdict": figure.sentence(found),
        "pictures": pictures,
        "command": figure.command,
        "settings": {label: shop.values(figure, changed) for label, changed in figure.variants.items()},
        "first_losses": {label: shop.losses(run)[:PREFIX] for label, run in runs.items()},
        "trained_seconds": {label: shop.seconds(run) for label, run in runs.items()},
        "found": found,
    }


def draw_family(shop: Workshop, place: Path) -> dict[str, Any]:
    found = family.measure(shop.scaled(CAPTIONS, 12), place / "7.png")
    return {"paper": family.PAPER, "verdict": family.sentence(found), "pictures": ["7.png"], "found": found}


def check(shop: Workshop, place: Path, names: Sequence[str]) -> int:
    """Whether the bundled weights still get their marks, and trainings still begin as they are written down."""
    worst = 0
    for name in names:
        file = place / f"{name}.json"
        if not file.exists():
            print(f"{name}: never drawn")
            continue
        known = json.loads(file.read_text(encoding="utf-8"))
        differences = _family_differs(shop, known) if name == "7" else _losses_differ(shop, name, known)
        for label, (difference, tolerance) in differences.items():
            holds = difference <= tolerance
            worst |= not holds
            print(f"{name}, {label}: differs by {difference:.3g}, {tolerance:g} allowed: {'ok' if holds else 'WRONG'}")
    return worst


def _family_differs(shop: Workshop, known: dict) -> dict[str, tuple[float, float]]:
    found = family.measure(shop.scaled(CAPTIONS, 12))
    marks = (label for label in known["found"] if not label.endswith("seconds"))
    return {label: (abs(found[label] - known["found"][label]), MARK_TOLERANCE) for label in marks}


def _losses_differ(shop: Workshop, name: str, known: dict) -> dict[str, tuple[float, float]]:
    out = {}
    for label, changed in FIGURES[name].variants.items():
        before = known["first_losses"][label]
        now = shop.losses(shop.run(FIGURES[name], changed, steps=len(before)))
        out[label] = (max(abs(a - b) / abs(b) for a, b in zip(now, before, strict=True)), LOSS_TOLERANCE)
    return out


if __name__ == "__main__":
    sys.exit(main())
