"""python training/train.py {prepare,finetune,lcd,…} …: registers this folder's parent as a package, so that relative
imports work from any directory and no path is edited."""

import importlib
import importlib.util
import io
import sys
from pathlib import Path

NAME = "pixart_delta"


def register() -> None:
    """Make `import pixart_delta` give the root folder."""
    root = Path(__file__).resolve().parents[1]
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        assert spec is not None and spec.loader is not None, f"{root} is a folder with an __init__.py"
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)


register()  # here, because spawned helper processes (Windows, macOS) import this file but do not run it

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # file names may hold what a console, or no encoding at all, can show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = importlib.import_module(f"{NAME}.training.cli").main()
    importlib.import_module(f"{NAME}.training.launcher").leave(code)
