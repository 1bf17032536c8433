"""Runs the checks of inside_stock.py in every ComfyUI there is."""

from __future__ import annotations

from pathlib import Path

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
INSIDE = "inside_stock.py"


def test_stock(run_inside, inside_check):
    found = run_inside(INSIDE, lambda _: NANO)
    assert found[inside_check] == "", found[inside_check]
