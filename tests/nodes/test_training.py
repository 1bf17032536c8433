"""The training nodes in the real ComfyUI: schemas and help pages, a dataset and a training to its end, its result."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.nodes.graphs import node
from tools.comfy_server import ComfyServer, comfyui_trees
from tools.workflow_api import find_node, load_workflow, to_api

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
TRAININGS = {
    "PixArtDeltaTrainLCD": "lcd",
    "PixArtDeltaTrainLCMLora": "lcm-lora",
    "PixArtDeltaTrainControlNet": "controlnet",
    "PixArtDeltaFineTune": "finetune",
}
NODES = [*TRAININGS, "PixArtDeltaDataset", "PixArtDeltaTrainingStatus", "PixArtDeltaTrainedResult"]
LCD, LCM_LORA, CONTROLNET = (
    "PixArt 20 Train LCD",
    "PixArt 21 Train LCM-LoRA",
    "PixArt 22 Train ControlNet",
)
WORKFLOWS = (LCD, LCM_LORA, CONTROLNET)
FINE_TUNE = "fine_tune"
JOBS = "/pixart_delta/jobs"
INSIDE = "inside_jobs.py"


def test_inside(run_inside, inside_check):
    found = run_inside(INSIDE, lambda folder: folder)
    assert found[inside_check] == "", found[inside_check]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ComfyServer(next(iter(comfyui_trees().values())), tmp_path_factory.mktemp("training")) as running:
        yield running
        for job in running.get(JOBS)["jobs"]:
            if "kill" in job["actions"]:
                running.post(f"{JOBS}/{job['id']}/kill", {})


def inputs_of(server, name: str) -> dict:
    schema = server.object_info(name)[name]["input"]
    return {**schema.get("required", {}), **schema.get("optional", {})}


def graph_of(server, workflow: str, **settings) -> tuple[dict, dict]:
    """A bundled training workflow that takes few steps, and its training node's inputs."""
    file = LCD if workflow == FINE_TUNE else workflow
    graph = to_api(load_workflow(ROOT / "workflows" / f"{file}.json"), server.object_info())
    node_id = training_id(graph)
    if workflow == FINE_TUNE:
        values = {name: value for name, value in graph[node_id]["inputs"].items() if name != "guidance"}
        graph[node_id] = node("PixArtDeltaFineTune", **values | {"name": FINE_TUNE, "lora_rank": 0})
    training = graph[node_id]["inputs"]
    training |= {"steps": 2, "batch_size": 2, "sample_every": 2, "checkpoint_every": 2, **settings}
    training["more_settings"] += "\nworkers=0"
    return graph, training


def finish(server, name: str) -> dict:
    """The job when it has ended. It may take as long as it needs, but not stand still for ten minutes."""
    before, deadline = None, 0.0
    while True:
        found = next(job for job in server.get(JOBS)["jobs"] if job["name"] == name)
        if found["state"] in ("done", "failed"):
            return found
        if (now := (found["state"], found.get("step"), found["reason"])) != before:
            before, deadline = now, time.monotonic() + 600
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


@pytest.mark.parametrize("name", NODES)
def test_help_pages_name_every_input(server, name):
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert not [entry for entry in inputs_of(server, name) if f"`{entry}`" not in page]


@pytest.mark.parametrize("name, command", TRAININGS.items())
def test_settings_are_the_trainers_own(server, name, command):
    from pixart_delta.training.config import COMMANDS

    fields, inputs = COMMANDS[command].__dataclass_fields__, inputs_of(server, name)
    shared = set(fields) & set(inputs) - {"base", "run", "sample_prompts"}  # a text here, one prompt a line
    assert {"steps", "batch_size", "learning_rate", "precision", "checkpoint_every"} <= shared
    assert "seed" not in inputs, "the editor changes it after every run"
    for entry in shared:
        options = inputs[entry][1]
        assert options["default"] == fields[entry].default
        assert options["tooltip"].lower() == fields[entry].metadata["help"].lower() + "."


@pytest.mark.parametrize("name", [*WORKFLOWS, FINE_TUNE])
def test_a_bundled_training_runs_and_its_result_draws(server, name):
    """Dataset, training with a sample, status, and a picture or a ControlNet of what came out."""
    graph, training = graph_of(server, name, free_memory=name == FINE_TUNE)
    result = server.prompt(graph)
    assert result.errors == [], result.errors
    texts = {each["class_type"]: server_text(result, node_id) for node_id, each in graph.items()}
    assert "48 can be used" in texts["PixArtDeltaDataset"]
    done = finish(server, training["name"])
    assert done["state"] == "done" and done["step"] == 2, done
    assert server.get(f"{JOBS}/{done['id']}/samples")["samples"][-1]["step"] == 2

    again = server.prompt(graph)
    assert again.errors == [] and len([job for job in server.get(JOBS)["jobs"] if job["name"] == training["name"]]) == 1
    status = server_text(again, find_node(graph, "PixArtDeltaTrainingStatus"))
    assert "step 2 of 2" in status and "memory of the device" in server_text(again, training_id(graph))
    for each in (training_id(graph), find_node(graph, "PixArtDeltaTrainingStatus")):
        assert again.outputs[each]["pixart_delta_job"] == [done["id"]], "the browser shows its progress there"

    drawn = to_api(load_workflow(ROOT / "workflows" / "PixArt 30 Use What You Trained.json"), server.object_info())
    offered = inputs_of(server, "PixArtDeltaTrainedResult")["result"][1]["options"]
    assert f"{done['name']} ({done['id']})" in offered
    by_id = {"job": done["id"]} if name == LCD else {"result": f"what it was called before ({done['id']})"}
    drawn[find_node(drawn, "PixArtDeltaTrainedResult")]["inputs"] |= by_id
    if name == CONTROLNET:
        apply_control(drawn)
    pictures = server.prompt(drawn)
    assert pictures.errors == [] and pictures.images[0].startswith(b"\x89PNG")
    said = server_text(pictures, find_node(drawn, "PixArtDeltaTrainedResult"))
    assert said.startswith(f"{done['name']}: done") and f"of {done['name']} ({done['command']}" in said


def training_id(graph: dict) -> str:
    return next(node_id for node_id, each in graph.items() if each["class_type"] in TRAININGS)


def server_text(result, node_id: str) -> str:
    return "".join(result.outputs.get(node_id, {}).get("text", ()))


def apply_control(graph: dict) -> None:
    """Put the trained ControlNet between the prompt and the sampler."""
    kinds = ("TrainedResult", "TextEncode", "VAELoader")
    result, text, vae = (find_node(graph, f"PixArtDelta{kind}") for kind in kinds)
    graph["hint"] = node("EmptyImage", width=128, height=128, batch_size=1, color=0)
    graph["apply"] = node(
        "PixArtDeltaApplyControlNet",
        positive=[text, 0],
        negative=[text, 1],
        control_net=[result, 1],
        image=["hint", 0],
        vae=[vae, 0],
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
        resize="crop",
    )
    graph[find_node(graph, "PixArtDeltaLCMSampler")]["inputs"]["positive"] = ["apply", 0]


def test_a_dataset_grows_with_its_folder(server):
    """Run, add a picture, run: the same job is made again from all of them, and its pictures can be seen."""
    scenes, folder = ROOT / "models" / "nano" / "scenes", server.base / "input" / "growing"
    folder.mkdir()
    graph = {
        "data": node(
            "PixArtDeltaDataset",
            folder="growing",
            models="bundled/nano",
            name="growing",
            resolution=128,
            multi_aspect=True,
            hints="none",
            path="growing",
            more_settings="workers=0",
        ),
        "save": node("SaveImage", images=["data", 2], filename_prefix="growing"),
    }
    jobs = []
    for count in (1, 2, 2):
        for name in ("000000", "000001")[:count]:
            for ending in ("png", "txt"):
                shutil.copy2(scenes / f"{name}.{ending}", folder / f"{name}.{ending}")
        result = server.prompt(graph)
        assert result.errors == [] and f"{count} can be used" in server_text(result, "data")
        assert len(result.images) == count, "a picture of each"
        jobs += [finish(server, "growing")]
        assert (jobs[-1]["state"], jobs[-1]["step"]) == ("done", count)
        assert result.outputs["data"]["pixart_delta_job"] == [jobs[-1]["id"]]
    assert [job["attempt"] for job in jobs] == [1, 2, 2] and len({job["id"] for job in jobs}) == 1
    settings = server.get(f"{JOBS}/{jobs[0]['id']}")["settings"]
    assert str(server.base / "input") in settings["only_inside"]


def test_an_estimate_starts_nothing(server):
    """Nor with a student from the loader's list to begin with."""
    graph, training = graph_of(
        server, LCD, run="estimate only", name="estimated", more_settings="student=bundled/nano (student)"
    )
    shown = {
        key: each
        for key, each in graph.items()
        if "Status" not in each["class_type"] and each["class_type"] != "PreviewImage"
    }
    assert server.prompt(shown).errors == []
    finish(server, "nano scenes")
    result = server.prompt(shown)
    assert result.errors == []
    assert "Nothing was written" in server_text(result, training_id(graph))
    assert "estimated" not in [job["name"] for job in server.get(JOBS)["jobs"]]


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"more_settings": "lerning_rate=1"}, "did you mean learning_rate"),
        ({"more_settings": "run=/tmp/elsewhere"}, "run is an input of the node"),
        ({"more_settings": "models=/etc"}, "is an input of the node"),
        ({"more_settings": "student=/etc/passwd"}, "not in a folder that trainings may read"),
        ({"dataset": ""}, "dataset is not set"),
        ({"dataset": "/etc"}, "not in a folder that trainings may read"),
        ({"name": "../x"}, "the name"),
    ],
)
def test_mistakes_are_named_at_the_node(server, change, problem):
    graph, training = graph_of(server, LCD)
    training |= {"dataset": str(server.base / "input"), **change}
    result = server.prompt({"1": node("PixArtDeltaTrainLCD", **training)})
    assert len(result.errors) == 1 and problem in result.errors[0]


def test_no_result_yet_is_said(server):
    result = server.prompt(
        {
            "1": node("PixArtDeltaTrainedResult", job="no-such-job", dtype="default", strength=1.0),
            "2": node("PixArtDeltaLCMSampling", model=["1", 0]),
            "3": node(
                "PixArtDeltaSaveCheckpoint", model=["2", 0], filename_prefix="x", layout="authors", dtype="float32"
            ),
        }
    )
    assert "there is no job no-such-job" in result.errors[0]
