"""Checks of the nodes of background jobs, in ComfyUI's own interpreter: `python inside_jobs.py COMFYUI FOLDER CHECK…`.

Started by test_training.py; prints as inside.py does. No watcher runs: no job ever gets a process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from pathlib import Path
from unittest import mock

from inside import main

BASE = "bundled/nano (base)"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DESCRIPTION = {
    "kind": "pixart_delta_features",
    "version": 2,
    "scaling_factor": 1.0,
    "caption_channels": 64,
    "max_tokens": 40,
    "hints": "",
    "shards": [
        {"name": f"128x128_{number}.tar", "bucket": [128, 128], "count": count, "bytes": 1, "sha256": "0" * 64}
        for number, count in enumerate((12, 5))
    ],
}
"""Of a dataset without hints."""


class Setup:
    """Our modules, and a server's folders with two pictures and a prepared dataset in them."""

    def __init__(self, part, folder: Path):
        import folder_paths

        self.jobs, self.training, self.dataset = (
            part(f"nodes.background.{name}") for name in ("queue", "start", "dataset")
        )
        self.files, self.identify = part("nodes.bridge.files"), part("pixart_core.identify")
        self.estimate, self.result = part("nodes.background.estimate"), part("nodes.background.result")
        self.root, self.hints = part("training.jobs.job"), part("nodes.bridge.hint_kind")
        self.input, self.output = folder / "input", folder / "output"
        folder_paths.set_input_directory(str(self.input))
        folder_paths.set_output_directory(str(self.output))
        folder_paths.set_user_directory(str(folder / "user"))
        self.jobs._queue.cache_clear()  # a node's list of jobs was made before the folders were ours
        self.jobs.watcher = mock.Mock()
        (self.output / "data").mkdir(parents=True, exist_ok=True)
        (self.output / "data" / "dataset.json").write_text(json.dumps(DESCRIPTION))
        self.pictures(self.input / "pictures")
        self.dataset._PATIENCE = 0.1

    @staticmethod
    def pictures(folder: Path, names=("a", "b")) -> None:
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (64, 64), "red").save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text("red")

    def train(self, name: str, command="lcd", *, more="", estimate_only=False, free=False, recipe="", **changed):
        values = {"base": BASE, "data": "data", "steps": 3, **changed}
        return self.training.start_training(command, name, values, more, estimate_only, free, recipe)

    def prepare(self, name: str, place: str = "pictures", **more):
        values = {"input": place, "models": "bundled/nano", "resolution": 128, **more}
        return self.dataset.prepare_dataset(name, values, "", 16)

    def put(self, job_id: str, state: str, **more):
        """A job as it would be later."""
        job = self.jobs.queue().job(job_id)
        job.state = state
        for name, value in more.items():
            setattr(job, name, value)
        self.root.write_job(self.jobs.queue().records / job_id, job)

    def finish(self, made) -> None:
        """As `prepare` leaves it."""
        made.folder.mkdir(exist_ok=True)
        for name in ("dataset.json", "report.json", "report.txt"):
            (made.folder / name).write_text("{}")
        self.put(made.job, "done")


def check_memory_is_freed_when_a_training_is_queued_and_only_then(setup):
    with mock.patch.object(setup.jobs, "free_memory") as freed:
        first, _ = setup.train("freed", free=True)
        again, _ = setup.train("freed", free=True)
        assert first == again and freed.call_count == 1, freed.call_count
        setup.put(first, "failed")
        setup.train("freed", free=True)
        assert freed.call_count == 2 and setup.jobs.queue().job(first).state == "queued"


def check_too_little_memory_or_room_is_refused(setup):
    """With the job's own message; an estimate says it below its table. A job that was queued before stays as it is."""
    little_memory = mock.patch.object(setup.estimate.memory, "get_total_memory", return_value=1e6)
    full = mock.patch("shutil.disk_usage", return_value=(100, 90, 10))
    busy = mock.patch.object(setup.jobs, "running_on", return_value=mock.Mock())
    for short, problem in ((little_memory, "out of memory with batch_size=16"), (full, "only 0.0 MB are free")):
        with short, raises(problem):
            setup.train("small")
        with short, busy:
            _, text = setup.train("small", estimate_only=True)
        assert "together" in text and problem in text.splitlines()[-2], text
        assert not setup.jobs.queue().jobs() or "small" not in [job.name for job in setup.jobs.queue().jobs()]
    _, text = setup.train("small")
    assert "cannot be trained" not in text and "together" in text
    assert "17 of 17 pictures, 1 size, 8 to 9 in a batch" in text, text
    with little_memory:
        assert setup.train("small")[1].startswith("small: queued")


def check_a_base_of_another_kind_is_refused(setup):
    """Whatever it is, and though the dataset is still to come; the message is that of the training."""
    waiting = setup.prepare("to come").folder
    student = setup.files.BUNDLE / "nano" / "transformer"
    for base, command, problem in (
        ("nano/controlnet", "lcm-lora", "not a PixArt-α/δ transformer but a PixArt ControlNet without its base model"),
        ("nano/hed/hed.safetensors", "finetune", "transformer but a HED edge detector"),
        ("nano/lcm_lora", "lcd", "transformer but a LoRA"),
    ):
        for data in ("data", str(waiting)):
            with raises(problem):
                setup.train("wrong", command, base=str(setup.files.BUNDLE / base), data=data)
    plain = setup.output / "without_null_caption.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(setup.files.BUNDLE / "nano" / "base" / "pixart_nano_base.safetensors")
    config = json.loads((student / "config.json").read_text())
    about = {"config": setup.identify.inspect_file(student).config.to_dict()} if config else {}
    save_file(
        {name: each for name, each in state.items() if name != "y_embedder.y_embedding"},
        plain,
        {"pixart_delta": json.dumps(about)},
    )
    with raises("has no learned null caption"):
        setup.train("wrong", base=str(plain))
    setup.train("right", "finetune", base=str(plain), more="caption_drop=0")
    assert "wrong" not in [job.name for job in setup.jobs.queue().jobs()]


def check_a_dataset_that_does_not_fit_is_refused(setup):
    """Without hints for a ControlNet, prepared or promised; of another text encoder; or none at all."""
    promised = setup.prepare("no hints").folder
    for data in ("data", str(promised)):
        with raises("was prepared without hints: run `prepare` again"):
            setup.train("wrong", "controlnet", data=data, more="copy_blocks=1")
    other = setup.output / "other"
    other.mkdir()
    (other / "dataset.json").write_text(json.dumps({**DESCRIPTION, "caption_channels": 4096, "hints": "hed"}))
    with raises("holds text embeddings of 4096 channels"):
        setup.train("wrong", "controlnet", data="other", more="copy_blocks=1")
    (other / "dataset.json").unlink()
    with raises("dataset.json"):
        setup.train("wrong", data="other")
    with raises("copy_blocks=13, wiring=transformer"):
        setup.train("wrong", "controlnet")
    assert "wrong" not in [job.name for job in setup.jobs.queue().jobs()]


def check_a_recipe_counts_where_nothing_was_changed(setup):
    """Of a released base that which fits the device; what somebody wrote wins; the same settings are the same job."""
    values = {"learning_rate": 5e-4, "batch_size": 4, "recipe": "auto"}
    found, text = setup.train("by recipe", "lcm-lora", more="guidance=5", **values)
    seen = setup.jobs.queue().job(found).settings
    assert (seen["lora_rank"], seen["steps"], seen["precision"]) == (4, 3, "fp32")
    (line,) = (line for line in text.splitlines() if line.startswith("recipe nano: "))
    named = {part.split()[0] for part in line.removeprefix("recipe nano: ").split(", ")}
    assert "lora_rank" in named and named.isdisjoint({"steps", "guidance", "learning_rate", "batch_size"}), line
    assert (seen["learning_rate"], seen["batch_size"], seen["guidance"]) == (5e-4, 4, 5.0)
    assert setup.train("by recipe", "lcm-lora", more="guidance=5", **values)[0] == found
    with raises("Train an LCM-LoRA instead"):
        setup.train("too large", recipe="8gb")
    _, text = setup.train("by recipe", "lcm-lora", recipe="12gb", more="workers=0")
    assert "recipe 12gb: " in text
    assert "batch_size 8" in text
    assert "together" in text


def check_missing_packages_are_named(setup):
    for command, package, more in (("lcm-lora", "peft", ""), ("lcd", "bitsandbytes", "optimizer=adamw8bit")):
        with mock.patch.dict(sys.modules, {package: None}), raises(f"{package} is not installed"):
            setup.train("wrong", command, more=more)
    with mock.patch.dict(sys.modules, {"peft": None}):
        setup.train("needs no peft")


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


def check_the_first_choice_of_every_list_works(setup):
    """Beside files of other kinds, of which some are called as if they were none, in the folders of every list."""
    import folder_paths

    bundle, names = setup.files.BUNDLE / "nano", setup.files
    models = setup.output.parent / "models"
    for kind in ("diffusion_models", "checkpoints", "text_encoders", "vae", "loras", "controlnet", "pixart_delta"):
        folder = models / kind
        folder.mkdir(parents=True)
        (folder / "a_pixart.safetensors").symlink_to(bundle / "hed" / "hed.safetensors")
        (folder / "b.safetensors").write_bytes(b"damaged")
        folder_paths.folder_names_and_paths[kind] = ([str(folder)], folder_paths.supported_pt_extensions)
    (models / "diffusion_models" / "c.safetensors").symlink_to(bundle / "controlnet" / WEIGHTS)
    (models / "diffusion_models" / "d.safetensors").symlink_to(bundle / "base" / "pixart_nano_base.safetensors")
    (models / "loras" / "c.safetensors").symlink_to(bundle / "lcm_lora" / "pytorch_lora_weights.safetensors")
    assert names.first_usable("model", "training") == names.first_usable("model") == "d.safetensors"
    assert names.first_usable("lora") == "c.safetensors" and names.first_usable("pipeline") == "bundled/nano"
    (models / "diffusion_models" / "d.safetensors").unlink()
    assert names.first_usable("model", "training") == BASE
    for kind, first in (("text_encoder", "bundled/nano"), ("vae", "bundled/nano"), ("hed", "a_pixart.safetensors")):
        assert names.first_usable(kind) == first, (kind, names.first_usable(kind))
    assert names.first_usable("controlnet") == "bundled/nano (HED ControlNet)"
    (setup.input / "3d").mkdir()
    assert setup.dataset.first_folder() == "pictures"


def check_no_step_is_tried_beside_a_job_of_the_same_device(setup):
    busy, _ = setup.train("busy")
    setup.put(busy, "running")
    with mock.patch.object(setup.training, "_dry_run", return_value="one step") as tried:
        _, text = setup.train("tried", estimate_only=True)
        assert "busy has the device now: run this again" in text
        assert "together" in text
        assert not tried.called
        setup.put(busy, "paused")
        assert setup.train("tried", estimate_only=True) == ("", "one step")


def check_a_queued_job_says_what_it_waits_for(setup):
    busy, _ = setup.train("holder")
    setup.put(busy, "running")
    waiting, text = setup.train("waiting")
    assert text.startswith("waiting: queued, waits for holder\n"), text
    seen = json.loads(setup.jobs.view_texts(setup.jobs.queue().jobs())[waiting])
    assert (seen["reason"], seen["text"]) == ("waits for holder", "waiting: queued, waits for holder")
    setup.put(busy, "paused")


def check_a_job_says_that_it_waits_or_gets_little_of_the_processor(setup):
    slow, _ = setup.train("slow")
    setup.put(slow, "running", pid=os.getpid())
    queue = setup.jobs.queue()
    run = queue.run_dir(queue.job(slow))
    little = "gets 7% of the processor time that it could use: other programs keep this machine busy"
    store = "waiting for the data's store, for 0:01:00: s3://data/dataset.json cannot be read. The store refuses access"
    for said, shown in (({}, ""), ({"notice": little}, little), ({"notice": little, "waiting": store}, store)):
        run.write_status("running", step=1, steps=3, **said)
        _, text = setup.train("slow")
        assert text.splitlines()[0] == ", ".join(filter(None, ["slow: running", shown, "step 1 of 3"])), text
        assert json.loads(setup.jobs.view_texts(queue.jobs())[slow])["reason"] == shown
    setup.put(slow, "paused")


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


def check_an_empty_id_means_the_newest_training_and_no_dataset(setup):
    trained, _ = setup.train("older than the dataset")
    made = setup.prepare("newer than the training")
    assert setup.result.find_job(" ").id == trained
    assert setup.result.find_job(made.job).id == made.job


def check_progress_is_shown_while_a_node_waits(setup):
    setup.pictures(setup.input / "shown")
    with mock.patch.object(setup.dataset, "show_progress") as show:
        setup.prepare("shown", "shown")
    assert show.call_args_list[0].args[0].startswith("shown: queued")


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


def check_a_free_text_is_no_path(setup):
    values = {"input": "pictures", "models": "bundled/nano", "resolution": 128}
    made = setup.dataset.prepare_dataset("encoded", values, "encoding=cp1252\ncaption_column=text", 16)
    settings = setup.jobs.queue().job(made.job).settings
    assert (settings["encoding"], settings["caption_column"]) == ("cp1252", "text")


def check_what_could_not_be_told_is_told_again(setup):
    watcher = setup.jobs.Watcher()
    with mock.patch.object(setup.jobs, "PromptServer") as server:
        server.instance.send_sync.side_effect = [OSError("no"), None]
        with contextlib.suppress(OSError):
            watcher._tell({"a": '{"id": "a"}'})
        watcher._tell({"a": '{"id": "a"}'})
        assert server.instance.send_sync.call_args.args == ("pixart_delta.jobs", {"jobs": [{"id": "a"}], "deleted": []})


@contextlib.contextmanager
def raises(text: str):
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error {text!r}")


if __name__ == "__main__":
    main(globals(), functools.cache(lambda part, folder: Setup(part, Path(folder))), contextlib.nullcontext)
