"""A run, its data and its base are known by what they hold, not by where they lie; mounts without locks or sizes."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from pixart_delta.pixart_core import leftovers
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training import storage
from pixart_delta.training.checkpoint import restore
from pixart_delta.training.config import ConfigError, ExportConfig
from pixart_delta.training.data.contents import identify
from pixart_delta.training.export import export
from pixart_delta.training.machine import DiskError, require_room
from pixart_delta.training.run_dir import RunDir, RunDirError

import pixart_core as pc
from tests.fixtures_nano import nano_config, random_pixart
from tests.training.runs_fixture import make_material, run_here, settings
from tests.training.shards_fixture import make_features

SHORT = {"steps": 1, "accumulation": 1, "workers": 0}


@pytest.fixture
def first(tmp_path):
    """A disk with base, data and a LoRA of one step on them, whose settings it returns."""
    (tmp_path / "first").mkdir()
    values = settings("lcm-lora", make_material(tmp_path / "first"), tmp_path / "first/run", **SHORT, lora_rank=2)
    run_here("lcm-lora", values)
    return values


def at(values: dict, folder) -> dict:
    return values | {name: str(folder / os.path.basename(values[name])) for name in ("base", "data", "run")}


def test_a_moved_run_goes_on_and_is_exported(first, tmp_path):
    shutil.move(tmp_path / "first", tmp_path / "second")
    moved = at(first, tmp_path / "second")
    assert export(ExportConfig(run=moved["run"])).exists(), "before it was gone on with"
    run = run_here("lcm-lora", moved | {"steps": 2})
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert run.read_config()["config"]["base"] == moved["base"]


def test_a_run_of_an_earlier_version_is_moved(first, tmp_path):
    """It did not note what its base and data hold."""
    run = RunDir(first["run"])
    about = run.read_config()
    storage.replace_json(run.path / "config.json", {name: about[name] for name in ("command", "config")})
    shutil.move(tmp_path / "first", tmp_path / "second")
    moved = at(first, tmp_path / "second")
    assert run_here("lcm-lora", moved | {"steps": 2}).read_status()["step"] == 2


def test_a_run_moved_alone_says_which_setting_to_set(first, tmp_path):
    shutil.move(first["run"], tmp_path / "alone")
    shutil.move(first["base"], tmp_path / "base elsewhere.safetensors")
    with pytest.raises(
        ConfigError, match=r"base of .*alone is not at .*base.safetensors: say where it is now with base="
    ):
        export(ExportConfig(run=str(tmp_path / "alone")))
    elsewhere = str(tmp_path / "base elsewhere.safetensors")
    assert export(ExportConfig(run=str(tmp_path / "alone"), base=elsewhere)).exists()
    with pytest.raises(ConfigError, match="base of .* is not at nowhere"):
        export(ExportConfig(run=str(tmp_path / "alone"), base="nowhere"))


def test_other_weights_and_data_are_another_run(first, tmp_path):
    other = pc.save_pixart(random_pixart(nano_config(depth=3), seed=9), tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match="the weights it was trained on are not those of base"):
        restore(first["run"], str(other))
    with pytest.raises(RunDirError, match="holds another run .base was"):
        run_here("lcm-lora", first | {"base": str(other), "steps": 2})
    data = make_features(tmp_path / "others", width=64, seed=5)
    with pytest.raises(RunDirError, match="holds another run .data was"):
        run_here("lcm-lora", first | {"data": str(data), "steps": 2})


def test_data_that_was_prepared_anew_is_gone_on_with_and_said(first, capsys):
    shutil.rmtree(first["data"])
    make_features(Path(first["data"]), width=64, seed=5)
    run_here("lcm-lora", first | {"steps": 2})
    assert "was prepared anew since: from here its pictures come in another order" in capsys.readouterr().out


def test_identity_is_of_the_content(tmp_path):
    big = torch.randn(3 << 20).numpy().tobytes()
    for name, data in (
        ("a", big),
        ("b", big),
        ("c", big[:-1]),
        ("d", big[:6_000_000] + bytes(200_000) + big[6_200_000:]),
    ):
        (tmp_path / name).write_bytes(data)
    names = [identify("base", str(tmp_path / name)) for name in "abcd"]
    assert names[0] == names[1] and len(set(names)) == 3
    assert identify("base", str(tmp_path / "none")) is identify("data", str(tmp_path)) is identify("base", "") is None


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_mount_without_locks(tmp_path, monkeypatch):
    def flock(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(leftovers.fcntl, "flock", flock)
    run = RunDir(tmp_path).create()
    with run.lock():
        assert not run.is_running(), "we ourselves are not somebody else"
        (tmp_path / "lock").write_text(f"process {os.getppid()}")
        assert run.is_running()
        with pytest.raises(RunDirError, match="in use by another training"), run.lock(0.05):
            pass
    assert not run.is_running()


def test_a_mount_that_does_not_know_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: (0, 0, 0))
    require_room(tmp_path, 10**6, "the shards")
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: (100, 100, 0))
    with pytest.raises(DiskError, match="the shards need"):
        require_room(tmp_path, 10**6, "the shards")
