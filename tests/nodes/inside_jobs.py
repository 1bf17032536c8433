"""Checks of the nodes of background jobs, in ComfyUI's own interpreter: `python inside_jobs.py COMFYUI FOLDER CHECK…`.

Started by test_training.py; prints as inside.py does. No watcher runs: no job ever gets a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path
from unittest import mock

from inside import start

BASE = "bundled/nano (base)"


class Setup:
    """Our modules, and a server's folders with two pictures and a prepared dataset in them."""

    def __init__(self, part, folder: Path):
        import folder_paths

        self.jobs, self.training, self.dataset = (
            part(f"nodes.background.{name}") for name in ("queue", "start", "dataset")
        )
        self.estimate, self.result = part("nodes.background.estimate"), part("nodes.background.result")
        self.root = part("training.jobs.job")
        self.input, self.output = folder / "input", folder / "output"
        folder_paths.set_input_directory(str(self.input))
        folder_paths.set_output_directory(str(self.output))
        folder_paths.set_user_directory(str(folder / "user"))
        self.jobs.watcher = mock.Mock()
        (self.output / "data").mkdir(parents=True, exist_ok=True)
        shards = [{"bucket": [128, 128], "count": 12}, {"bucket": [128, 128], "count": 5}]
        (self.output / "data" / "dataset.json").write_text(json.dumps({"shards": shards}))
        self.pictures(self.input / "pictures")
        self.dataset._PATIENCE = 0.1

    @staticmethod
    def pictures(folder: Path, names=("a", "b")) -> None:
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (64, 64), "red").save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text("red")

    def train(self, name: str, *, more: str = "", estimate_only: bool = False, free: bool = False):
        values = {"base": BASE, "data": "data", "steps": 3}
        return self.training.start_training("lcd", name, values, more, estimate_only, free)

    def prepare(self, name: str, place: str = "pictures"):
        return self.dataset.prepare_dataset(name, {"input": place, "models": "bundled/nano", "resolution": 128}, "", 16)

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


def check_too_little_memory_or_room_is_said(setup):
    _, text = setup.train("small")
    assert "TOO LITTLE" not in text and "together" in text
    assert "17 of 17 pictures, 1 size, 8 to 9 in a batch" in text, text
    with mock.patch.object(setup.estimate.memory, "get_total_memory", return_value=1e6):
        _, text = setup.train("small")
    assert text.splitlines()[-1].startswith("TOO LITTLE MEMORY") and "TOO LITTLE ROOM" not in text
    with mock.patch.object(setup.estimate.shutil, "disk_usage", return_value=mock.Mock(free=10)):
        _, text = setup.train("small")
    assert "TOO LITTLE ROOM" in text.splitlines()[-1] and "TOO LITTLE MEMORY" not in text


def check_no_step_is_tried_beside_a_job_of_the_same_device(setup):
    busy, _ = setup.train("busy")
    setup.put(busy, "running")
    with mock.patch.object(setup.training, "_dry_run", return_value="one step") as tried:
        _, text = setup.train("tried", estimate_only=True)
        assert "busy has the device now: run this again" in text and "together" in text and not tried.called
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
    made = setup.prepare("changing", "changing")
    setup.finish(made)
    job = setup.jobs.queue().job
    assert setup.prepare("changing", "changing").job == made.job and job(made.job).state == "done"
    for change in (
        lambda: setup.pictures(setup.input / "changing", ("c",)),
        lambda: (setup.input / "changing" / "a.txt").write_text("another caption"),
        lambda: (setup.input / "changing" / "b.png").unlink(),
    ):
        change()
        again = setup.prepare("changing", "changing")
        assert again.job == made.job and job(made.job).state == "queued" and "the queue" in again.report
        setup.finish(again)
    assert setup.prepare("changing", "changing").report.startswith("{}changing: done")

    values = {"base": BASE, "data": str(made.folder), "steps": 3}
    (made.folder / "dataset.json").write_text(json.dumps({"shards": [{"bucket": [128, 128]}]}))
    reader, _ = setup.training.start_training("lcd", "the reader", values, "", False, False)
    setup.put(reader, "running")
    setup.pictures(setup.input / "changing", ("d",))
    with raises("training the reader reads its dataset"):
        setup.prepare("changing", "changing")
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
    with mock.patch.object(setup.dataset, "show") as show:
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
    except ValueError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error {text!r}")


def run(check: str, setup: Setup) -> str:
    try:
        globals()[check](setup)
    except Exception:
        return traceback.format_exc()[-3000:]
    return ""


if __name__ == "__main__":
    comfyui, folder, *checks = sys.argv[1:]
    setup = Setup(start(comfyui), Path(folder))
    print(json.dumps({check: run(check, setup) for check in checks}))  # noqa: T201
