"""A real ComfyUI on the device, held to 8 GB: every bundled workflow. On the CPU one, as tests/nodes draws them all."""

import pytest

from tests.bench.gpu_comfyui import ROOT, eight_gb, run_workflow
from tests.nodes.panel import end_trainings
from tools.comfy_server import ComfyServer, comfyui_trees

FILES = [file for file in sorted((ROOT / "workflows").glob("*.json")) if not file.stem.endswith("(1024 px)")]
"""Without those that are wired for the released weights."""
RUNS = [pytest.param("cpu", FILES[0], id="cpu")]
RUNS += [pytest.param("cuda", file, marks=pytest.mark.gpu, id=f"cuda-{file.stem}") for file in FILES]


@pytest.fixture(scope="module")
def server(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    tree = next(iter(comfyui_trees().values()))
    with ComfyServer(tree, base, ROOT, eight_gb(base), cpu=request.param == "cpu") as running:
        yield running
        end_trainings(running)  # one that failed or took too long would outlive ComfyUI


@pytest.mark.parametrize(("server", "file"), RUNS, indirect=["server"])
def test_a_bundled_workflow(server, file):
    assert server.import_seconds("eight_gb") >= 0, "what holds it to 8 GB was not loaded"
    assert run_workflow(server, file, steps=4)
