"""The queue of background trainings when something goes wrong: failures, restarts, two servers, disks, clocks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pixart_delta.training.jobs import JobError, Queue, job, process

from tests.training.conftest import fill
from tests.training.jobs_fixture import HERE, add, running, starts, until


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
    made = running(queue)
    later = Queue(queue.root, queue.records)
    later.tick()
    again = later.job(made.id)
    assert (again.state, again.pid) == ("running", made.pid)
    later.act(made.id, "stop")
    assert until(later, made.id, "stopped").reason.startswith("at step")
    assert starts(queue, made.id) == [made.pid]


def test_what_ended_while_no_server_ran_is_known_afterwards(queue):
    made = running(queue, steps=60)
    queue._runner.children[made.id].wait()  # as init does for a process whose server is gone
    later = Queue(queue.root, queue.records)
    later.tick()
    assert later.job(made.id).state == "done" and later.status(later.job(made.id))["step"] == 60


def test_a_server_that_dies_between_start_and_note_leaves_no_orphan(queue, monkeypatch):
    made = add(queue)
    monkeypatch.setattr(process, "identity", lambda pid: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        queue.tick()
    monkeypatch.undo()
    left = queue.job(made.id)
    assert (left.state, left.pid) == ("preparing", None)
    later = Queue(queue.root, queue.records)
    found = until(later, made.id, "running")
    assert [found.pid] == starts(queue, made.id)
    until(later, made.id, "running")
    assert len(starts(queue, made.id)) == 1, "a second start"


def test_a_server_that_dies_before_the_start_leaves_a_failure_to_retry(queue, monkeypatch):
    made = add(queue)
    monkeypatch.setattr(process, "spawn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        queue.tick()
    later = Queue(queue.root, queue.records)
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
        job.write_job(queue.records / made.id, kept)
        later = Queue(queue.root, queue.records)
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
        "queue = Queue(sys.argv[2], sys.argv[3])\n"
        "end = time.monotonic() + 500\n"
        "while time.monotonic() < end:\n"
        "    jobs = queue.tick()\n"
        "    assert sum(job.active for job in jobs) <= 1\n"
        "    if all(job.state == 'done' for job in jobs): break\n"
        "    time.sleep(0.005)\n"
        "else: sys.exit(str([(job.state, job.reason) for job in queue.jobs()]))\n"
    )
    command = [sys.executable, "-c", code, str(HERE.parents[1]), str(queue.root), str(queue.records)]
    servers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for server in servers:
        assert server.wait(550) == 0, server.stderr.read()
    assert all(len(starts(queue, each.id)) == 1 for each in made)


def test_the_end_of_an_earlier_attempt_is_not_taken_for_that_of_another_servers(queue):
    made = running(queue)
    process.end(made.pid, force=True)
    os.waitid(os.P_PID, made.pid, os.WEXITED | os.WNOWAIT)
    later = Queue(queue.root, queue.records)
    later.act(until(later, made.id, "failed").id, "retry")
    assert until(later, made.id, "running").pid != made.pid
    queue.tick()
    assert queue.job(made.id).state == "running" and process.runs(queue.job(made.id).pid, queue.job(made.id).identity)


def test_the_clock_going_back_changes_nothing(queue, monkeypatch):
    first = running(queue)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    second = add(queue, steps=2)
    later = Queue(queue.root, queue.records)
    later.tick()
    assert later.job(first.id).state == "running" and later.job(second.id).state == "queued"
    assert [each.id for each in later.jobs()] == [first.id, second.id]
    later.act(first.id, "stop")
    until(later, second.id, "done")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "running"}', '{"state": "done", "pid": 1}', "\0\0\0"])
def test_a_damaged_status_is_lived_with(queue, text):
    made = running(queue, data="deaf")
    os.kill(made.pid, signal.SIGSTOP)
    (queue.records / made.id / "status.json").write_text(text)
    queue.tick()
    assert queue.job(made.id).state == "running" and isinstance(queue.status(queue.job(made.id)), dict)
    os.kill(made.pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while "step" not in queue.status(queue.job(made.id)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert queue.status(queue.job(made.id))["step"] > 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"id": "x"}',
        '{"unknown": 1}',
        *(
            f'{{"id": ID, "command": "lcd", "settings": {{}}, "device": "cpu", {wrong}}}'
            for wrong in (
                '"order": null',
                '"order": "first"',
                '"order": NaN',
                '"order": true',
                '"device": null',
                '"device": "gpu"',
                '"attempt": "one"',
                '"settings": []',
                '"created": {}',
                '"pid": "1"',
                '"state": "flying"',
                '"result": null',
                '"name": 5',
                '"after": null',
            )
        ),
    ],
)
def test_a_damaged_job_is_shown_as_failed_and_can_be_deleted(queue, text):
    made, good = add(queue), add(queue, steps=2)
    (queue.records / made.id / "job.json").write_text(text.replace("ID", json.dumps(made.id)))
    assert "cannot be read" in until(queue, made.id, "failed").reason
    with pytest.raises(JobError, match="cannot be read"):
        queue.act(made.id, "retry")
    assert queue.actions(queue.job(made.id)) == ["delete"]
    until(queue, good.id, "done")
    queue.act(made.id, "delete")
    assert not (queue.root / made.id).exists() and not (queue.records / made.id).exists()


def test_a_full_disk_refuses_a_job_and_leaves_nothing_of_it(queue, monkeypatch):
    kept = add(queue)
    before = (queue.records / kept.id / "job.json").read_bytes()

    def full(self, *_arguments, **_keywords):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        add(queue)
    with pytest.raises(OSError, match="No space left"):
        queue.act(kept.id, "pause")
    monkeypatch.undo()
    assert [each.id for each in queue.jobs()] == [kept.id]
    assert (queue.records / kept.id / "job.json").read_bytes() == before
    assert sorted(path.name for path in (queue.records / kept.id).glob(".*")) == []


def test_a_disk_that_fills_up_under_a_queue_costs_no_job(small_disk, queue):
    queue.root, queue.records = small_disk / "jobs", small_disk / "records"
    active, waiting = running(queue), add(queue)
    files = [queue.records / each.id / "job.json" for each in (active, waiting)]
    before = [file.read_bytes() for file in files]
    ballast = fill(small_disk, leave=0)
    for change in (lambda: add(queue), lambda: queue.act(waiting.id, "pause"), lambda: queue.act(active.id, "stop")):
        with pytest.raises(OSError, match="No space left"):
            change()
    assert [file.read_bytes() for file in files] == before
    assert [each.id for each in queue.jobs()] == [active.id, waiting.id]
    assert sorted(path.name for path in small_disk.glob("records/*/.*")) == []

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


@pytest.mark.parametrize(
    "data, reason",
    [
        ("die", "its process ended unexpectedly; its log ends: step 2. Retry goes on from its last checkpoint"),
        ("refuse", "the data is bad: make it good"),
        ("full", "[Errno 28] No space left on device"),
    ],
)
def test_a_failure_says_why_and_can_be_retried(queue, data, reason):
    made = add(queue, data=data)
    assert until(queue, made.id, "failed").reason == reason
    queue.act(made.id, "retry")
    assert until(queue, made.id, "failed").attempt == 2


def test_a_stop_reaches_a_process_whose_status_is_an_earlier_ones(queue):
    made = running(queue)
    os.kill(made.pid, signal.SIGKILL)
    until(queue, made.id, "failed")
    changed = job.read_job(queue.records / made.id)
    changed.settings = {**changed.settings, "data": "load"}
    job.write_job(queue.records / made.id, changed)
    queue.act(made.id, "retry")
    queue.tick()
    assert queue.run_dir(made).read_status()["state"] == "running", "the killed process's"
    queue.act(made.id, "pause")
    assert queue.run_dir(made).requests() == [], "the trainer deletes what was asked before it looked"
    until(queue, made.id, "paused")
