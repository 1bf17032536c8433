"""What half precision costs a distillation: nano LCD in float32, in the default of GPUs, and in bf16 as it once was.

    python -m tools.bench lcd_precision [--folder FOLDER] [--steps 500] [--seeds 3] [--batch 4] [--pictures 3000]

From the bundled base, recipe nano_student, each in 500 steps from several seeds; then attributes right and the Fréchet
distance to drawn scenes over 200 captions that nothing was trained on, in one and two steps, in float32. "bf16 as it
was" is the code of commit 87a0225, before the token stream was float32, got from git. On a GPU this takes about ten
minutes; on a CPU half precision's products are float32 ones, rounded (`half.py`).

What is done is kept in the folder (default output/bench/lcd_precision): the same command goes on. `--no-runs` only
examines what is there, `--no-marks` only trains. Exits with 1 where the default loses more than two points to float32.
"""

from __future__ import annotations

import argparse
import io
import json
import runpy
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.bench import environment  # noqa: E402

NANO = ROOT / "models" / "nano"
BEFORE = "87a0225"
ARMS = {"fp32": "fp32", "fp16": "fp16, the default", "old": f"bf16 as it was ({BEFORE})"}
"""Name of a run's precision -> what the table calls it."""
STEPS = (1, 2)
LOST = 2.0
"""Points of attributes that half precision may lose."""


def prepare(folder: Path, pictures: int) -> Path:
    """Drawn scenes as features; made once."""
    features = folder / "features"
    if not (features / "dataset.json").is_file():
        _train("nano", "scenes", str(folder / "scenes"), "--pictures", str(pictures))
        values = {"input": folder / "scenes", "output": features, "models": NANO, "resolution": 128, "max_tokens": 40}
        _train("prepare", *(word for name, value in values.items() for word in ("--set", f"{name}={value}")))
    return features


def _train(*words: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "training" / "train.py"), *words], check=True)


def code(folder: Path, arm: str) -> Path:
    """The root of the code that an arm runs."""
    if arm != "old":
        return ROOT
    root = folder / BEFORE
    if not (root / "training" / "train.py").is_file():
        command = ["git", "-C", str(ROOT), "archive", BEFORE, "__init__.py", "training", "pixart_core"]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(root, filter="data")
    return root


def has_before() -> bool:
    """Whether git is here, with the commit of "bf16 as it was": a copy of the files alone has neither."""
    command = ["git", "-C", str(ROOT), "cat-file", "-e", f"{BEFORE}^{{commit}}"]
    return shutil.which("git") is not None and subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def run_one(root: Path, precision: str, overrides: list[str]) -> None:
    """In a process of its own: the trainer of `root`; resumes."""
    runpy.run_path(str(root / "training" / "train.py"))  # registers that root as pixart_delta
    import torch
    from pixart_delta.pixart_core.functional import attention
    from pixart_delta.training import cli, loop  # noqa: F401 - loop, so that what it uses is there to be changed

    from tests.bench.half import where_emulated

    for name, module in list(sys.modules.items()):
        # GPUs run torch's own attention; that of trainings on a CPU would round once more.
        if name.startswith("pixart_delta.training") and hasattr(module, "plain_attention"):
            module.plain_attention = attention
    recipe = ROOT / "training" / "recipes" / "nano_student.json"
    words = ["lcd", "--config", str(recipe), *(word for each in overrides for word in ("--set", each))]
    with where_emulated("cuda" if torch.cuda.is_available() or precision == "fp32" else "cpu"):
        status = cli.main(words)
    if status:
        raise SystemExit(status)


def marks(export: Path, exam) -> dict[str, dict[str, float]]:
    """Steps of sampling -> attributes and distance."""
    import torch
    from pixart_delta.pixart_core.checkpoint import load_pixart

    model = load_pixart(export, torch.float32).eval()
    found = {steps: exam.mark(model, steps, (0,)) for steps in STEPS}
    return {str(steps): {name: mark[0] for name, mark in each.items()} for steps, each in found.items()}


def examine(folder: Path, runs: dict[str, Path], captions: int = 200) -> dict[str, dict]:
    """Marks of those of the runs that are done; kept in marks.json."""
    file = folder / "marks.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    exam = None
    for name, run in runs.items():
        exports = list((run / "exports").glob("*.safetensors"))
        if name in known or not _done(run) or not exports:
            continue
        if exam is None:
            exam = _exam(captions)
        known[name] = marks(exports[0], exam)
        print(json.dumps({name: known[name]}), flush=True)
        file.write_text(json.dumps(known, indent=1))
    return {name: known[name] for name in runs if name in known}


def _exam(captions: int):
    runpy.run_path(str(ROOT / "training" / "train.py"))  # registers the root folder as pixart_delta
    import torch
    from pixart_delta.pixart_core.pipeline import Pipeline
    from pixart_delta.training.nano.exam import Exam

    return Exam(Pipeline.from_pretrained(NANO, device="cpu", dtype=torch.float32), captions)


def _done(run: Path) -> bool:
    status = run / "status.json"
    return status.is_file() and json.loads(status.read_text())["state"] == "done"


def table(known: dict[str, dict], steps: int) -> tuple[str, dict[str, float]]:
    """Markdown of means over the seeds, with the range; and the mean of one-step attributes of each arm."""
    head = f"| {steps} steps of nano LCD | seeds | " + " | ".join(
        f"{count} step{'s' * (count > 1)}: attributes | Fréchet" for count in STEPS
    )
    lines, first = [head + " |", "|---|---|" + "---|---|" * len(STEPS)], {}
    for arm, label in ARMS.items():
        own = [each for name, each in known.items() if name.rpartition("_")[0] == arm]
        if not own:
            continue
        cells = []
        for count in STEPS:
            for measure, form in (
                ("attributes", "{:.1f} % ({:.1f} to {:.1f})"),
                ("distance", "{:.3g} ({:.3g} to {:.3g})"),
            ):
                values = [each[str(count)][measure] for each in own]
                cells.append(form.format(statistics.fmean(values), min(values), max(values)))
        first[arm] = statistics.fmean(each["1"]["attributes"] for each in own)
        lines.append(f"| {label} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines), first


def train_all(runs: dict[str, Path], folder: Path, steps: int = 500, batch: int = 4, pictures: int = 3000) -> None:
    """Each run that is not done, in a process of its own."""
    features = prepare(folder, pictures)
    for name, run in runs.items():
        if _done(run):
            continue
        arm, _, seed = name.rpartition("_")
        precision = "bf16" if arm == "old" else arm
        values = {"run": run, "data": features, "base": NANO / "base" / "pixart_nano_base.safetensors", "seed": seed}
        values |= {"precision": precision, "steps": steps, "batch_size": batch, "warmup_steps": 50}
        values |= {"keep_checkpoints": 1, "checkpoint_every": 50, "log_every": 50, "tensorboard": "false"}
        words = [str(code(folder, arm)), precision, *(f"{name}={value}" for name, value in values.items())]
        subprocess.run([sys.executable, __file__, "--one", *words], check=True, env=environment())


def runs_of(folder: Path, arms: Sequence[str], seeds: int) -> dict[str, Path]:
    """Name -> folder of each run, one seed after the other."""
    return {f"{arm}_{seed}": folder / "runs" / f"{arm}_{seed}" for seed in range(seeds) for arm in arms}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "bench" / "lcd_precision")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--no-runs", action="store_true")
    parser.add_argument("--no-marks", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(Path(options.one[0]), options.one[1], options.one[2:])
        return 0
    folder = options.folder.absolute()
    runs = runs_of(folder, options.arms, options.seeds)
    if not options.no_runs:
        train_all(runs, folder, options.steps, options.batch, options.pictures)
    if options.no_marks:
        return 0
    known = examine(folder, runs)
    text, first = table(known, options.steps)
    print(f"\n{text}")
    return 1 if "fp16" in first and "fp32" in first and first["fp16"] < first["fp32"] - LOST else 0


if __name__ == "__main__":
    sys.exit(main())
