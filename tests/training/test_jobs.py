"""The queue of background trainings: states, requests, order, names."""

import os
import time
from pathlib import Path

import pytest
from pixart_delta.training.config import ConfigError
from pixart_delta.training.jobs import JobError, NoSuchJob, last_line, process

from tests.training.jobs_fixture import HERE, add, dataset, finetune, running, starts, until


def test_a_job_is_queued_prepared_run_and_done(queue):
    made = add(queue, steps=60, name="Mountains, first try")
    assert made.state == "queued"
    assert made.id.startswith("mountains-first-try-")
    assert queue.jobs() == [made]
    seen = [made.state]
    deadline = time.monotonic() + 500
    while seen[-1] != "done" and time.monotonic() < deadline:
        queue.tick()
        state = queue.job(made.id).state
        seen += [state] if state != seen[-1] else []
        time.sleep(0.01)
    assert seen == ["queued", "preparing", "running", "done"]
    done = queue.job(made.id)
    assert queue.status(done)["pictures"] == "20 of 20 pictures, 5 sizes"  # after its end, too
    assert queue.status(done)["step"] == 60 and queue.status(done)["export"].endswith("pixart.safetensors")
    assert (done.pid, done.reason) == (None, "")


def test_a_training_gives_way_to_the_server_and_its_pictures(queue):
    made = running(queue)
    assert os.getpriority(os.PRIO_PROCESS, made.pid) >= 5
    if Path("/proc/self/autogroup").exists():  # Linux that shares the cores out by sessions
        assert Path(f"/proc/{made.pid}/autogroup").read_text().split()[-1] == "5"
        # Ours stays as it was. The line is empty where the test itself was started outside any session.
        assert not Path("/proc/self/autogroup").read_text().endswith("nice 5\n")


def test_one_job_a_device_in_the_order_of_the_queue(queue):
    first, second, third = add(queue, steps=5), add(queue, steps=5), add(queue, steps=5, device="cuda:1")
    queue.tick()
    assert [queue.job(each.id).state for each in (first, second, third)] == ["preparing", "queued", "preparing"]
    until(queue, second.id, "done")
    assert queue.job(first.id).state == "done"


def test_the_queue_can_be_reordered(queue):
    a, b, c, d = (add(queue, data="load", name=name) for name in "abcd")
    queue.act(d.id, "move", before=b.id)
    queue.act(a.id, "move")
    assert [each.name for each in queue.jobs()] == ["d", "b", "c", "a"]
    queue.act(c.id, "start")
    assert [each.name for each in queue.jobs()] == ["c", "d", "b", "a"]
    queue.tick()
    assert queue.job(c.id).state == "preparing"


def test_stop_saves_and_resume_goes_on(queue):
    made = running(queue)
    assert queue.act(made.id, "stop").state == "stopping"
    stopped = until(queue, made.id, "stopped")
    step = queue.status(stopped)["step"]
    assert 0 < step < 10_000 and stopped.reason == f"at step {step} of 10000, saved"
    queue.act(made.id, "resume")
    until(queue, made.id, "running")
    assert queue.status(queue.job(made.id))["step"] >= step and len(starts(queue, made.id)) == 2


def test_pause_ends_the_process_and_lets_the_next_one_run(queue):
    made, other = running(queue), add(queue, steps=3)
    pid = made.pid
    queue.act(made.id, "pause")
    assert until(queue, made.id, "paused").reason.startswith("at step")
    assert not Path(f"/proc/{pid}").exists(), "a zombie, or it still holds its memory"
    until(queue, other.id, "done")
    queue.act(made.id, "resume")
    until(queue, made.id, "running")


def test_a_job_that_is_loading_can_be_paused_and_one_in_the_queue_taken_out(queue):
    loading, waiting = add(queue, data="load"), add(queue)
    queue.tick()
    queue.act(waiting.id, "pause")
    queue.act(loading.id, "pause")
    assert "had not begun" in until(queue, loading.id, "paused").reason
    assert queue.job(waiting.id).reason == "taken out of the queue by you"
    queue.act(waiting.id, "resume")
    until(queue, waiting.id, "preparing")


def test_a_deaf_process_can_be_ended_by_force(queue):
    made = running(queue, data="deaf")
    queue.act(made.id, "stop")
    for _ in range(5):
        queue.tick()
        time.sleep(0.02)
    assert queue.job(made.id).state == "stopping"
    queue.act(made.id, "kill")
    assert "ended without saving" in until(queue, made.id, "paused").reason, "nothing is there that could be used"


def test_sample_and_save_reach_the_run(queue):
    made = running(queue, models="m")
    queue.act(made.id, "sample")
    queue.act(made.id, "save")
    deadline = time.monotonic() + 300
    while queue.run_dir(made).requests() and time.monotonic() < deadline:
        time.sleep(0.02)
    log = queue.log_file(made).read_text()
    assert "took sample" in log and "took save" in log


def test_a_job_that_reads_anothers_result_waits_for_it(queue):
    first = add(queue, steps=3)
    second = add(queue, steps=3, device="cuda:0", after=first.id)
    queue.tick()
    assert queue.job(second.id).state == "queued"
    until(queue, second.id, "done")
    bad = add(queue, data="refuse")
    third = add(queue, after=bad.id)
    assert bad.id in until(queue, third.id, "failed").reason
    with pytest.raises(NoSuchJob):
        add(queue, after="no-such-job")


def test_delete_takes_the_folder_and_nothing_else(queue, tmp_path):
    made = add(queue)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "picture.png").touch()
    (queue.root / made.id / "samples" / "link").symlink_to(outside)
    (queue.records / "link").symlink_to(outside)
    queue.act(made.id, "delete")
    assert queue.jobs() == [] and (outside / "picture.png").exists()
    for name in ("link", "..", ".", "", "a/b", "../outside"):
        with pytest.raises(JobError):
            queue.act(name, "delete")
    assert (outside / "picture.png").exists()


def test_what_a_job_cannot_do_now_is_said(queue):
    made = running(queue)
    for action, problem in (("delete", "delete needs one that is"), ("resume", "is running"), ("fly", "no action")):
        with pytest.raises(JobError, match=problem):
            queue.act(made.id, action)
    done = add(queue, steps=1, device="cuda:1")
    until(queue, done.id, "done")
    with pytest.raises(JobError, match="has taken all its steps"):
        queue.act(done.id, "resume")


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "x" * 81, "new\nline", "<b>", "..", "nul\0"])
def test_a_name_with_separators_is_refused(queue, name):
    with pytest.raises(JobError, match="the name"):
        add(queue, name=name)
    assert queue.jobs() == []


def test_settings_are_the_commands_own(queue):
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        queue.create(finetune(lerning_rate=1.0))
    with pytest.raises(ConfigError):
        queue.create(finetune(steps=float("nan")))
    with pytest.raises(JobError, match="no device"):
        add(queue, device="cuda:0; rm -rf /")
    assert queue.jobs() == []


def test_no_setting_reaches_the_command_line(queue):
    made = running(queue, name="--help", data="steps")
    arguments = Path(f"/proc/{made.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    record = queue.records / made.id
    given = ["-u", HERE / "stand_in.py", "finetune", "--config", record / "settings.json", "--private", record]
    assert arguments[1:] == [str(each).encode() for each in given]
    assert os.getsid(made.pid) == made.pid != os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, made.pid) > os.getpriority(os.PRIO_PROCESS, 0), "it must give way"


def test_the_same_job_is_found_again(queue):
    made = queue.create(finetune(steps=7), "x")
    assert queue.same(finetune(steps=7), "x").id == made.id
    assert queue.same(finetune(steps=8), "x") is None
    assert queue.same(finetune(steps=7), "y") is None


def test_a_dataset_of_an_earlier_version_is_found_again(queue):
    """`hints` was a folder, hed or empty."""
    for name, hints, folder in (("none", "", ""), ("hed", "hed", ""), ("folder", "/h", "/h")):
        given = {"input": "i", "hed": "network"}
        made = queue.create(dataset(**given, hints=hints), name)
        assert (made.settings["hints"], made.settings["hint_folder"]) == (name, folder)
        made.settings = {key: value for key, value in made.settings.items() if key != "hint_folder"} | {"hints": hints}
        queue.write(made)
        assert queue.same(dataset(**given, hints=hints), name).id == made.id
        assert queue.same(dataset(**given, hints=name, hint_folder=folder), name).id == made.id
        assert queue.checked(made).hint_folder == folder


def test_a_queued_job_says_what_it_waits_for(queue):
    first, second = running(queue, name="First"), add(queue)
    before = (queue.records / second.id / "job.json").read_bytes()
    third = add(queue, device="cuda:0", after=second.id)
    queue.tick()
    assert queue.waits() == {second.id: "waits for First", third.id: "waits for finetune"}
    assert (queue.records / second.id / "job.json").read_bytes() == before
    queue.act(first.id, "kill")
    assert until(queue, second.id, "running") and list(queue.waits()) == [third.id]


def test_what_ended_last_is_the_first_of_those_that_ended(queue):
    jobs = [add(queue, steps=1, name=name) for name in "abc"]
    queue.act(jobs[2].id, "start")
    for each in (jobs[2], jobs[0], jobs[1]):
        until(queue, each.id, "done")
    assert [each.name for each in queue.jobs()] == ["b", "a", "c"]


def test_a_device_has_the_machines_number(monkeypatch):
    for visible, number in (("3", 3), ("2, 3", 2), ("", 0), ("GPU-12ab", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert process.machine_wide("cuda", 0) == number
    for visible, device, left in (
        ("3", "cuda:3", "3"),
        ("3", "cuda:0", "0"),
        ("", "cuda:1", "1"),
        ("GPU-12ab,GPU-34cd", "cuda:1", "GPU-34cd"),
        ("1", "cpu", ""),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert process.environment(device)["CUDA_VISIBLE_DEVICES"] == left
    monkeypatch.setenv("ZE_AFFINITY_MASK", "5,6")
    assert process.machine_wide("xpu", 1) == 6 and process.environment("xpu:6")["ZE_AFFINITY_MASK"] == "6"


def test_what_a_log_says_is_plain_text(queue):
    made = add(queue, data="refuse")
    queue.log_file(made).write_bytes(b"fine\n\x1b[31merror: \x07bad \xe2\x80\xaename\x1b[0m\n\x1b[2K\n")
    assert last_line(queue.log_file(made)) == "error: bad name"


def test_a_renamed_job_keeps_its_place_and_its_folder(queue):
    first, second = add(queue, name="a"), add(queue, name="b")
    assert queue.rename(first.id, " Lake ").name == "Lake"
    assert [(job.id, job.name) for job in queue.jobs()] == [(first.id, "Lake"), (second.id, "b")]
    assert queue.run_dir(first).path.name == first.id
    for name in ("", "  ", "../up", "x" * 100):
        with pytest.raises(JobError, match="name"):
            queue.rename(first.id, name)
    with pytest.raises(NoSuchJob):
        queue.rename("nobody", "x")


def test_what_a_person_stopped_is_stopped_and_can_be_used(queue):
    """It is not done, as it did not take all its steps; a version before called it so, and asked for it so."""
    made = running(queue)
    queue.act(made.id, "pause")
    until(queue, made.id, "paused")
    assert queue.act(made.id, "stop").state == "stopped" and queue.result(queue.job(made.id))
    assert {"resume", "delete"} <= set(queue.actions(queue.job(made.id)))
    queue.act(made.id, "resume")
    until(queue, made.id, "running")
    job = queue.job(made.id)
    job.wanted = "done"  # as that version asked for it
    queue.put(job, "stopping", "saves and ends")
    queue._runner.ask_to_end(job)
    assert until(queue, made.id, "stopped").reason.startswith("at step")
    job = queue.job(made.id)
    queue.put(job, "done", "stopped at step 3 of 10000, saved")
    assert "resume" in queue.actions(queue.job(made.id))
