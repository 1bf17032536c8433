"""The queue's `prepare` jobs: when a dataset is done, made again, and may go."""

import os
import signal

import pytest
from pixart_delta.training.jobs import JobError, Queue

from tests.training.jobs_fixture import add, add_dataset, finetune, running, until


@pytest.mark.parametrize("what", ["steps", "mute"])
def test_a_dataset_that_outlives_its_server_is_what_its_process_said(queue, what):
    """No exit status is left, and what ended may still be the other server's zombie. Without a status nobody knows:
    the description in the dataset's folder can be anybody's, and to look again costs little."""
    made = add_dataset(queue, what, pictures=8)
    queue.tick()
    zombie = queue._runner.children[made.id]
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    later = Queue(queue.root, queue.records)
    later.tick()
    ended = later.job(made.id)
    if what == "mute":
        assert ended.state == "failed" and "Retry keeps the parts that are finished" in ended.reason
        later.act(made.id, "retry")
        ended = until(later, made.id, "failed", "done")
    assert (ended.state, ended.reason) == ("done", "")
    assert later.status(ended).get("step") == (None if what == "mute" else 8)
    assert until(queue, made.id, "done").reason == "", "the first server agrees"


def test_a_dataset_that_fails_says_what_becomes_of_it(queue):
    made = add_dataset(queue, "die")
    assert until(queue, made.id, "failed").reason.endswith("ends: step 2. Retry keeps the parts that are finished")
    stopped = running(queue, add_dataset)
    os.kill(stopped.pid, signal.SIGKILL)
    assert "checkpoint" not in until(queue, stopped.id, "failed").reason


def test_an_unfinished_dataset_is_never_done(queue):
    made = running(queue, add_dataset)
    reader = add(queue, data=str(queue.dataset(made)), steps=2)
    assert reader.after == made.id, "known by the folder"
    queue.act(made.id, "stop")
    paused = until(queue, made.id, "paused")
    assert "at picture" in paused.reason
    assert "resume" in queue.actions(paused)
    assert "stop" not in queue.actions(paused)
    queue.tick()
    assert queue.job(reader.id).state == "queued" and queue.waits() == {reader.id: "waits for prepare, which is paused"}
    queue.act(made.id, "resume")
    until(queue, made.id, "running")
    queue.act(made.id, "kill")
    until(queue, made.id, "paused")
    (queue.dataset(made)).mkdir()
    (queue.dataset(made) / "dataset.json").touch()  # by somebody: its process has not said so
    queue.tick()
    assert queue.job(reader.id).state == "queued" and "stop" not in queue.actions(queue.job(made.id))
    (queue.records / made.id / "saved").write_text("9999")
    queue.act(made.id, "resume")
    until(queue, made.id, "done")
    assert "resume" not in queue.actions(queue.job(made.id))
    until(queue, reader.id, "done")
    (queue.dataset(made) / "dataset.json").unlink()
    half = add(queue, after=made.id)
    assert "is not finished" in until(queue, half.id, "failed").reason


def test_stopped_with_nothing_made_it_is_paused(queue):
    loading, waiting = add(queue, data="load"), add(queue)
    queue.tick()
    queue.act(loading.id, "stop")
    queue.act(waiting.id, "stop")
    for each in (loading, waiting):
        assert "resume" in queue.actions(until(queue, each.id, "paused", ticking=each is loading))
    queue.act(waiting.id, "resume")
    until(queue, waiting.id, "running")


def test_a_dataset_whose_pictures_changed_is_made_again(queue):
    made = add_dataset(queue, pictures=2, stamp="before")
    with pytest.raises(JobError, match="is queued"):
        queue.again(made.id, "after")
    until(queue, made.id, "done")
    (queue.dataset(made) / "report.txt").write_text("old")
    reader = queue.create(finetune(str(queue.dataset(made))), "Reader")
    queue.tick()
    with pytest.raises(JobError, match="training Reader reads its dataset"):
        queue.again(made.id, "after")
    queue.act(reader.id, "kill")
    until(queue, reader.id, "paused")
    again = queue.again(made.id, "after")
    assert (again.id, again.state, again.stamp) == (made.id, "queued", "after")
    assert not queue.result(again) and not (queue.dataset(made) / "report.txt").exists()
    queue.act(reader.id, "resume")
    assert queue.waits()[reader.id] == "waits for prepare"
    (queue.records / made.id / "saved").unlink()
    done = until(queue, made.id, "done")
    assert done.attempt == 2 and queue.result(done)


def test_a_dataset_that_is_read_cannot_be_deleted(queue):
    made = add_dataset(queue, pictures=1)
    reader = queue.create(finetune(str(queue.dataset(made))), "Reader")
    with pytest.raises(JobError, match="Reader, which is queued, reads what prepare made"):
        queue.act(made.id, "delete")
    queue.act(reader.id, "pause")
    with pytest.raises(JobError, match="Reader, which is paused"):
        queue.act(made.id, "delete")
    queue.act(reader.id, "delete")
    queue.act(made.id, "delete")
    assert queue.jobs() == []


def test_what_can_be_asked_depends_on_the_command(queue):
    dataset = running(queue, add_dataset)
    plain = running(queue, device="cuda:0")
    drawing = running(queue, device="cuda:1", models="m")
    for made, wanted in ((dataset, set()), (plain, {"save"}), (drawing, {"save", "sample"})):
        assert {"save", "sample"} & set(queue.actions(made)) == wanted
        for action in {"save", "sample"} - wanted:
            with pytest.raises(JobError, match=r"nothing to|without the text encoder"):
                queue.act(made.id, action)
