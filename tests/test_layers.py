"""The import rules of the design, read from the source: who may import whom, and nothing heavy before first use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pixart_core", "nodes", "training")
ALLOWED = {
    "pixart_core": {"pixart_core"},
    "nodes": {
        "nodes",
        "pixart_core",
        "training.jobs",
        "training.run_dir",
        "training.config",
        "training.recipes",
        "training.estimate",  # what a training will take is shown before it starts
        "training.prepare.sources",  # which pictures a dataset is made from: to show some, and to see that they changed
        "training.prepare.prompted",  # which it will draw, and whether it can
        "training.prepare.inside",  # which files may be read
    },
    "training": {"training", "pixart_core"},
    "": {"nodes"},  # the root __init__.py
}
STANDARD_LIBRARY_ONLY = (
    "training/jobs/",
    "training/run_dir.py",
    "training/config.py",
    "training/prepare/options.py",
    "training/settings.py",
    "training/recipes/",
    "training/storage.py",
    "training/machine.py",
    "training/launcher.py",
    "training/cli.py",
)
COMFYUI = {"app", "comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths"} | {
    "latent_preview",
    "node_helpers",
    "server",
    "utils",
}
HEAVY = {"transformers", "diffusers", "accelerate", "bitsandbytes", "peft", "controlnet_aux", "cv2", "scipy"}
"""Take long to import: only inside functions, in everything that ComfyUI's process can load."""


def source_files() -> list[Path]:
    return [ROOT / "__init__.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path, module_scope_only: bool = False) -> list[tuple[int, str]]:
    """(level, dotted module) of every import; `from . import a` counts as an import of `.a`."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.extend((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.extend((node.level, name) for name in names)
            # `from ..training import jobs` names a module by its parts.
            found.extend((node.level, f"{node.module}.{alias.name}") for alias in node.names if node.module in ROOMS)
        for child in ast.iter_child_nodes(node):
            if module_scope_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if module_scope_only and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def our_target(path: Path, level: int, module: str) -> str | None:
    """The dotted name inside the repository that a relative import leads to."""
    if level == 0:
        return None
    package = list(path.relative_to(ROOT).parent.parts)
    base = package[: len(package) - (level - 1)]
    assert level - 1 <= len(package), f"{path}: an import leads out of the repository"
    return ".".join([*base, module])


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = room_of(path)
    for level, module in imports(path):
        target = our_target(path, level, module)
        if target is None:
            assert module.split(".")[0] not in ROOMS, f"absolute import of our own {module}: use a relative one"
        elif target not in ROOMS or target not in ALLOWED[room]:
            allowed = any(f"{target}.".startswith(f"{name}.") for name in ALLOWED[room])
            # `from ..training import jobs` is seen as `training` too: its parts are judged instead.
            partial = any(name.startswith(f"{target}.") for name in ALLOWED[room])
            assert allowed or partial, f"{room or 'the root'} must not import {target}"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_comfyui_is_known_to_nodes_only(path):
    if room_of(path) == "nodes":
        return
    known = {module.split(".")[0] for level, module in imports(path) if level == 0}
    # The entry point runs inside ComfyUI, but has no need of it.
    assert not known & COMFYUI, f"only nodes/ may import ComfyUI: {known & COMFYUI}"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_heavy_at_module_scope(path):
    if path == ROOT / "__init__.py":
        assert not {module for level, module in imports(path, module_scope_only=True)} - {"__future__"}
    modules = {module.split(".")[0] for level, module in imports(path, module_scope_only=True) if level == 0}
    if room_of(path) != "training":
        assert not modules & HEAVY, f"import inside the function that needs it: {modules & HEAVY}"
    if path.relative_to(ROOT).as_posix().startswith(STANDARD_LIBRARY_ONLY):
        assert modules <= sys.stdlib_module_names, f"standard library only: {modules - sys.stdlib_module_names}"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_process_is_left_alone(path):
    """No sys.path edit, no process-wide environment variable, at import or later."""
    if path == ROOT / "training" / "train.py":
        return  # a program of its own: it registers the folder as a package
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            assert node.attr != "path", f"{path.name}:{node.lineno} touches sys.path"
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            assert ast.unparse(node.value) != "os.environ", f"{path.name}:{node.lineno} sets an environment variable"


def test_no_module_imports_itself_by_a_circle():
    """At module scope: what is imported inside a function is imported when everything is there."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in source_files()}

    def needs(name: str) -> set[str]:
        targets = {our_target(modules[name], *each) for each in imports(modules[name], module_scope_only=True)}
        return {each for target in targets if target for each in (target, f"{target}.__init__") if each in modules}

    left = {name: needs(name) - {name} for name in modules}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"


def test_names_that_occur_twice_are_listed():
    """One name, one meaning: within a room no file is called as another; across rooms ARCHITECTURE.md lists them."""
    rooms: dict[str, list[str]] = {}
    for path in source_files():
        if path.stem != "__init__" and path != ROOT / "training" / "shards.py":  # which others import by that name
            rooms.setdefault(path.stem, []).append(room_of(path))
    # The makers of the bundled family are called as what they make.
    rooms |= {path.stem: rooms[path.stem][:-1] for path in (ROOT / "training" / "nano").glob("[a-z]*.py")}
    twice = {name for name, found in rooms.items() if len(set(found)) < len(found)}
    assert not twice, f"two files of one room have a name: {sorted(twice)}"
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = set(
        re.findall(r"`(\w+)`", text.partition("## Names that occur twice")[2].partition(": the same thing")[0])
    )
    assert listed == {name for name, found in rooms.items() if len(found) > 1}


def test_the_hallway_of_training_is_short():
    """What has no door of its own there stands in a folder of its subject."""
    assert len(list((ROOT / "training").glob("*.py"))) <= 24


def test_a_planted_violation_is_caught(tmp_path):
    """The rules above would notice: an import inside a function, by parts, and in a class body."""
    planted = tmp_path / "planted.py"
    planted.write_text("import os\ndef f():\n    from ..training import loop\nclass A:\n    import diffusers\n")
    assert (2, "training.loop") in imports(planted)
    assert (0, "diffusers") in imports(planted, module_scope_only=True)
    assert (2, "training.loop") not in imports(planted, module_scope_only=True)


def test_the_root_package_imports_without_comfyui_and_costs_nothing():
    """The root folder under any name, in a fresh interpreter: no torch, nothing of ours, no ComfyUI."""
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('any.name', sys.argv[1] + '/__init__.py',"
        " submodule_search_locations=[sys.argv[1]])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['any.name'] = module\n"
        "before = set(sys.modules); spec.loader.exec_module(module)\n"
        "assert module.WEB_DIRECTORY == './web' and callable(module.comfy_entrypoint)\n"
        "assert not hasattr(module, 'NODE_CLASS_MAPPINGS'), 'ComfyUI would ignore the V3 entry point'\n"
        "print(sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['__future__']"
