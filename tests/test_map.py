"""ARCHITECTURE.md names what is there: every file, and every function in it, so that the map cannot rot."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
ROOMS = ("pixart_core", "nodes", "training", "web", "tests", "tools")
FILES = [path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.*")]
"""Of the rooms; what lies in the root is found by its name."""
OTHERS = {"config.json", "--help", "--set", "setting(...)", "output/pixart_delta/training"}
"""What is no code of ours: a run's file, options of the command line."""


def quoted(text):
    """What stands between backticks; lines are broken anywhere."""
    return sorted(set(" ".join(each.split()) for each in re.findall(r"`([^`]+)`", text)) - OTHERS)


def defined(source):
    """Names that a module defines, and those of its classes as Class.name."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Assign):
            names |= {each.id for each in node.targets if isinstance(each, ast.Name)}
        if isinstance(node, ast.ClassDef):
            inside = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{each.name}" for each in inside}
    return names


NAMES = {
    file: defined((ROOT / file).read_text(encoding="utf-8"))
    for file in [*FILES, "__init__.py"]
    if file.endswith(".py") and not file.startswith("tests/")
}


def is_there(said):
    """Whether `file: names`, `module.name`, `Class.method`, a name alone, a file or a folder is there."""
    path, _, names = said.partition(": ")
    if "/" in path or path.endswith((".py", ".mjs")):
        path = path.split(" ")[0]
        if path.endswith("/") or not Path(path).suffix:
            return any(f"/{path.strip('/')}/" in f"/{file}" for file in FILES) or (ROOT / path).is_dir()
        found = [file for file in FILES if f"/{file}".endswith(f"/{path}")] or [path] * (ROOT / path).is_file()
        return any(all(name in NAMES.get(file, ()) for name in names.split(", ") if name) for file in found)
    module, _, name = said.partition(".")
    stems = {Path(file).stem for file in FILES} | {part for file in FILES for part in file.split("/")[:-1]}
    if any(said in names for names in NAMES.values()) or said in stems:
        return True
    of_module = any(Path(file).stem == module and name in names for file, names in NAMES.items())
    return of_module or any(f"/{module}/{name}." in f"/{file}" for file in FILES)  # or room.module


@pytest.mark.parametrize("said", quoted(TEXT))
def test_what_the_map_names_is_there(said):
    assert is_there(said), f"ARCHITECTURE.md names {said}: nothing is called so"


@pytest.mark.parametrize(
    "said",
    ["bridge/nothing.py", "distill.py: nothing", "training/lora.py: Nothing.x", "lora.nothing", "Nothing", "no/"],
)
def test_what_is_not_there_is_noticed(said):
    assert not is_there(said)


@pytest.mark.parametrize(
    "question", ["DDIM step of LCD", "LoRA's alpha is decided", "a job is started", "a wrong file is named"]
)
def test_a_stranger_finds_file_and_function(question):
    (row,) = (line for line in TEXT.splitlines() if question in line and line.startswith("|"))
    assert any(re.fullmatch(r"(\w+/)+\w+\.py: [\w.]+", said) and is_there(said) for said in quoted(row)), row


def test_the_map_is_one_page():
    assert len(TEXT.splitlines()) <= 150
