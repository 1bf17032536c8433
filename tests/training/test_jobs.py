"""The queue of background trainings: states, requests, restarts, two servers, and everything that goes wrong."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pixart_delta.training.config import ConfigError
from pixart_delta.training.jobs import JobError, NoSuchJob, Queue, job, last_line, process, read_metrics, runner

from tests.training.conftest import fill

HERE = Path(__file__).resolve().parent


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A queue whose process is the stand-in; whatever it started is ended."""
    monkeypatch.setattr(runner, "TRAIN", HERE / "stand_in.py")
    made = Queue(tmp_path / "jobs")
    yield made
    for each in made.jobs():
        if each.active and process.runs(each.pid, each.identity):
            process.end(each.pid, force=True)
    for child in made._runner.children.values():
        if child.poll() is None:
            process.end(child.pid, force=True)
        child.wait()


def add(queue, data="steps", steps=10_000, models="", **more):
    return queue.create("finetune", {"data": data, "base": "b", "steps": steps, "models": models}, **more)


def add_dataset(queue, what="steps", pictures=10_000, **more):
    return queue.create("prepare", {"input": f"/pictures/{what}", "max_tokens": pictures}, **more)


def until(queue, job_id, *states, ticking=True):
    """Tick until the job is in one of the states."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if ticking:
            queue.tick()
        found = queue.job(job_id)
        if found.state in states:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{found.state} ({found.reason}), not {states}")


def running(queue, how=add, **more):
    return until(queue, how(queue, **more).id, "running")


def starts(queue, job_id) -> list[int]:
    return [int(line) for line in (queue.root / job_id / "starts").read_text().split()]


def test_a_job_is_queued_prepared_run_and_done(queue):
    made = add(queue, steps=8, name="Mountains, first try")
    assert made.state == "queued" and made.id.startswith("mountains-first-try-") and queue.jobs() == [made]
    seen = [made.state]
    deadline = time.monotonic() + 30
    while seen[-1] != "done" and time.monotonic() < deadline:
        queue.tick()
        state = queue.job(made.id).state
        seen += [state] if state != seen[-1] else []
        time.sleep(0.01)
    assert seen == ["queued", "preparing", "running", "done"]
    done = queue.job(made.id)
    assert queue.status(done)["step"] == 8 and queue.status(done)["export"].endswith("pixart.safetensors")
    assert (done.pid, done.reason) == (None, "")


def test_a_training_gives_way_to_the_server_and_its_pictures(queue):
    made = running(queue)
    assert os.getpriority(os.PRIO_PROCESS, made.pid) >= 10
    if Path("/proc/self/autogroup").exists():  # Linux that shares the cores out by sessions
        assert Path(f"/proc/{made.pid}/autogroup").read_text().split()[-1] == "10"
        # Ours stays as it was. The line is empty where the test itself was started outside any session.
        assert not Path("/proc/self/autogroup").read_text().endswith("nice 10\n")


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
    stopped = until(queue, made.id, "done")
    step = queue.status(stopped)["step"]
    assert 0 < step < 10_000 and stopped.reason == f"stopped at step {step} of 10000, saved"
    queue.act(made.id, "resume")
    until(queue, made.id, "running")
    assert queue.status(queue.job(made.id))["step"] >= step and len(starts(queue, made.id)) == 2


def test_pause_ends_the_process_and_lets_the_next_one_run(queue):
    made, other = running(queue), add(queue, steps=3)
    pid = made.pid
    queue.act(made.id, "pause")
    assert until(queue, made.id, "paused").reason.startswith("paused at step")
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
    deadline = time.monotonic() + 10
    while queue.run_dir(made).requests() and time.monotonic() < deadline:
        time.sleep(0.02)
    log = queue.log_file(made).read_text()
    assert "took sample" in log and "took save" in log


@pytest.mark.parametrize("data, reason", [
    ("die", "its process ended unexpectedly; its log ends: step 2. Retry goes on from its last checkpoint"),
    ("refuse", "the data is bad: make it good"),
    ("full", "[Errno 28] No space left on device"),
])  # fmt: skip
def test_a_failure_says_why_and_can_be_retried(queue, data, reason):
    made = add(queue, data=data)
    assert until(queue, made.id, "failed").reason == reason
    queue.act(made.id, "retry")
    assert until(queue, made.id, "failed").attempt == 2


def test_a_killed_process_is_a_failure_and_the_next_job_runs(queue):
    made, other = running(queue), add(queue, steps=2)
    os.kill(made.pid, signal.SIGKILL)
    assert "was killed" in until(queue, made.id, "failed").reason
    until(queue, other.id, "done")


def test_asked_to_end_from_outside_it_is_paused(queue):
    """As a shutdown of the machine does."""
    made = running(queue)
    os.kill(made.pid, signal.SIGTERM)
    assert "asked to end from outside" in until(queue, made.id, "paused").reason


def test_a_new_server_finds_the_running_process_and_its_end(queue):
    made = running(queue, steps=40)
    later = Queue(queue.root)
    later.tick()
    again = later.job(made.id)
    assert (again.state, again.pid) == ("running", made.pid)
    later.act(made.id, "stop")
    assert until(later, made.id, "done").reason.startswith("stopped at step")
    assert starts(queue, made.id) == [made.pid]


def test_what_ended_while_no_server_ran_is_known_afterwards(queue):
    made = running(queue, steps=5)
    queue._runner.children[made.id].wait()  # as init does for a process whose server is gone
    later = Queue(queue.root)
    later.tick()
    assert later.job(made.id).state == "done" and later.status(later.job(made.id))["step"] == 5


def test_a_server_that_dies_between_start_and_note_leaves_no_orphan(queue, monkeypatch):
    made = add(queue)
    monkeypatch.setattr(process, "identity", lambda pid: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        queue.tick()
    monkeypatch.undo()
    left = queue.job(made.id)
    assert (left.state, left.pid) == ("preparing", None)
    later = Queue(queue.root)
    found = until(later, made.id, "running")
    assert [found.pid] == starts(queue, made.id)
    until(later, made.id, "running")
    assert len(starts(queue, made.id)) == 1, "a second start"


def test_a_server_that_dies_before_the_start_leaves_a_failure_to_retry(queue, monkeypatch):
    made = add(queue)
    monkeypatch.setattr(process, "spawn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        queue.tick()
    later = Queue(queue.root)
    later.tick()
    assert later.job(made.id).state == "preparing", "its arguments may not show yet"
    until(later, made.id, "failed")


def test_a_process_number_that_somebody_else_has_now_is_not_ours(queue):
    made = running(queue)
    process.end(made.pid, force=True)
    queue._runner.children[made.id].wait()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        kept = queue.job(made.id)
        kept.pid = stranger.pid
        job.write_job(queue.root / made.id, kept)
        later = Queue(queue.root)
        later.act(made.id, "retry")  # settled first: it is seen as failed
        assert stranger.poll() is None, "a stranger was ended"
        assert later.job(made.id).state == "queued"
    finally:
        stranger.kill()
        stranger.wait()


def test_two_servers_on_one_folder_start_each_job_once(queue, tmp_path):
    made = [add(queue, steps=3, name=str(i)) for i in range(6)]
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import tests.conftest\n"
        "from pathlib import Path\n"
        "from pixart_delta.training.jobs import Queue, runner as module\n"
        "module.TRAIN = Path(sys.argv[1]) / 'tests/training/stand_in.py'\n"
        "queue = Queue(sys.argv[2])\n"
        "end = time.monotonic() + 30\n"
        "while time.monotonic() < end:\n"
        "    jobs = queue.tick()\n"
        "    assert sum(job.active for job in jobs) <= 1\n"
        "    if all(job.state == 'done' for job in jobs): break\n"
        "    time.sleep(0.005)\n"
        "else: sys.exit(str([(job.state, job.reason) for job in queue.jobs()]))\n"
    )
    command = [sys.executable, "-c", code, str(HERE.parents[1]), str(queue.root)]
    servers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for server in servers:
        assert server.wait(60) == 0, server.stderr.read()
    assert all(len(starts(queue, each.id)) == 1 for each in made)


def test_the_end_of_an_earlier_attempt_is_not_taken_for_that_of_another_servers(queue):
    made = running(queue)
    process.end(made.pid, force=True)
    os.waitid(os.P_PID, made.pid, os.WEXITED | os.WNOWAIT)
    later = Queue(queue.root)
    later.act(until(later, made.id, "failed").id, "retry")
    assert until(later, made.id, "running").pid != made.pid
    queue.tick()
    assert queue.job(made.id).state == "running" and process.runs(queue.job(made.id).pid, queue.job(made.id).identity)


def test_the_clock_going_back_changes_nothing(queue, monkeypatch):
    first = running(queue)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    second = add(queue, steps=2)
    later = Queue(queue.root)
    later.tick()
    assert later.job(first.id).state == "running" and later.job(second.id).state == "queued"
    assert [each.id for each in later.jobs()] == [first.id, second.id]
    later.act(first.id, "stop")
    until(later, second.id, "done")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "running"}', '{"state": "done", "pid": 1}', "\0\0\0"])
def test_a_damaged_status_is_lived_with(queue, text):
    made = running(queue, data="deaf")
    os.kill(made.pid, signal.SIGSTOP)
    (queue.root / made.id / "status.json").write_text(text)
    queue.tick()
    assert queue.job(made.id).state == "running" and isinstance(queue.status(queue.job(made.id)), dict)
    os.kill(made.pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while "step" not in queue.status(queue.job(made.id)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert queue.status(queue.job(made.id))["step"] > 0


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"id": "x"}', '{"unknown": 1}',
    *(f'{{"id": ID, "command": "lcd", "settings": {{}}, "device": "cpu", {wrong}}}' for wrong in (
        '"order": null', '"order": "first"', '"order": NaN', '"order": true', '"device": null', '"device": "gpu"',
        '"attempt": "one"', '"settings": []', '"created": {}', '"pid": "1"', '"state": "flying"', '"result": null',
        '"name": 5', '"after": null',
    )),
])  # fmt: skip
def test_a_damaged_job_is_shown_as_failed_and_can_be_deleted(queue, text):
    made, good = add(queue), add(queue, steps=2)
    (queue.root / made.id / "job.json").write_text(text.replace("ID", json.dumps(made.id)))
    assert "cannot be read" in until(queue, made.id, "failed").reason
    with pytest.raises(JobError, match="cannot be read"):
        queue.act(made.id, "retry")
    assert queue.actions(queue.job(made.id)) == ["delete"]
    until(queue, good.id, "done")
    queue.act(made.id, "delete")
    assert not (queue.root / made.id).exists()


def test_a_full_disk_refuses_a_job_and_leaves_nothing_of_it(queue, monkeypatch):
    kept = add(queue)
    before = (queue.root / kept.id / "job.json").read_bytes()

    def full(self, *_arguments, **_keywords):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        add(queue)
    with pytest.raises(OSError, match="No space left"):
        queue.act(kept.id, "pause")
    monkeypatch.undo()
    assert [each.id for each in queue.jobs()] == [kept.id]
    assert (queue.root / kept.id / "job.json").read_bytes() == before
    assert sorted(path.name for path in (queue.root / kept.id).glob(".*")) == []


def test_a_disk_that_fills_up_under_a_queue_costs_no_job(small_disk, queue):
    queue.root = small_disk / "jobs"
    active, waiting = running(queue), add(queue)
    files = [queue.root / each.id / "job.json" for each in (active, waiting)]
    before = [file.read_bytes() for file in files]
    ballast = fill(small_disk, leave=0)
    for change in (lambda: add(queue), lambda: queue.act(waiting.id, "pause"), lambda: queue.act(active.id, "stop")):
        with pytest.raises(OSError, match="No space left"):
            change()
    assert [file.read_bytes() for file in files] == before
    assert [each.id for each in queue.jobs()] == [active.id, waiting.id]
    assert sorted(path.name for path in small_disk.glob("jobs/*/.*")) == []

    child = queue._runner.children[active.id]
    assert child.wait(30) == 1, "it finds no room for its metrics"
    with pytest.raises(OSError, match="No space left"):
        queue.tick()  # the watcher says so and goes on ticking
    ballast.unlink()
    assert "No space left on device" in until(queue, active.id, "failed").reason
    assert until(queue, waiting.id, "running")
    queue.act(active.id, "retry")
    queue.act(waiting.id, "stop")
    until(queue, active.id, "running")


def test_a_start_that_the_system_refuses_is_a_failure(queue, monkeypatch):
    made = add(queue)
    queue._runner.python = "/nowhere/python"
    queue.tick()
    assert "could not be started" in queue.job(made.id).reason


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
    (queue.root / "link").symlink_to(outside)
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
        queue.create("finetune", {"data": "d", "base": "b", "lerning_rate": 1.0})
    with pytest.raises(ConfigError):
        queue.create("finetune", {"data": "d", "base": "b", "steps": float("nan")})
    with pytest.raises(JobError, match="no device"):
        add(queue, device="cuda:0; rm -rf /")
    assert queue.jobs() == []


def test_no_setting_reaches_the_command_line(queue):
    made = running(queue, name="--help", data="steps")
    arguments = Path(f"/proc/{made.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    settings = str(queue.root / made.id / "settings.json").encode()
    assert arguments[1:] == [b"-u", str(HERE / "stand_in.py").encode(), b"finetune", b"--config", settings]
    assert os.getsid(made.pid) == made.pid != os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, made.pid) > os.getpriority(os.PRIO_PROCESS, 0), "it must give way"


def test_the_same_job_is_found_again(queue):
    settings = {"data": "steps", "base": "b", "steps": 7}
    made = queue.create("finetune", settings, "x")
    assert queue.same("finetune", settings, "x").id == made.id
    assert queue.same("finetune", {**settings, "steps": 8}, "x") is None
    assert queue.same("finetune", settings, "y") is None


# --- datasets ---


@pytest.mark.parametrize("what", ["steps", "mute"])
def test_a_dataset_that_outlives_its_server_is_done(queue, what):
    """With a status and without: no exit status is left, and what ended may still be the other server's zombie."""
    made = add_dataset(queue, what, pictures=8)
    queue.tick()
    zombie = queue._runner.children[made.id]
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    later = Queue(queue.root)
    later.tick()
    done = later.job(made.id)
    assert (done.state, done.reason) == ("done", "")
    assert later.status(done).get("step") == (None if what == "mute" else 8)
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
    assert "at picture" in paused.reason and "resume" in queue.actions(paused) and "stop" not in queue.actions(paused)
    queue.tick()
    assert queue.job(reader.id).state == "queued" and queue.waits() == {reader.id: "waits for prepare, which is paused"}
    queue.act(made.id, "resume")
    until(queue, made.id, "running")
    queue.act(made.id, "kill")
    until(queue, made.id, "paused")
    (queue.dataset(made)).mkdir()
    (queue.dataset(made) / "dataset.json").touch()  # as if it had just been finished
    assert queue.act(made.id, "stop").state == "done" and "resume" not in queue.actions(queue.job(made.id))
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
    reader = queue.create("finetune", {"data": str(queue.dataset(made)), "base": "b"}, "Reader")
    queue.tick()
    with pytest.raises(JobError, match="training Reader reads its dataset"):
        queue.again(made.id, "after")
    queue.act(reader.id, "kill")
    until(queue, reader.id, "paused")
    again = queue.again(made.id, "after")
    assert (again.id, again.state, again.stamp) == (made.id, "queued", "after")
    assert not queue.results(again) and not (queue.dataset(made) / "report.txt").exists()
    queue.act(reader.id, "resume")
    assert queue.waits()[reader.id] == "waits for prepare"
    (queue.root / made.id / "saved").unlink()
    assert until(queue, made.id, "done").attempt == 2 and queue.results(again)


def test_a_dataset_that_is_read_cannot_be_deleted(queue):
    made = add_dataset(queue, pictures=1)
    reader = queue.create("finetune", {"data": str(queue.dataset(made)), "base": "b"}, "Reader")
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


# --- order ---


def test_a_stop_reaches_a_process_whose_status_is_an_earlier_ones(queue):
    made = running(queue)
    os.kill(made.pid, signal.SIGKILL)
    until(queue, made.id, "failed")
    changed = job.read_job(queue.root / made.id)
    changed.settings = {**changed.settings, "data": "load"}
    job.write_job(queue.root / made.id, changed)
    queue.act(made.id, "retry")
    queue.tick()
    assert queue.run_dir(made).read_status()["state"] == "running", "the killed process's"
    queue.act(made.id, "pause")
    assert queue.run_dir(made).requests() == [], "the trainer deletes what was asked before it looked"
    until(queue, made.id, "paused")


def test_a_queued_job_says_what_it_waits_for(queue):
    first, second = running(queue, name="First"), add(queue)
    before = (queue.root / second.id / "job.json").read_bytes()
    third = add(queue, device="cuda:0", after=second.id)
    queue.tick()
    assert queue.waits() == {second.id: "waits for First", third.id: "waits for finetune"}
    assert (queue.root / second.id / "job.json").read_bytes() == before
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
    for visible, device, left in (("3", "cuda:3", "3"), ("3", "cuda:0", "0"), ("", "cuda:1", "1"),
                                  ("GPU-12ab,GPU-34cd", "cuda:1", "GPU-34cd"), ("1", "cpu", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert process.environment(device)["CUDA_VISIBLE_DEVICES"] == left
    monkeypatch.setenv("ZE_AFFINITY_MASK", "5,6")
    assert process.machine_wide("xpu", 1) == 6 and process.environment("xpu:6")["ZE_AFFINITY_MASK"] == "6"


def test_what_a_log_says_is_plain_text(queue):
    made = add(queue, data="refuse")
    queue.log_file(made).write_bytes(b"fine\n\x1b[31merror: \x07bad \xe2\x80\xaename\x1b[0m\n\x1b[2K\n")
    assert last_line(queue.log_file(made)) == "error: bad name"


# --- metrics ---


def write_metrics(path, count):
    with path.open("w") as file:
        file.writelines(f'{{"step": {i}, "loss": {1 / i}, "learning_rate": 0.001}}\n' for i in range(1, count + 1))
    return path


def test_metrics_are_columns_and_only_those_after_a_step(tmp_path):
    file = write_metrics(tmp_path / "metrics.jsonl", 50)
    whole = read_metrics(file)
    assert whole["columns"]["step"] == list(range(1, 51)) and not whole["thinned"]
    assert read_metrics(file, since=47)["columns"]["step"] == [48, 49, 50]
    assert read_metrics(file, since=50) == {"columns": {}, "thinned": False}
    assert read_metrics(tmp_path / "none")["columns"] == {}


@pytest.mark.parametrize("count", [3000, 40_000])  # read whole, and sampled
def test_long_metrics_are_thinned_evenly(tmp_path, count):
    file = write_metrics(tmp_path / "metrics.jsonl", count)
    for since in (-1, count // 2):
        found = read_metrics(file, since, points=200)
        steps = found["columns"]["step"]
        assert found["thinned"] and 150 < len(steps) <= 201 and steps[-1] == count and steps == sorted(set(steps))
        assert since < steps[0] <= max(since, 0) + count // 50
        assert max(b - a for a, b in itertools.pairwise(steps)) < count // 50
    tail = read_metrics(file, since=count - 3)["columns"]["step"]
    assert tail == [count - 2, count - 1, count]


def test_damaged_lines_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        b'{"step": 1, "loss": 0.5}\nnot json\n{"loss": 3}\n[1]\n{"step": true}\n\xff\xfe\n'
        b'{"step": 2, "loss": NaN}\n{"step": 3, "loss": 0.25, "new": 1}\n{"step": 4, "lo'
    )
    assert read_metrics(file)["columns"] == {"step": [1, 2, 3], "loss": [0.5, None, 0.25], "new": [None, None, 1]}
    assert json.dumps(read_metrics(file), allow_nan=False)
