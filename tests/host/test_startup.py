"""What the extension costs ComfyUI at start, and what ComfyUI reads from its metadata."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tools.comfy_server import FOLDER

ROOT = Path(__file__).resolve().parents[2]

# Runs in ComfyUI's interpreter, with its folder first on the path, as its loader does.
LOADED_BY_US = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import utils.extra_config, server, execution, nodes  # what main.py has imported by then
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
before, path = set(sys.modules), list(sys.path)
assert asyncio.run(nodes.load_custom_node(sys.argv[2])), "the extension did not load"
top = sorted({name.split(".")[0] for name in set(sys.modules) - before if not name.startswith(sys.argv[2])})
print(json.dumps({"modules": top, "path_edited": sys.path != path}))
"""


def test_comfyui_says_how_long_our_import_took(comfy_server):
    """Its own line for every custom node; tests/bench/bench_startup.py holds it to 0.3 s on a quiet machine."""
    assert comfy_server.import_seconds() >= 0


def test_all_nodes_are_there_with_tooltips_and_help(comfy_server):
    ours = {name: schema for name, schema in comfy_server.object_info().items() if name.startswith("PixArtDelta")}
    assert len(ours) >= 8, sorted(ours)
    for name, schema in ours.items():
        assert schema["python_module"] == f"custom_nodes.{FOLDER}" and schema["category"].startswith("PixArt-δ")
        for group in ("required", "optional"):
            for input_name, spec in schema["input"].get(group, {}).items():
                assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{input_name} has no tooltip"
        assert len(comfy_server.request(f"/extensions/{FOLDER}/docs/{name}.md")) > 200, f"{name} has no help page"


def test_nothing_heavy_is_loaded_before_first_use(comfyui_path):
    """Loading the extension, nodes and all, brings in no package that ComfyUI had not loaded, and edits no path."""
    result = subprocess.run(
        [sys.executable, "-c", LOADED_BY_US, str(comfyui_path), str(ROOT)],
        capture_output=True,
        text=True,
        cwd=comfyui_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    loaded = json.loads(result.stdout.splitlines()[-1])
    assert not loaded["path_edited"]
    foreign = [name for name in loaded["modules"] if name not in sys.stdlib_module_names]
    assert foreign == [], f"loaded at start: {foreign}"


def test_comfyui_reads_our_metadata(comfyui_path):
    """ComfyUI's own parser finds the versions that it compares with its own and the frontend's."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from comfy_config.config_parser import extract_node_configuration\n"
        "config = extract_node_configuration(sys.argv[2])\n"
        "print(json.dumps([config.project.name, config.project.supported_comfyui_version,"
        " config.project.supported_comfyui_frontend_version, config.tool_comfy.display_name]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(comfyui_path), str(ROOT)], capture_output=True, text=True, cwd=comfyui_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    name, comfyui, frontend, display_name = json.loads(result.stdout)
    assert (name, display_name) == ("pixart-delta", "PixArt-δ")
    assert comfyui.startswith(">=") and frontend.startswith(">=")
