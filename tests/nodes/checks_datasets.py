"""Checks of inside_jobs.py: the nodes of datasets, and the jobs that make them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from unittest import mock

from setup_jobs import BASE, DESCRIPTION, raises


def check_a_folder_without_pictures_is_refused(setup):
    (setup.input / "empty").mkdir()
    before = len(setup.jobs.queue().jobs())
    with raises("empty holds no pictures"):
        setup.prepare("wrong", "empty")
    assert len(setup.jobs.queue().jobs()) == before


def check_prompts_are_a_dataset_of_what_the_base_draws(setup):
    """From a text, or from a file in the input folder; changed prompts are another dataset; what cannot draw is
    refused, with the job's message."""
    make = setup.dataset.prepare_dataset
    values = {"base": BASE, "models": "bundled/nano", "resolution": 128}
    with raises("prompts is empty"):
        setup.dataset.prompts_file(" \n")
    file = setup.dataset.prompts_file("a lake\n\n a desert \n")
    assert Path(file).read_text() == "a lake\na desert\n" and Path(file).is_relative_to(setup.output)
    assert setup.dataset.prompts_file("a lake\na desert") == file
    made = make("drawn", values | {"prompts": file, "lora": "bundled/nano (sepia)"}, 'shapes=["1:1"]', 16)
    seen = setup.jobs.queue().job(made.job).settings
    assert made.pictures == []
    assert seen["lora"].endswith("style_lora")
    assert seen["base"].endswith("base.safetensors")
    (setup.input / "prompts.txt").write_text("a meadow")
    from_file = make("drawn too", values | {"prompts": "prompts.txt"}, "", 16)
    setup.finish(from_file)
    assert make("drawn too", values | {"prompts": "prompts.txt"}, "", 16).report.startswith("{}drawn too: done")
    (setup.input / "prompts.txt").write_text("a desert")
    again = make("drawn too", values | {"prompts": "prompts.txt"}, "", 16)
    assert again.job == from_file.job and setup.jobs.queue().job(again.job).state == "queued"
    training, text = setup.train("from prompts", data=str(made.folder))
    assert text.startswith("from prompts: queued"), text
    for change, problem in (
        ({"base": str(setup.files.BUNDLE / "nano" / "hed" / "hed.safetensors")}, "transformer but a HED edge detector"),
        ({"lora": str(setup.files.BUNDLE / "nano" / "hed" / "hed.safetensors")}, "is not a LoRA but"),
        ({"hints": "canny"}, "there are no pictures"),
    ):
        with raises(problem):
            make("wrong", values | {"prompts": file} | change, "", 16)
    assert "wrong" not in [job.name for job in setup.jobs.queue().jobs()]


def check_hints_come_from_a_batch_of_images(setup):
    """One for each picture in the order of their names, kept as files, with what they are."""
    import numpy as np
    import torch
    from PIL import Image

    images = torch.rand(2, 64, 64, 3)
    values = setup.dataset.hints_of_images("pictures", images, "canny", "")
    assert (values["hints"], values["hint_kind"]) == ("folder", "canny")
    for name, image in zip(("a", "b"), images, strict=True):
        with Image.open(Path(values["hint_folder"], f"{name}.png")) as kept:
            assert np.abs(np.asarray(kept) / 255 - image.numpy()).max() < 0.003
    settings = {"input": "pictures", "models": "bundled/nano", "resolution": 128, **values}
    made = setup.dataset.prepare_dataset("with hints", settings, "", 16)
    assert setup.jobs.queue().job(made.job).settings["hint_folder"].startswith(str(setup.output))
    setup.train("follows them", "controlnet", data=str(made.folder), more="copy_blocks=1")
    with raises("hint_images holds 3 pictures, and pictures 2"):
        setup.dataset.hints_of_images("pictures", torch.rand(3, 64, 64, 3), "canny", "")


def check_hints_of_another_kind_are_said(setup):
    """By the nearest preprocessor above the node, whatever lies between; where nothing tells, nothing is said."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "PixArtDeltaHEDPreprocessor", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "Canny", "inputs": {"image": ["2", 0]}},
        "4": {"class_type": "ImageScale", "inputs": {"image": ["3", 0]}},
        "5": {"class_type": "PixArtDeltaApplyControlNet", "inputs": {"image": ["4", 0], "vae": ["2", 0]}},
    }
    with mock.patch.object(setup.hints, "say") as said:
        text = setup.hints.warn_of_another("hed", graph, "5")
        assert "was trained on hed, and its image comes from Canny, which makes canny" in text
        assert said.call_args.args[0] == text
        for trained, node in (("canny", "5"), ("", "5"), ("hed", "3"), ("canny", "2")):
            assert setup.hints.warn_of_another(trained, graph, node) == "", (trained, node)
        assert said.call_count == 1


def check_shards_that_do_not_fit_are_refused(setup):
    made = setup.prepare("large")
    made.folder.mkdir(exist_ok=True)
    (made.folder / "report.txt").write_text("two pictures")
    (made.folder / "report.json").write_text(json.dumps({"bytes": 10**18, "buckets": {}}))
    with raises("the shards of"):
        setup.prepare("large")


def check_a_dataset_is_made_again_when_its_pictures_change(setup):
    setup.pictures(setup.input / "changing")
    masks = setup.input / "masks"
    setup.pictures(masks)
    prepare = functools.partial(setup.prepare, "changing", "changing", masks="folder", mask_folder=str(masks))
    made = prepare()
    setup.finish(made)
    job = setup.jobs.queue().job
    assert prepare().job == made.job and job(made.job).state == "done"
    for change in (
        lambda: setup.pictures(setup.input / "changing", ("c",)),
        lambda: (setup.input / "changing" / "a.txt").write_text("another caption"),
        lambda: (setup.input / "changing" / "b.png").unlink(),
        lambda: (masks / "a.png").unlink(),
    ):
        change()
        again = prepare()
        assert again.job == made.job
        assert job(made.job).state == "queued"
        assert "the queue" in again.report
        setup.finish(again)
    assert prepare().report.startswith("{}changing: done")

    values = {"base": BASE, "data": str(made.folder), "steps": 3}
    (made.folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    reader, _ = setup.training.start_training("lcd", "the reader", values, "", False, False)
    setup.put(reader, "running")
    setup.pictures(setup.input / "changing", ("d",))
    with raises("training the reader reads its dataset"):
        prepare()
    setup.put(reader, "paused")


def check_a_paused_dataset_is_not_said_to_wait(setup):
    made = setup.prepare("paused")
    assert made.report.startswith("It waits in the queue")
    setup.put(made.job, "paused")
    assert setup.prepare("paused").report.startswith("It is paused: resume it in the panel")
    setup.put(made.job, "running")
    assert setup.prepare("paused").report.startswith("The pictures are still being looked at")
    setup.put(made.job, "paused")


def check_a_list_shows_its_pictures_and_none_from_elsewhere(setup):
    setup.pictures(setup.input / "elsewhere")
    setup.pictures(setup.input.parent / "private", ("secret",))
    folder = setup.input / "lists"
    folder.mkdir(exist_ok=True)
    names = ["../elsewhere/a.png", "../elsewhere/b.png", "../../private/secret.png"]
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": "x"}) + "\n" for name in names)
    )
    made = setup.prepare("listed", "lists/metadata.jsonl")
    assert [file.name for file in made.pictures] == ["a.png", "b.png"]
    inside = setup.jobs.queue().job(made.job).settings["only_inside"]
    assert str(setup.input) in inside and str(setup.input.parent) not in inside
    with raises("only_inside is chosen by the queue"):
        setup.dataset.prepare_dataset("x", {"input": "lists", "models": "bundled/nano"}, 'only_inside=["/"]', 16)
