"""Run the tests that matter with other versions of the packages: overlays over the environment's one torch.

    python -m tools.versions                 every set, the whole selection (an hour on two cores)
    python -m tools.versions --quick 2025    one set: both hosts' pictures, text in 8 bits, every training
    python -m tools.versions --python all    every Python that is here, each in an environment of its own (8 GB): the
                                             short selection, and what the language itself changes

An overlay is a virtual environment of its own in the cached one (`overlays/SET`) that holds what a set names and what
that needs, and reads everything else, torch above all, from the environment below. pip resolves each set against what
is installed there, so that a set fits together. `make setup` comes first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .setup import ROOT, SetupError, requirements, run_pip, say

KEPT = ("torch", "torchvision", "torchaudio", "numpy")
"""Never replaced in an overlay: everything is built against them."""
LATER = {
    "2025": ("transformers==4.57.6", "diffusers==0.35.2", "accelerate==1.10.1", "peft==0.17.1", "bitsandbytes==0.47.0"),
    "5.0": ("transformers==5.0.0", "diffusers==0.36.0", "accelerate==1.12.0", "peft==0.18.1", "bitsandbytes==0.49.0"),
    "5.17": ("transformers==5.17.0", "diffusers==0.41.0", "accelerate==1.14.0", "peft==0.20.0", "bitsandbytes==0.50.0"),
    "newest": ("transformers", "tokenizers", "diffusers", "accelerate", "peft", "bitsandbytes"),
}
"""What was current together. "newest" is looked up every time."""
SETS = ("oldest", *LATER)
QUICK = (
    "tests/core/test_tokenizer.py",
    "tests/core/test_text.py",
    "tests/nodes/test_workflows.py::test_pictures_are_the_pipelines",
    "tests/training/test_commands.py",
)
"""The bundled workflows on both hosts beside the pipeline's pictures, text in 8 and 4 bits, every training."""
TRIED_BY = {
    "accelerate": "tests/training/test_launcher.py",
    "beautifulsoup4": "tests/core/test_text.py",
    "bitsandbytes": "tests/core/test_text.py",
    "diffusers": "tests/core/test_autoencoder.py",
    "fsspec": "tests/training/data/test_waiting.py",
    "ftfy": "tests/core/test_text.py",
    "matplotlib": "tests/training/test_nano_control.py::test_command_line_writes_sheet_and_curve",
    "peft": "tests/core/test_lora.py",
    "prodigyopt": "tests/training/test_optimizers.py",
    "pyarrow": "tests/training/test_archives.py",
    "schedulefree": "tests/training/test_optimizers.py",
    "tensorboard": "tests/training/test_run.py::test_what_a_run_writes",
    "transformers": "tests/core/test_text.py",
    "webdataset": "tests/training/data/test_dataset.py",
}
"""Package with a stated bound -> tests that use it, so that no bound is stated which nothing was run with."""
WHOLE = (
    *QUICK,
    *TRIED_BY.values(),
    "tests/core/test_vae.py",
    "tests/core/test_convert.py",
    "tests/core/test_pipeline.py",
    "tests/nodes/test_inside.py",
    "tests/nodes/test_pictures.py",
    "tests/training/test_export.py",
    "tests/training/test_prepare.py",
    "tests/training/test_run.py",
    "tests/training/test_resume.py",
)
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""What the README says."""
ANY_PYTHON = (
    "tests/test_imports.py",
    "tests/core/test_goldens.py",
    "tests/core/test_identify.py",
    "tests/core/test_picklefile.py",
    "tests/core/test_textfile.py",
    "tests/core/test_weightfolder.py",
    "tests/tools/test_setup.py",
    "tests/training/test_config.py",
    *QUICK,
)
"""Every module, what stands on the standard library (pickles, archives, file names, types of settings), the goldens and
the short selection: torch and the packages are the same as with the Python that all tests run on."""
STAMP = "overlay.json"
"""Written into an overlay last; holds what it was made from."""


def pins(name: str) -> list[str]:
    """The requirements of a set; of "oldest", every lower bound that the project states, exactly."""
    if name != "oldest":
        return list(LATER[name])
    stated = [*requirements(), *requirements("train")]
    return sorted(entry.replace(">=", "==") for entry in stated)


def selection(name: str, quick: bool) -> tuple[str, ...]:
    """The tests of a set. Those of every stated bound belong to "oldest" also when it is quick."""
    chosen = (*QUICK, *TRIED_BY.values()) if name == "oldest" else QUICK
    return tuple(dict.fromkeys(chosen if quick else WHOLE))


def overlay(name: str, environment: Path) -> Path:
    """The interpreter of a set's overlay over a complete environment; makes or renews what is missing.

    Raises:
        SetupError: when pip finds no set that fits, or cannot install it.
    """
    folder = environment / "overlays" / name
    python, stamp = folder / "bin" / "python", folder / STAMP
    made_from = {"pins": pins(name)}
    if name == "newest":
        made_from["resolved"] = resolve(name, environment)
    if stamp.is_file() and json.loads(stamp.read_text()).items() >= made_from.items():
        return python
    wanted = made_from.get("resolved") or resolve(name, environment)
    say(f"overlay {name}: {' '.join(wanted) or 'nothing differs'}")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = site_packages(folder)
    # After the overlay's own packages; addsitedir because the environment has .pth files, too.
    (site / "environment.pth").write_text(f"import site; site.addsitedir({str(site_packages(environment))!r})\n")
    if wanted:
        log = environment / "overlays" / f"{name}.log"
        run_pip(environment / "bin" / "python", ["install", "--no-deps", "--target", str(site), *wanted], log)
    stamp.write_text(json.dumps({**made_from, "resolved": wanted}, indent=1) + "\n")
    return python


def site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def resolve(name: str, environment: Path) -> list[str]:
    """What has to be installed over the environment for a set: exact versions, dependencies included."""
    python = environment / "bin" / "python"
    code = f"from importlib.metadata import version\nfor name in {KEPT}: print(f'{{name}}=={{version(name)}}')"
    kept = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as scratch:
        constraints, report = Path(scratch, "constraints.txt"), Path(scratch, "report.json")
        constraints.write_text(kept)
        arguments = ["install", "--dry-run", "--report", str(report), "-c", str(constraints), *pins(name)]
        upgrade = ["--upgrade"] if name == "newest" else []
        run_pip(python, [*arguments, *upgrade], environment / "overlays" / f"{name}.log")
        found = json.loads(report.read_text())["install"]
    return sorted(f"{item['metadata']['name']}=={item['metadata']['version']}" for item in found)


def check(name: str, environment: Path, tests: Sequence[str], arguments: Sequence[str]) -> bool:
    """Run tests in a set's overlay, with their output; whether all passed."""
    python = overlay(name, environment)
    started = time.monotonic()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *arguments]
    passed = subprocess.run(command, cwd=ROOT).returncode == 0
    say(f"{name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s")
    return passed


def find_python(version: str) -> Path | None:
    """An interpreter of a version, such as 3.12: on the path, or pyenv's newest; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    newest_first = sorted(pyenv.glob(f"{version}.*"), key=lambda path: path.name.split("."), reverse=True)
    on_path = shutil.which(f"python{version}")
    for python in ([Path(on_path)] if on_path else []) + [folder / "bin" / "python" for folder in newest_first]:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"  # pyenv's shims are there for versions that are not
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip() == version:
            return python
    return None


def check_python(version: str, arguments: Sequence[str]) -> bool:
    """Run `ANY_PYTHON` with another Python, in an environment that setup makes; whether all passed.

    Raises:
        SetupError: when there is no such Python.
    """
    if (python := find_python(version)) is None:
        raise SetupError(f"there is no Python {version} here: install it (pyenv install {version}), or leave it out")
    line = ""
    with subprocess.Popen(
        [python, ROOT / "tools" / "setup.py", "--no-links"], stdout=subprocess.PIPE, text=True
    ) as made:
        for line in made.stdout or ():
            print(line, end="", flush=True)
    if made.returncode:
        raise SetupError(f"there is no environment for Python {version}: see above")
    started, environment = time.monotonic(), Path(line.strip())
    command = [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    passed = subprocess.run([*command, *ANY_PYTHON, *arguments], cwd=ROOT).returncode == 0
    say(f"Python {version}: {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="the short selection")
    parser.add_argument("--python", nargs="+", default=[], metavar="3.X", help="Pythons instead of sets; or: all")
    parser.add_argument("--pytest", default="", help='more arguments of pytest: --pytest="-x -k text"')
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.sets if name not in SETS]:
        parser.error(f"unknown set {unknown[0]}: choose of {', '.join(SETS)}")
    arguments = re.findall(r"\S+", chosen.pytest)
    environment = (ROOT / ".venv").resolve()
    try:
        if chosen.python:
            here = [version for version in PYTHONS if find_python(version)]
            versions = here if chosen.python == ["all"] else chosen.python
            failed = [version for version in versions if not check_python(version, arguments)]
        else:
            tests = {name: selection(name, chosen.quick) for name in chosen.sets or SETS}
            failed = [name for name in tests if not check(name, environment, tests[name], arguments)]
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        print(f"[versions] error: {error}", file=sys.stderr)
        return 1
    say("all passed" if not failed else f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
