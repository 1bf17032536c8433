"""What a GPU gives, in one table and one JSON file: pictures, precision, memory, trainings, ComfyUI, Table 2.

    python -m tools.bench gpu [--minutes 30] [--rehearse] [--parts NAME …] [--again] [--json FILE] [--folder FOLDER]

Parts run the most important first, each in a process of its own and bounded in time, until the minutes are over; the
first takes about four. Run it again, and only what is missing is measured. Nothing is downloaded: packages that a
machine lacks are named, and what needs none of them is measured. Medians; what is compared is measured in one process.

--rehearse runs every part at a small size, with the bundled family, on the device at hand: it shows that the command
works, and its figures mean nothing. `--table FILE` prints the table of a JSON file; `--write README.md` puts the
figures that have a target, with the card's name, between that document's two gpu comments, from --json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.bench import environment  # noqa: E402

PARTS = Path(__file__).with_name("gpu_parts.py")
PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "comfy_cli",
    "diffusers",
    "ftfy",
    "peft",
    "pytest",
    "torchsde",
    "transformers",
    "webdataset",
    "websocket",
)
"""What parts import beyond torch; `websocket` is of websocket-client."""
BOUNDS = {
    "picture": 300,
    "precision": 90,
    "graphs": 150,
    "memory": 240,
    "lcd": 300,
    "nano_step": 120,
    "table2": 300,
    "forward": 120,
    "comfyui": 400,
    "tests": 600,
    "compiled": 240,
    "more": 180,
    "commands": 300,
    "lcd_precision": 600,
}
"""Parts in their order, and the most seconds that each may take. The first also makes the folder of 11 GB."""
SLOWER = 3
"""Times as long as a part may take in a rehearsal: on a CPU, mostly beside other work."""
PATIENCE = 40
"""Seconds that a part has to end what it started, when its time is over."""
STOPPED = "stopped from outside"
MARKS = ("<!-- gpu -->", "<!-- /gpu -->")
"""Lines of a document between which `--write` puts its table."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="true-shape pipeline folder of 11 GB; made if it is not there")
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--write", type=Path, help="only put the short table of --json into this document")
    options = parser.parse_args()
    name = "gpu_rehearsal.json" if options.rehearse else "gpu.json"
    file = options.json or ROOT / "output" / "bench" / name
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        options.write.write_text(with_table(text, json.loads(file.read_text())), encoding="utf-8")
        return 0
    for sign in (signal.SIGTERM, signal.SIGINT):  # whoever ends it ends the part that runs, too; SIGINT may be ignored
        signal.signal(sign, signal.default_int_handler)
    import torch

    if not torch.cuda.is_available() and not options.rehearse:
        print("no CUDA device: nothing is measured (--rehearse runs every part at a small size)")
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    about = circumstances(options.rehearse)
    results = json.loads(file.read_text()) if file.is_file() and not options.again else {"parts": {}}
    if results.get("about", about)["device"] != about["device"]:
        parser.error(f"{file} was measured on {results['about']['device']}: give another --json")
    same_packages = results.get("about", about)["missing"] == about["missing"]
    results["about"] = about
    if about["missing"]:
        print(f"missing packages: {', '.join(about['missing'])}; what needs them is left out", flush=True)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="pixart_gpu_") as temporary:
        folder = options.folder or Path(temporary) / "true"
        for part in options.parts:
            left = end - time.monotonic()
            known = results["parts"].get(part, {})
            if "figures" in known and (same_packages or not known.get("left_out")):
                continue
            if left < 5:
                print(f"=== {part}: no time left ===")
                continue
            limit = BOUNDS[part] * (SLOWER if options.rehearse else 1)
            results["parts"][part] = _run(part, min(left, limit), options.rehearse, folder)
            file.write_text(json.dumps(results, indent=1))
            if results["parts"][part].get("error", "").startswith(STOPPED):
                break
    print(f"\n{table(results)}\n\n{file}")
    failed = [part for part, result in results["parts"].items() if "error" in result]
    missed = [row for row in _rows(results) if row[-1] == "MISSED"]
    return 1 if failed or missed and not options.rehearse else 0


def table(results: dict) -> str:
    """Markdown: what, figure, target, whether it is met."""
    about = results["about"]
    title = f"{about['device']}, torch {about['torch']}" + (
        ", rehearsal: the figures mean nothing" * about["rehearsal"]
    )
    lines = [f"{title}\n", "| part | what | measured | target | |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(results)]
    for part, result in results["parts"].items():
        lines += [f"\n{part}: {result['error']}"] if "error" in result else []
        lines += [f"\n{part} left out: {text}" for text in result.get("left_out", ())]
    return "\n".join(lines)


def short_table(results: dict) -> str:
    """Markdown for a README: the figures that have a target, with the card's name.

    Raises:
        ValueError: of a rehearsal, whose figures mean nothing.
    """
    about = results["about"]
    if about["rehearsal"]:
        raise ValueError("these are the figures of a rehearsal: measure on a GPU first")
    lines = [f"On one {about['device']}, torch {about['torch']} (`python -m tools.bench gpu`):", ""]
    lines += ["| | measured | target | |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row[1:]) + " |" for row in _rows(results) if row[3]]
    return "\n".join(lines)


def with_table(text: str, results: dict) -> str:
    """A document with the short table between `MARKS`.

    Raises:
        ValueError: when it has no such lines, or of a rehearsal.
    """
    before, first, rest = text.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise ValueError(f"the document has no lines {MARKS[0]} and {MARKS[1]}")
    return f"{before}{first}\n{short_table(results)}\n{last}{after}"


def _rows(results: dict) -> list[tuple[str, ...]]:
    rows = []
    for part, result in results["parts"].items():
        for each in (*result.get("figures", ()), *result.get("partial", ())):  # what had been measured counts
            target = each.get("target")
            verdict = "" if target is None or results["about"]["rehearsal"] else "met" if each["met"] else "MISSED"
            value = f"{each['value']:.4g} {each['unit']}".strip()
            rows.append((part, each["what"], value, target or "", verdict))
    return rows


def circumstances(rehearsal: bool) -> dict:
    """What the figures of one file were measured with."""
    import torch

    cpu = f"CPU ({torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "torch": torch.__version__,
        "rehearsal": rehearsal,
        "missing": [name for name in PACKAGES if importlib.util.find_spec(name) is None],
    }


def _run(part: str, limit: float, rehearse: bool, folder: Path) -> dict:
    """One part in a process of its own: its figures, or why there are none."""
    print(f"\n=== {part} (at most {limit:.0f} s) ===", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pixart_part_") as place:
        out = Path(place) / "figures.json"
        command = [sys.executable, "-u", str(PARTS), part, str(out), str(folder), *["--rehearse"] * rehearse]
        error = _run_within(command, limit)
        # What a part had measured before it failed or was ended counts.
        result = json.loads(out.read_text()) if out.is_file() else {}
    seconds = round(time.monotonic() - started, 1)
    if not error:
        return {"seconds": seconds, **result}
    return {"seconds": seconds, **_partial(result), "error": "; ".join((error, *result.get("failed", ())))}


def _run_within(command: list[str], limit: float) -> str:
    """Run a part; what went wrong, or nothing."""
    with subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True) as process:
        try:
            code = process.wait(limit)
            return f"ended with exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            return f"not done in {limit:.0f} s"
        except KeyboardInterrupt:
            return STOPPED
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a part with all that it started: a ComfyUI that goes on would be measured with the parts after it. Asked
    first, because a server has a process group of its own."""
    for sign, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _partial(result: dict) -> dict:
    """Figures of a part that did not end: kept under a name that lets the part run again."""
    return {"partial": result.get("figures", []), "left_out": result.get("left_out", [])}


if __name__ == "__main__":
    sys.exit(main())
