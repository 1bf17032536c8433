"""`prepare` under way: what its status says, how it is stopped, and that a dataset is whole or not there."""

import errno
import json
import os
import signal

import pytest
import torch
from pixart_delta.training import cli
from pixart_delta.training.cli import describe_run
from pixart_delta.training.data import FeatureDataset, shards
from pixart_delta.training.data.shards import DataError
from pixart_delta.training.prepare import progress, run, survey
from pixart_delta.training.prepare.encoders import Encoders
from pixart_delta.training.prepare.plan import remove_others
from pixart_delta.training.prepare.run import prepare
from pixart_delta.training.run_dir import RunDir, RunDirError

from tests.training.picture_fixture import prepare_settings as settings
from tests.training.picture_fixture import shard_bytes


@pytest.fixture
def told(monkeypatch):
    """Every status that is written, one after each picture or batch instead of one a second."""
    written, write = [], RunDir.write_status
    monkeypatch.setattr(progress, "_STATUS_SECONDS", 0.0)
    monkeypatch.setattr(
        RunDir,
        "write_status",
        lambda self, state, **values: (
            written.append((state, values["step"], values["steps"])),
            write(self, state, **values),
        ),
    )
    return written


def with_run(tmp_path, models, **changes):
    return settings(tmp_path, models, run=str(tmp_path / "run"), **changes)


def before_shard(monkeypatch, name, act):
    """Do something after the first batch of a shard was encoded, when the shard is half written."""

    def write_shard(folder, own, bucket, made):
        def acting():
            yield next(made)
            act()
            yield from made

        return shards.write_shard(folder, own, bucket, acting() if own == name else made)

    monkeypatch.setattr(run, "write_shard", write_shard)


def test_the_status_says_how_far_it_is(tmp_path, models, pictures, told):
    prepare(with_run(tmp_path, models))
    looked = [("preparing", step, 9) for step in (*range(10), 9)]
    encoded = [("running", step, 9) for step in (0, 2, 4, 6, 7, 9, 9)]
    begun, captions = told.index(("running", 0, 9)), told.count(("running", 0, 9))
    assert captions > 5 and told[begun : begun + captions] == [("running", 0, 9)] * captions  # they come first
    del told[begun : begun + captions - 1]
    assert told == [*[("preparing", 0, 0)] * 2, *looked, *encoded, ("done", 9, 9)]
    status = RunDir(tmp_path / "run").read_status()
    assert status["pid"] == os.getpid()
    assert status["started"] < status["time"]
    assert status["device"] == "cpu"
    assert status["seconds_left"] == 0 and status["pictures_per_second"] > 0
    assert describe_run(tmp_path / "run") == "command: prepare\nstate: done\nstep: 9 of 9\ndevice: cpu"
    told.clear()
    (tmp_path / "out/80x48_00000.tar").unlink()
    prepare(with_run(tmp_path, models))
    running = list(dict.fromkeys(each for each in told if each[0] == "running"))
    assert running == [("running", step, 9) for step in (0, 2, 4, 6, 7, 9)]  # what is there counts as done
    assert told[-1] == ("done", 9, 9)


def test_captions_are_said_while_nothing_is_counted(tmp_path, models, pictures, told, monkeypatch, capsys):
    """Loading a text encoder and encoding with it takes minutes, in which no picture is done."""
    said, encode = [], Encoders.encode_captions

    def encode_and_look(self, batch):
        said.append(describe_run(tmp_path / "run"))
        assert "vae" not in self.__dict__
        return encode(self, batch)

    monkeypatch.setattr(Encoders, "encode_captions", encode_and_look)
    freed, encode_pictures = [], Encoders.encode
    monkeypatch.setattr(
        Encoders, "encode", lambda self, *rest: freed.append(self.text.loaded) or encode_pictures(self, *rest)
    )
    prepare(with_run(tmp_path, models))
    assert "step: 0 of 9" in said[0] and "notice: encoding captions, 0 of 9" in said[0]
    assert "notice: encoding captions, 4 of 9" in said[2] and "encoding captions, 0 of 9" in capsys.readouterr().out
    assert "notice" not in RunDir(tmp_path / "run").read_status()
    assert freed
    assert not any(freed)
    assert not list((tmp_path / "out").glob(".*.text*"))


def test_captions_of_a_preparation_that_was_ended_are_kept(tmp_path, models, pictures, monkeypatch):
    prepare(settings(tmp_path, models, output=str(tmp_path / "straight")))

    def fail(*_arguments):
        raise OSError(errno.EIO, "broken off")

    with monkeypatch.context() as patch:
        patch.setattr(Encoders, "encode", fail)
        with pytest.raises(OSError, match="broken off"):
            prepare(settings(tmp_path, models))
    assert len(list((tmp_path / "out").glob(".*.text"))) == 5
    (pictures / "0001.txt").write_text("another caption")
    counted, encode = [], Encoders.encode_captions
    monkeypatch.setattr(
        Encoders, "encode_captions", lambda self, batch: counted.append(len(batch)) or encode(self, batch)
    )
    prepare(settings(tmp_path, models))
    assert counted == [2]  # of the one shard that has another caption
    (pictures / "0001.txt").write_text("a sky over a lake, number 1\n")
    prepare(settings(tmp_path, models))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "straight")


def test_time_left_while_it_is_under_way(tmp_path, models, pictures, told, monkeypatch):
    said = []
    before_shard(monkeypatch, "64x64_00001.tar", lambda: said.append(describe_run(tmp_path / "run")))
    prepare(with_run(tmp_path, models))
    assert f"state: running, process {os.getpid()}\nstep: 4 of 9\nleft: 0:00:0" in said[0]


def test_the_status_is_not_written_at_every_picture(tmp_path, models, pictures, told, monkeypatch):
    monkeypatch.setattr(progress, "_STATUS_SECONDS", 1e9)
    prepare(with_run(tmp_path, models))
    assert told == [
        *[("preparing", 0, 0)] * 2,
        ("preparing", 0, 9),
        ("preparing", 9, 9),
        *[("running", 0, 9)] * 3,  # when it begins, when captions are begun, and when they are done
        ("running", 9, 9),
        ("done", 9, 9),
    ]


def test_a_failure_is_in_the_status(tmp_path, models, pictures):
    for file in pictures.glob("*.txt"):
        file.unlink()
    with pytest.raises(DataError, match="no picture of"):
        prepare(with_run(tmp_path, models))
    status = RunDir(tmp_path / "run").read_status()
    assert status["state"] == "failed" and "report.txt says why" in status["message"]
    assert not RunDir(tmp_path / "run").is_running()


def test_memory_that_runs_out_says_what_to_lower(tmp_path, models, pictures, monkeypatch):
    def fail(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Encoders, "encode", fail)
    with pytest.raises(RuntimeError, match="out of memory with batch_size=2: lower it"):
        prepare(with_run(tmp_path, models))
    assert "batch_size=2" in RunDir(tmp_path / "run").read_status()["message"]


@pytest.mark.parametrize("asked", ["SIGTERM", "SIGINT", "request"])
def test_stopped_it_goes_on_where_it_was(tmp_path, models, pictures, told, monkeypatch, asked):
    prepare(settings(tmp_path, models, output=str(tmp_path / "straight")))

    def ask():
        if asked == "request":
            RunDir(tmp_path / "run").request("stop")
        else:
            os.kill(os.getpid(), signal.Signals[asked])

    config = with_run(tmp_path, models, batch_size=1)
    values = {name: value for name, value in config.to_dict().items() if value and name != "parts"}
    arguments = [f"--set={n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in values.items()]
    with monkeypatch.context() as patch:
        before_shard(patch, "64x64_00001.tar", ask)
        assert cli.main(["prepare", *arguments]) == 0
    status = RunDir(tmp_path / "run").read_status()
    assert (status["state"], status["step"], status["steps"]) == ("stopped", 4, 9)  # what is on the disk
    left = {file.name for file in (tmp_path / "out").iterdir() if file.suffix in (".tar", ".tmp")}
    assert left == {"48x80_00000.tar", "64x64_00000.tar"} and not (tmp_path / "out/dataset.json").exists()
    assert RunDir(tmp_path / "run").requests() == [] and not RunDir(tmp_path / "run").is_running()

    made = []
    monkeypatch.setattr(run, "write_shard", lambda *args: made.append(args[1]) or shards.write_shard(*args))
    assert cli.main(["prepare", *arguments]) == 0
    assert made == ["64x64_00001.tar", "64x64_00002.tar", "80x48_00000.tar"] and told[-1] == ("done", 9, 9)
    prepare(settings(tmp_path, models, output=str(tmp_path / "straight"), batch_size=1))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "straight")


def test_the_look_at_the_pictures_can_be_stopped(tmp_path, models, pictures, told, monkeypatch):
    look = survey.Surveyor.__call__

    def look_and_stop(self, source):
        if source.name == "0003.png":
            os.kill(os.getpid(), signal.SIGTERM)
        return look(self, source)

    monkeypatch.setattr(survey.Surveyor, "__call__", look_and_stop)
    before = signal.getsignal(signal.SIGTERM)
    assert prepare(with_run(tmp_path, models)) is None
    assert told[-2:] == [("preparing", 4, 9), ("stopped", 0, 9)] and signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "out/report.txt").exists()


def test_asked_to_stop_before_anything_is_known(tmp_path, models, pictures, told, monkeypatch):
    monkeypatch.setattr(Encoders, "identity", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert prepare(with_run(tmp_path, models)) is None
    assert told[-1] == ("stopped", 0, 9)


def test_one_folder_of_a_run_has_one_process(tmp_path, models, pictures, monkeypatch):
    folder = RunDir(tmp_path / "run").create()
    folder.write_status("running", step=1, steps=2)
    with folder.lock(), pytest.raises(RunDirError, match="is in use by another"):
        prepare(with_run(tmp_path, models))
    assert folder.read_status()["step"] == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")  # of torchrun: the first process keeps the status
    with folder.lock():
        prepare(with_run(tmp_path, models))
    assert folder.read_status()["step"] == 1
    prepare(settings(tmp_path, "", run=str(tmp_path / "none")), dry_run=True)
    assert not (tmp_path / "none").exists()


def test_while_shards_are_replaced_there_is_no_dataset(tmp_path, models, pictures, monkeypatch):
    prepare(settings(tmp_path, models))
    for name in ("0000", "0003"):  # 64x64_00000, the first to be replaced, and 80x48_00000
        (pictures / f"{name}.txt").write_text("a much longer caption than before")

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        before_shard(patch, "80x48_00000.tar", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(settings(tmp_path, models))
    with pytest.raises(DataError, match="not a folder of prepared features"):
        FeatureDataset(tmp_path / "out")
    prepare(settings(tmp_path, models))
    assert len(FeatureDataset(tmp_path / "out")) == 9


def test_a_part_without_work_leaves_the_dataset_to_the_others(tmp_path, models, pictures):
    def readable():
        data = FeatureDataset(tmp_path / "out")
        return [data.location.open(info).read(0, ["json"])["json"]["captions"] for info in data.shards]

    prepare(settings(tmp_path, models))
    before = readable()
    (pictures / "0001.txt").write_text("another caption")  # of 48x80_00000, the first part's
    prepare(settings(tmp_path, models, part=1, parts=2))
    assert readable() == before
    prepare(settings(tmp_path, models, part=0, parts=2))
    assert readable() == [["another caption"], *before[1:]]


def test_no_description_lists_a_shard_that_was_removed(tmp_path, models, pictures, monkeypatch):
    prepare(settings(tmp_path, models))
    for name in ("0001", "0005"):
        (pictures / f"{name}.png").unlink()

    def remove_and_die(*arguments):
        remove_others(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "remove_others", remove_and_die)
    with pytest.raises(KeyboardInterrupt):
        prepare(settings(tmp_path, models))
    assert not (tmp_path / "out/48x80_00000.tar").exists()
    data = FeatureDataset(tmp_path / "out")
    assert len(data) == 7 and all(data.location.open(info) for info in data.shards)
