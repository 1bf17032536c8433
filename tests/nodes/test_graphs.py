"""Runs the checks of inside_graphs.py in every ComfyUI there is."""

from __future__ import annotations

from tests.fixtures_nano import make_nano_folder

INSIDE = "inside_graphs.py"


def test_inside(run_inside, inside_check):
    found = run_inside(INSIDE, lambda folder: make_nano_folder(folder / "nano", depth=4))
    assert found[inside_check] == "", found[inside_check]
