"""mypy over the rooms, as the one package that they are inside ComfyUI: `python -m tools.typecheck`.

The relative imports lead out of `nodes` and `training` into the folder above, whose name is whatever it was cloned as.
mypy wants a name that Python could import, so the rooms are linked into a folder of a fixed one. What is strict and
what is not stands in pyproject.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".mypy_cache"
PACKAGE = CACHE / "as_package" / "pixart_delta"
CHECKED = ("__init__.py", "pixart_core", "training", "nodes")


def main() -> int:
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in CHECKED:
        link = PACKAGE / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(CACHE)]
    out, errors, status = api.run([*options, "-p", PACKAGE.name, *sys.argv[1:]])
    print((out + errors).replace(f"{PACKAGE.relative_to(ROOT)}/", "").strip())
    return status


if __name__ == "__main__":
    sys.exit(main())
