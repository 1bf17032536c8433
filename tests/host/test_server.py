"""tools/comfy_server.py against the real ComfyUI, with stock nodes only."""

from __future__ import annotations

import pytest

from tools.comfy_server import FOLDER, ComfyServer, ServerError


def picture(width=64, batch=1, color=255) -> dict:
    size = {"width": width, "height": 64, "batch_size": batch, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


def test_a_prompt_gives_images_events_and_seconds_per_node(comfy_server):
    seen = []
    result = comfy_server.prompt(picture(batch=3, color=1), on_event=lambda kind, data: seen.append(kind))
    assert result.errors == [] and not result.interrupted
    assert len(result.images) == 3 and all(image.startswith(b"\x89PNG") for image in result.images)
    assert set(result.node_seconds) == {"1", "2"} and sum(result.node_seconds.values()) <= result.seconds
    assert seen == [kind for _, kind, _ in result.events] and "execution_start" in seen
    assert result.history["status"]["status_str"] == "success"
    cached = comfy_server.prompt(picture(batch=3, color=1))
    assert "1" not in cached.node_seconds, "the picture should have come from ComfyUI's cache"


def test_refused_and_failing_graphs_are_errors_that_name_the_node(comfy_server):
    refused = comfy_server.prompt(picture(width=-1))
    assert refused.prompt_id is None
    assert refused.errors == ["EmptyImage (node 1): Value -1 smaller than min of 1: width"]
    (unknown,) = comfy_server.prompt({"1": {"class_type": "NoSuchNode", "inputs": {}}}).errors
    assert "NoSuchNode" in unknown


def test_a_server_that_cannot_start_says_why(newest_comfyui, tmp_path):
    with pytest.raises(ServerError, match="unrecognized arguments: --no-such-option"):
        ComfyServer(newest_comfyui, tmp_path, extra_args=["--no-such-option"]).start()


def test_an_extension_that_fails_to_import_is_an_error(newest_comfyui, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('planted')\n")
    with pytest.raises(ServerError, match=f"could not import {FOLDER}"):
        ComfyServer(newest_comfyui, tmp_path / "base", broken).start()


def test_a_server_that_dies_during_a_prompt_is_an_error(newest_comfyui, tmp_path):
    with ComfyServer(newest_comfyui, tmp_path, None, ["--disable-all-custom-nodes"]) as server:
        with pytest.raises(ServerError, match="connection to ComfyUI broke"):
            server.prompt(picture(), on_event=lambda kind, data: server.process.kill())
        process = server.process
    assert process.returncode is not None and server.process is None
