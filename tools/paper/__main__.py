"""Draw the paper's figures anew on the nano family: train, measure, plot, and say what came out.

    python -m tools.paper [FIGURE …] [--work FOLDER]    e.g. python -m tools.paper 3 loss
    python -m tools.paper --list
    python -m tools.paper --check [FIGURE …]            recompute points and beginnings, and compare
    python -m tools.paper --scale 0.05 3                a rehearsal: everything small, in the work folder

Every figure is restartable: what was trained and measured is kept in the work folder. Pictures and figures go to
docs/paper, and docs/paper.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..comfy_server import ROOT
from . import family, page, plots, seeds, tables, verdict
from .figures import COMMON, FIGURES, SEEDS, Figure
from .work import CAPTIONS, NANO, NOISES, Stopwatch, Workshop, circumstances
from .work import family as of_family

PREFIX = 3
"""Steps of a training that --check repeats. AdamW's first steps are as large for next to no gradient as for any other,
so that rounding grows: of one seed CPUs differed by 0.05 % in the third step, and by 6 % in the fifth."""
LOSS_TOLERANCE = 0.02
"""By which a loss may differ from the one that is written down, as a share of it: other CPUs round otherwise."""
MARK_TOLERANCE = {"attributes": 2.0, "at once": 4.0}
"""Points. What is counted in a blurred picture may hang on a pixel: CPUs differed by 2.3 points of the latter."""
DISTANCE_TOLERANCE = 0.1
"""As a share of a Fréchet distance."""
_MARKS = (("attributes right, %", "attributes"), ("all right at once, %", "at once"), ("Fréchet distance", "distance"))
_SECONDS = {"lcd": 0.07, "controlnet": 0.04}
"""Of a core, for a picture that is trained on."""
NAMES = ["7", "8", "2", "batch", "batch384", "3", "schedule", "5", "6", "rate", "tables", "average", "loss"]
"""Of all figures, as the page has them."""
SCHEDULES = (
    "Figure 3: β, the noise schedule and logSNR",
    "LCM's noise schedule is changed to PixArt-α's, which features a higher logSNR and a broader range of noise",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", help=f"which: {', '.join(NAMES)}; all when none is named")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "paper", help="where trainings are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: a rehearsal of so large a part")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.list:
        for name, known in about().items():
            print(f"{name:8} {known['title']}")
        return 0
    if unknown := sorted(set(options.figures) - set(NAMES)):
        parser.error(f"no figure {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    shop = Workshop(options.work, options.scale)
    place = ROOT / "docs" / "paper" if options.scale == 1 else shop.folder / "paper"
    if options.check:
        return check(shop, place, options.figures or NAMES)
    place.mkdir(parents=True, exist_ok=True)
    for name in options.figures or NAMES:
        make(shop, place, name)
        page.write(place, about(), CAPTIONS, NOISES, len(SEEDS))
    return 0


def about() -> dict[str, dict[str, str]]:
    """Title, what the paper says, the command and what it costs of every figure, in the order of the page."""
    known = {name: {"title": each.title, "paper": each.paper, "cost": _cost(each)} for name, each in FIGURES.items()}
    known["7"] = {"title": family.TITLE, "paper": family.PAPER, "cost": ""}
    known["3"] = {"title": SCHEDULES[0], "paper": SCHEDULES[1], "cost": ""}
    known["tables"] = {"title": tables.TITLE, "paper": tables.PAPER, "cost": f", after `{tables.COMMAND}` on a GPU"}
    return {name: {**known[name], "command": f"python -m tools.paper {name}"} for name in NAMES}


def _cost(figure: Figure) -> str:
    pictures = 0
    for changed in figure.variants.values():
        values = {**COMMON[figure.command], **changed}
        pictures += len(SEEDS) * values["steps"] * values["batch_size"] * values.get("accumulation", 1)
    return f", about {pictures * _SECONDS[figure.command] / 60:.0f} minutes of one core for its trainings"


def make(shop: Workshop, place: Path, name: str) -> None:
    """Draw one figure, and write down what it came to."""
    watch = Stopwatch()
    if name == "tables":
        found = tables.measured()
        if found is None:
            print(f"tables: {tables.FILES[0]} is not there: run {tables.COMMAND} on a GPU first")
            return
    else:
        own = {"7": draw_family, "3": draw_schedules}
        found = own[name](shop, place) if name in own else draw(shop, place, name)
    found |= {"took": watch.read(), "made_with": circumstances(_folder(name))}
    (place / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{name}: {found['verdict']}", flush=True)


def _folder(name: str) -> Path:
    """The family that a figure is of."""
    return family.FOLDER if name == "7" else NANO


def draw(shop: Workshop, place: Path, name: str) -> dict[str, Any]:
    """Train and measure a figure of `FIGURES`, and write its pictures."""
    figure, found, runs = FIGURES[name], {}, {}
    for label, changed in figure.variants.items():
        print(f"{name}: {label}", flush=True)
        runs[label] = [shop.run(figure, changed, seed) for seed in shop.seeds]
        found[label] = seeds.merged([shop.measure(figure, run, changed) for run in runs[label]])
    pictures, said = [f"{name}.png"], figure.sentence(found)
    plots.plot(found, place / pictures[0])
    shown = {}
    if figure.strip:
        pictures.insert(0, f"{name}_strip.jpg")
        first = next(iter(figure.variants))
        shop.strip(figure, runs[first][0], place / pictures[0])
        shown = {"shown": found[first]["shown"]} if "shown" in found[first] else {}
        if figure.command == "controlnet":
            pictures.append(f"{name}_scenes.png")
            plots.plot_scenes(found, place / pictures[-1])
    return {
        "paper": figure.paper,
        "verdict": said,
        "note": figure.note,
        "pictures": pictures,
        **shown,
        "table": table(found) if figure.command != "controlnet" else control_table(found),
        "command": figure.command,
        "settings": {label: shop.values(figure, changed, shop.seeds[0]) for label, changed in figure.variants.items()},
        "seeds": list(shop.seeds),
        "first_losses": {label: [shop.losses(run)[:PREFIX] for run in each] for label, each in runs.items()},
        "trained_seconds": {label: sum(map(shop.seconds, each)) for label, each in runs.items()},
        "found": found,
    }


def table(found: verdict.Found) -> dict[str, list]:
    """The last marks of every distillation in each number of sampling steps, then those of the teachers."""
    rows = []
    for label, marks in found.items():
        last = marks["points"][-1]
        rows += [_row(f"{label}, step {last['step']}", steps, each) for steps, each in last["marks"].items()]
    for name, each in plots.teachers(found).items():
        rows.append(_row(name, name.split()[1], each))
    return {"columns": ["", "sampling steps", *(title for title, _ in _MARKS)], "rows": rows}


def control_table(found: verdict.Found) -> dict[str, list]:
    """The last marks of every control, after those of none."""
    before = next(iter(found.values()))["points"][0]
    named = {"without": before} | {
        f"{label}, step {marks['points'][-1]['step']}": marks["points"][-1] for label, marks in found.items()
    }
    rows = [
        [name, *(plots.with_interval(seeds.number(point, path)) for _, path in verdict.CONTROLLED)]
        for name, point in named.items()
    ]
    return {"columns": ["", *(title for title, _ in verdict.CONTROLLED)], "rows": rows}


def _row(name: str, steps: str, marks: Mapping[str, Any]) -> list[str]:
    return [name, steps, *(plots.with_interval(marks[mark]) for _, mark in _MARKS)]


def draw_family(shop: Workshop, place: Path) -> dict[str, Any]:
    found = family.measure(shop.scaled(CAPTIONS, 66), shop.scaled(NOISES, 2), place / "7.jpg")
    found["seconds"] = family.seconds()
    said = {"paper": family.PAPER, "verdict": family.sentence(found), "pictures": ["7.jpg"], "shown": found["shown"]}
    return {**said, "note": family.NOTE, "table": family.table(found), "found": found}


def draw_schedules(_shop: Workshop, place: Path) -> dict[str, Any]:
    plots.plot_schedules(place / "3.png")
    return {"paper": SCHEDULES[1], "verdict": plots.schedules(), "pictures": ["3.png"]}


def check(shop: Workshop, place: Path, names: Sequence[str]) -> int:
    """Whether the bundled weights still get their marks, and trainings still begin as they are written down."""
    worst = 0
    for name in names:
        file = place / f"{name}.json"
        if not file.exists() or name == "tables":
            print(f"{name}: {'measured on a GPU elsewhere' if file.exists() else 'not made yet'}")
            continue
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["made_with"]["family"] != of_family(_folder(name)):
            print(f"{name}: WRONG, drawn on another family than the bundled one: draw it again")
            worst = 1
            continue
        if name == "3":
            holds = known["verdict"] == plots.schedules()
            worst |= not holds
            print(f"3: {'ok' if holds else 'WRONG, what is said of the schedules is another thing now'}")
            continue
        for label, difference, tolerance in _family(known) if name == "7" else _beginnings(shop, name, known):
            holds = difference <= tolerance
            worst |= not holds
            words = f"differs by {difference:.3g}, {tolerance:.3g} allowed: {'ok' if holds else 'WRONG'}"
            print(f"{name}, {label}: {words}", flush=True)
    return worst


def _family(known: dict) -> Iterator[tuple[str, float, float]]:
    """The student's marks. That the base is the same file was looked at, and trainings begin from it."""
    before = known["found"]
    now = family.measure(before["captions"], before["seeds"], teacher=False)["marks"]
    for name, marks in before["marks"].items():
        if name not in now:
            continue
        for measure, (mean, _) in marks.items():
            tolerance = DISTANCE_TOLERANCE * mean if measure == "distance" else MARK_TOLERANCE[measure]
            yield f"{name}, {measure}", abs(now[name][measure][0] - mean), tolerance


def _beginnings(shop: Workshop, name: str, known: dict) -> Iterator[tuple[str, float, float]]:
    for label, changed in FIGURES[name].variants.items():
        for seed, before in zip(known["seeds"], known["first_losses"][label], strict=True):
            now = shop.begin(FIGURES[name], changed, seed, len(before))
            difference = max(abs(a - b) / abs(b) for a, b in zip(now, before, strict=True))
            yield f"{label}, seed {seed}", difference, LOSS_TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
