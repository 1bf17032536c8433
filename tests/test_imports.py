"""Every module that does not need ComfyUI can be imported, in whichever Python and with whichever packages this is."""

import importlib

import pytest

from tests.conftest import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for room in ("pixart_core", "training", "tools")
    for path in (ROOT / room).rglob("*.py")
    if path != ROOT / "training" / "train.py"  # a program
)


@pytest.mark.parametrize("name", MODULES)
def test_it_can_be_imported(name):
    importlib.import_module(name if name.startswith("tools") else f"pixart_delta.{name}")
