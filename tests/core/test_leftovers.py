"""What a killed writer leaves goes with the next one; what a live one has stays."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from pixart_delta.pixart_core import leftovers
from pixart_delta.pixart_core.leftovers import remove_leftovers, take_lock, temporary_folder
from pixart_delta.pixart_core.saving import replacing, save_json, save_weights

from tests.training.runs_fixture import wait_until


def kill_within(write, folder):
    """Fork, begin to write, and be killed in the middle."""
    child = os.fork()
    if child == 0:
        write(folder)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def half_a_file(folder):
    with replacing(folder / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        (temporary.parent / ".tmpAbCdEf").write_bytes(b"what a library makes for itself")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_writer_leaves_nothing_for_long(tmp_path):
    kill_within(half_a_file, tmp_path)
    assert list(tmp_path.rglob(".tmpAbCdEf")) and not (tmp_path / "a.bin").exists()
    save_json({}, tmp_path / "b.json")
    assert [file.name for file in tmp_path.iterdir()] == ["b.json"]


def stopped_within_a_write(child, folder):
    """Stop a writer, and say whether that was in the middle of a file."""
    child.send_signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(child.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    return [file for each in folder.glob(".*.tmp") for file in os.scandir(each) if file.name != "lock"]


def test_a_kill_within_the_write_of_safetensors_itself(tmp_path):
    """At true size a leftover has 8 GB; here the kill comes as soon as anything is to be seen."""
    program = f"""
import torch
from safetensors.torch import save_file
from pathlib import Path
import importlib.util, sys
sys.path.insert(0, {os.getcwd()!r})
import tests.conftest
from pixart_delta.pixart_core.saving import save_weights
print("ready", flush=True)
while True:
    save_weights({{"a": torch.zeros(16, 2**20)}}, Path({str(tmp_path)!r}) / "a.safetensors")
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        while child.poll() is None and not stopped_within_a_write(child, tmp_path):
            child.send_signal(signal.SIGCONT)
    finally:
        child.kill()
        child.communicate()
    assert list(tmp_path.glob(".*.tmp"))
    save_weights({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert {file.name for file in tmp_path.iterdir()} <= {"a.safetensors", "b.safetensors"}


def test_what_is_being_written_stays(tmp_path):
    with temporary_folder(tmp_path / "a") as folder:
        (folder / "data").write_text("part")
        save_json({}, tmp_path / "b.json")
        remove_leftovers(tmp_path)
        assert (folder / "data").read_text() == "part"
    assert [file.name for file in tmp_path.iterdir()] == ["b.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save_json({"old": 1}, tmp_path / "a.json")
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_bytes() == before


def test_what_is_made_while_its_folder_goes_is_removed_later(tmp_path, monkeypatch):
    """A download that was given up as too slow still opens its file when its folder is just being emptied."""
    rmdir = type(tmp_path).rmdir

    def late(folder):
        monkeypatch.undo()
        (folder / "a").touch()
        rmdir(folder)

    with temporary_folder(tmp_path / "a") as folder:
        (folder / "library").mkdir()
        (folder / "library" / "part").touch()
        monkeypatch.setattr(type(tmp_path), "rmdir", late)
    assert (folder / "a").exists() and not (folder / "library").exists()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_deleted_now_is_deleted_later(tmp_path, monkeypatch):
    """As a file that Windows has open; and no lock is open when its folder goes, which NFS would keep, too."""
    kind, unlink, rmdir, deleted = type(tmp_path), type(tmp_path).unlink, type(tmp_path).rmdir, []

    def held(file, *arguments, **options):
        if file.name == "held":
            raise PermissionError
        deleted.append(file.name)
        unlink(file, *arguments, **options)

    def closed(folder):
        if os.path.exists("/proc/self/fd"):
            opened = [os.readlink(each) for each in kind("/proc/self/fd").iterdir() if each.is_symlink()]
            assert not [name for name in opened if name.startswith(str(folder.resolve()))]
        rmdir(folder)

    with temporary_folder(tmp_path / "a") as folder:
        for name in ("one", "held", "two"):
            (folder / name).touch()
        monkeypatch.setattr(kind, "unlink", held)
        monkeypatch.setattr(kind, "rmdir", closed)
    assert {"one", "two"} <= set(deleted) and [file.name for file in folder.glob("h*")] == ["held"]
    remove_leftovers(tmp_path)
    assert (folder / "held").exists()
    monkeypatch.setattr(kind, "unlink", unlink)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_just_being_removed_is_not_taken(tmp_path, monkeypatch):
    """Who removes leftovers came between the making of the folder and its lock, and holds that."""
    taken = []

    def later(lock):
        if not taken:
            taken.append(open(lock.name, "r+", encoding="utf-8"))
            assert take_lock(taken[0]) is None
        return take_lock(lock)

    monkeypatch.setattr(leftovers, "take_lock", later)
    with temporary_folder(tmp_path / "a") as folder:
        assert not os.path.samefile(folder, os.path.dirname(taken[0].name))
    taken[0].close()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_of_others_stay(tmp_path):
    (tmp_path / ".theirs.tmp").mkdir()
    (tmp_path / ".theirs.tmp" / "file").touch()
    (tmp_path / ".file.tmp").touch()
    remove_leftovers(tmp_path)
    assert (tmp_path / ".theirs.tmp" / "file").exists() and (tmp_path / ".file.tmp").exists()
