"""Packages that training needs and ComfyUI does not bring: what to say where one is missing."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def explain_import(error: ImportError) -> str:
    """What cannot be imported, and the command that installs it into this very Python."""
    missing = isinstance(error, ModuleNotFoundError) and error.name
    problem = f"{error.name.partition('.')[0]} is not installed" if missing else str(error)
    return f'{problem}. What training needs is installed by: {sys.executable} -m pip install "{_ROOT}[train]"'
