"""The routes behind the panel's form and its renaming: the same checks as everything else that starts a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pixart_delta.pixart_core.textfile import read_json

from tests.nodes.panel import record
from tests.nodes.routes import BASE, FOREIGN, JOBS, call, ids, post, write_job
from tests.training.shards_fixture import make_features

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
FORM = "/pixart_delta/form"


def send(server, settings: dict, headers=None, **more) -> tuple[int, dict]:
    values = {"command": "lcd", "settings": {"base": BASE, "data": "data", **settings}, "name": "x", **more}
    status, answer, _ = call(server, "POST", FORM, values, headers)
    return status, answer


def test_the_form_lists_the_trainers_own_settings(server, root):
    from pixart_delta.training.config import TRAININGS

    form = server.get(FORM)
    assert list(form["commands"]) == list(TRAININGS)
    rows = {row["name"]: row for row in form["commands"]["lcd"]}
    assert {"run", "output"} & set(rows) == set()
    assert rows["steps"] == {
        "name": "steps",
        "type": "int",
        "default": 10000,
        "required": False,
        "help": "optimiser steps in all",
        "low": 1,
        "high": 10**9,
    }
    assert rows["base"]["path"]
    assert rows["base"]["required"]
    assert rows["loss"]["choices"] == ["huber", "l2"]
    assert BASE in [each["value"] for each in form["names"]["base"]]


def test_a_form_queues_a_job_and_the_same_one_is_found_again(server, root):
    make_features(server.base / "input" / "formed", width=64)
    status, made = send(server, {"steps": 5, "data": "formed"})
    assert status == 200 and made["text"].startswith("x: queued"), made
    settings = server.get(f"{JOBS}/{made['job']}")["settings"]
    assert settings["steps"] == 5 and settings["data"] == str(server.base / "input" / "formed")
    assert send(server, {"steps": 5, "data": "formed"})[1]["job"] == made["job"]
    assert send(server, {"steps": 6, "data": "formed"})[1]["job"] != made["job"]


def test_a_recipe_fills_what_is_left_at_its_default(server, root):
    make_features(server.base / "input" / "cooked", width=64)
    assert server.get(FORM)["recipes"][0] == "auto"
    values = read_json(ROOT / "training/recipes/nano_student.json")
    assert values["batch_size"] != 3
    for recipe in ("nano", "auto"):  # the base is the bundled one
        status, made = send(server, {"batch_size": 3, "data": "cooked"}, recipe=recipe)
        assert status == 200 and "recipe nano: " in made["text"], made
        settings = server.get(f"{JOBS}/{made['job']}")["settings"]
        assert settings["batch_size"] == 3 and settings["learning_rate"] == values["learning_rate"]
    assert "3gb" in send(server, {"data": "cooked"}, recipe="3gb")[1]["error"]


def test_a_dataset_is_named_by_its_job(server, root):
    write_job(root, "scenes", command="prepare", settings={"output": str(root / "scenes" / "dataset")})
    assert {"value": "scenes", "text": "scenes"} in server.get(FORM)["names"]["data"]
    status, made = send(server, {"data": "scenes"})
    assert status == 200, made
    assert server.get(f"{JOBS}/{made['job']}")["settings"]["data"] == str(root / "scenes" / "dataset")


def test_an_estimate_queues_nothing(server, root):
    make_features(server.base / "input" / "measured", width=64)
    status, answer = send(server, {"data": "measured", "batch_size": 1}, check=True)
    assert status == 200, answer
    assert answer["job"] == ""
    assert answer["text"]
    assert ids(server) == ["holder"]


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"lerning_rate": 1}, "did you mean learning_rate"),
        ({"steps": "5; rm -rf /"}, "a whole number is wanted"),
        ({"run": "/tmp/elsewhere"}, "chosen by the queue"),
        ({"data": "/etc"}, "not in a folder that trainings may read"),
        ({"data": ""}, "dataset is not set"),
        ({"models": "../.."}, "not in a folder that trainings may read"),
        ({"base": "bundled/nano (HED)"}, "there is no"),
        ({"data": ["data"]}, ""),
    ],
)
def test_bad_settings_are_named(server, root, settings, problem):
    status, answer = send(server, settings)
    assert status == 400, answer
    assert problem in answer["error"], answer
    assert ids(server) == ["holder"], answer


@pytest.mark.parametrize(
    "more",
    [{"command": "sample"}, {"name": 5}, {"check": "yes"}, {"argv": ["sh"]}, {"settings": []}, {"recipe": 8}],
    ids=str,
)
def test_a_form_is_nothing_else(server, root, more):
    body = {"command": "lcd", "settings": {"base": BASE, "data": "data"}, "name": "x", **more}
    assert call(server, "POST", FORM, body)[0] == 400 and ids(server) == ["holder"]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", [FORM, f"{JOBS}/holder/rename", f"{JOBS}/holder/open"])
def test_requests_of_other_pages_are_refused(server, root, headers, path):
    status, _, _ = call(server, "POST", path, {"name": "x"}, {"Content-Type": "application/json", **headers})
    assert status == 403 and server.get(f"{JOBS}/holder")["name"] == "holder"


@pytest.mark.parametrize("method, path", [("GET", FORM), ("POST", FORM), ("POST", f"{JOBS}/holder/open")])
def test_another_name_that_leads_here_is_refused(server, root, method, path):
    headers = {"Content-Type": "application/json", "Host": "rebound.example"}
    assert call(server, method, path, {} if method == "POST" else None, headers)[0] == 403


def test_a_job_is_renamed_and_keeps_its_place(server, root):
    write_job(root, "first", order=2.0), write_job(root, "second", order=3.0)
    before = ids(server)
    assert post(server, "/first/rename", {"name": " Lake "}) == (200, "")
    assert server.get(f"{JOBS}/first")["name"] == "Lake" and ids(server) == before
    assert json.loads((record(root / "first") / "job.json").read_text())["name"] == "Lake"


@pytest.mark.parametrize("name", ["", " ", "../up", "a/b", "nul\0", "x" * 100, 5, None])
def test_a_name_that_cannot_be_is_refused(server, root, name):
    write_job(root, "named")
    assert post(server, "/named/rename", {"name": name})[0] in (400, 409)
    assert server.get(f"{JOBS}/named")["name"] == "named"


@pytest.mark.parametrize("job_id", ["..", "%2e%2e", "nobody", "..%2f.."])
def test_only_the_folder_of_a_job_is_opened(server, root, job_id):
    write_job(root, "other")
    status, answer, _ = call(server, "POST", f"{JOBS}/other/open", {})
    # No screen is here: the path is all there is.
    assert status == 200 and answer == {"folder": str(root / "other"), "opened": False}
    assert post(server, f"/{job_id}/open")[0] in (403, 404, 405)
