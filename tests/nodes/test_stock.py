"""Runs the checks of inside_stock.py in every ComfyUI there is."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("inside_stock.py")
NANO = SCRIPT.parents[2] / "models" / "nano"
CHECKS = [
    part.name
    for part in ast.parse(SCRIPT.read_text(encoding="utf-8")).body
    if isinstance(part, ast.FunctionDef) and part.name.startswith("check_")
]


@pytest.fixture(scope="session")
def outcomes(comfyui_path) -> dict[str, str]:
    """Check -> "" or what went wrong; one interpreter runs them all."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(comfyui_path), str(NANO), *CHECKS],
        timeout=590,
        capture_output=True,
        text=True,
        cwd=comfyui_path,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_stock(outcomes, check):
    assert outcomes[check] == "", outcomes[check]
