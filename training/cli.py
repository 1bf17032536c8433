"""Command line of the trainings. Standard library only, until a command needs more."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
from typing import Any

from .config import (
    COMMANDS,
    TRAININGS,
    ConfigError,
    ExportConfig,
    PrepareConfig,
    SampleConfig,
    TrainConfig,
    load_config,
)
from .launcher import adopt
from .machine import duration, explain_import, in_units
from .recipes import AUTO, RECIPES, recipe_for, recipe_values
from .run_dir import RunDir

NANO_PARTS = (
    *("family", "scenes", "autoencoder", "text_encoder", "hed", "assemble"),
    *("evaluate", "evaluate_control", "reconstruction", "curve", "preview"),
)
_DRY_RUN = {name: "check everything, print what it will take, do one step, write nothing" for name in TRAININGS}
_DRY_RUN["prepare"] = "only look at the pictures and report"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a 4-bit kernel that nothing here uses
    try:
        _run(options)
    except ImportError as error:
        return _fail(explain_import(error))
    except (ConfigError, OSError, ValueError, RuntimeError) as error:
        return _fail(str(error))
    return 0


def _chosen(recipe: str, config: Any) -> str:
    """The name of the recipe that is meant."""
    if recipe != AUTO:
        return recipe
    from ..pixart_core.pipeline import default_device
    from .estimate import device_memory, read_base

    return recipe_for(read_base(config).parameters, device_memory(default_device()))


def _fail(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", description="Train PixArt-δ.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, kind in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=kind.__doc__,
            description=kind.__doc__,
            epilog="settings and their defaults:\n" + kind.describe(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in ("sample", "export"):
            command.add_argument("run", nargs="?", help="the run folder; the same as --set run=…")
        command.add_argument("--config", help="JSON file of settings (see training/recipes)")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; wins over the file"
        )
        if name in TRAININGS:
            command.add_argument(
                "--recipe",
                choices=(AUTO, *RECIPES),
                help="settings for a device of that memory; what --config and --set say wins. auto: by the size of the "
                "base, and the memory of the device that is here",
            )
            command.add_argument(
                "--private",
                default="",
                metavar="FOLDER",
                help="keep settings, status and requests there, because others may write into the run folder",
            )
        if name in _DRY_RUN:
            command.add_argument("--dry-run", action="store_true", help=_DRY_RUN[name])
    status = commands.add_parser("status", help="print how far a run is")
    status.add_argument("run", help="the run folder")
    nano = commands.add_parser("nano", help="make the parts of the bundled nano family", add_help=False)
    nano.add_argument("part", choices=NANO_PARTS)
    nano.add_argument("arguments", nargs=argparse.REMAINDER, help="of that part; --help lists them")
    return parser


def _run(options: argparse.Namespace) -> None:
    """What a command needs (torch, accelerate …) is imported when it is known to be wanted."""
    command = options.command
    if command == "nano":
        part = "scene_folder" if options.part == "scenes" else options.part
        importlib.import_module(f".nano.{part}", __package__).main(options.arguments)
        return
    if command == "status":
        print(describe_run(options.run))
        return
    given = [f"run={options.run}"] if getattr(options, "run", None) else []
    config = load_config(command, options.config, given + options.set).located()
    if getattr(options, "recipe", None):
        name = _chosen(options.recipe, config)
        config = load_config(command, options.config, options.set, recipe_values(command, name)).located()
        print(f"recipe {name}", flush=True)
    if isinstance(config, PrepareConfig):
        adopt()
        from .prepare.run import prepare

        prepare(config, options.dry_run)
    elif isinstance(config, TrainConfig):
        if options.dry_run:
            from .estimate import dry_run

            dry_run(config)
        else:
            from .loop import train

            train(config, options.private)
    elif isinstance(config, SampleConfig):
        from .sampling import sample

        print(sample(config))
    elif isinstance(config, ExportConfig):
        from .export import export

        print(export(config))


def describe_run(folder: str) -> str:
    """One line each of what is known; lines of the form `name: value`.

    Raises:
        RunDirError: if the folder holds no run.
    """
    run = RunDir(folder)
    status = run.read_status()
    lines = {"command": run.read_config()["command"], "state": _state(run, status)}
    lines |= {"step": f"{status['step']} of {status['steps']}", **_progress(status)}
    for name in ("pictures", "device", "waiting", "notice", "checkpoint", "export", "message"):
        lines[name] = status.get(name)
    return "\n".join(f"{name}: {value}" for name, value in lines.items() if value is not None)


def _state(run: RunDir, status: dict[str, Any]) -> str:
    under_way = status["state"] in ("preparing", "running")
    if under_way and not run.is_running():
        return f"killed, {duration(time.time() - status['time'])} ago or less: the same command resumes it"
    return f"{status['state']}, process {status['pid']}" if under_way else status["state"]


def _progress(status: dict[str, Any]) -> dict[str, str | None]:
    left = status.get("seconds_left") if status["state"] in ("preparing", "running") else None
    left = {"left": None if left is None else duration(left)}
    if "loss" not in status:  # before the first step, or of `prepare`
        return left
    return {
        "loss": f"{status['loss']:.5f}",
        "learning rate": f"{status['learning_rate']:.3g}",
        "seconds a step": f"{status['seconds_per_step']:.3g}",
        **left,
        "memory": f"{in_units(status['memory'])} at most",
    }
