"""Command line of the trainings."""

from __future__ import annotations

import argparse
import importlib
import sys

from .config import COMMANDS, ConfigError, describe, load_config
from .run_dir import RunDir

NANO_PARTS = ("autoencoder", "text_encoder", "scenes", "hed", "evaluate", "family")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train PixArt-δ.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, kind in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=kind.__doc__,
            description=kind.__doc__,
            epilog="settings and their defaults:\n" + describe(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--config", help="JSON file of settings (see training/recipes)")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; wins over the file"
        )
        if name == "prepare":
            command.add_argument("--dry-run", action="store_true", help="only look at the pictures and report")
    status = commands.add_parser("status", help="print how far a run is")
    status.add_argument("run", help="the run folder")
    nano = commands.add_parser("nano", help="make the parts of the bundled nano family", add_help=False)
    nano.add_argument("part", choices=NANO_PARTS)
    nano.add_argument("arguments", nargs=argparse.REMAINDER, help="of that part; --help lists them")
    options = parser.parse_args(arguments)
    try:
        if options.command == "nano":
            part = "scene_folder" if options.part == "scenes" else options.part
            importlib.import_module(f".nano.{part}", __package__).main(options.arguments)
            return 0
        if options.command == "status":
            return _status(options.run)
        config = load_config(options.command, options.config, options.set)
        if options.command == "prepare":
            from .prepare.run import prepare

            prepare(config, options.dry_run)
            return 0
        from .loop import train  # torch and accelerate only when there is work for them

        train(options.command, config)
    except (ConfigError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _status(folder: str) -> int:
    for name, value in RunDir(folder).read_status().items():
        print(f"{name}: {value}")
    return 0
