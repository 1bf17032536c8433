"""Damage is said, never computed with: bits of shards, features of another shape, lines of metrics, checkpoints."""

import json
import os
import random
import shutil

import numpy as np
import pytest
from pixart_delta.pixart_core.saving import save_weights
from pixart_delta.pixart_core.weightfile import CheckpointError
from pixart_delta.training.checkpoint import newest_readable, restore
from pixart_delta.training.data import DataError, FeatureDataset
from pixart_delta.training.data import shards as shards_module
from pixart_delta.training.run_dir import RunDirError
from safetensors import safe_open
from safetensors.torch import load_file

from tests.training import shards_fixture
from tests.training.runs_fixture import losses, make_material, run_here, same_weights, settings
from tests.training.shards_fixture import make_features, same, take

SHORT = {"steps": 6, "checkpoint_every": 2, "accumulation": 1, "workers": 0, "warmup_steps": 2}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"))


def all_samples(folder):
    data = FeatureDataset(folder)
    parts = ["moments.npy", "caption.npy", "hint.npy", "json"]
    return [data.location.open(info).read(row, parts) for info in data.shards for row in range(info.count)]


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_no_flipped_bit_of_a_shard_changes_data(features, tmp_path):
    rng, whole, refused = random.Random(0), all_samples(features), 0
    for number in range(200):
        folder = shutil.copytree(features, tmp_path / str(number))
        file = rng.choice(sorted(folder.glob("*.tar")))
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            assert equal(all_samples(folder), whole)  # it fell on padding
        except DataError as error:
            assert file.name in str(error)
            refused += 1
        shutil.rmtree(folder)
    assert refused > 20


def test_shards_without_checksums_are_read(features, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "_with_checksums", True)  # webdataset's own encoder, as before
    old = make_features(tmp_path)
    assert b".crc32" not in next(old.glob("*.tar")).read_bytes()
    assert equal(all_samples(old), all_samples(features)) and same(take(old, 1)[0], take(features, 1)[0])


def test_a_shard_that_is_cut_short_while_it_is_open(features, tmp_path):
    folder = shutil.copytree(features, tmp_path / "features")
    batches = FeatureDataset(folder).batches(4, 0)
    next(batches)
    for file in folder.glob("*.tar"):
        os.truncate(file, 1024)
    with pytest.raises(DataError, match="tar .*shorter than it was|tar is damaged: it has 1024 of its"):
        list(zip(range(20), batches, strict=False))


def spoil(part, value):
    def change(sample):
        return {**sample, part: value(sample[part])}

    return change


WRONG = {
    "a latent of another size": (spoil("moments.npy", lambda x: x[:, :4]), "moments.npy is .* and its bucket wants"),
    "a latent of other channels": (spoil("moments.npy", lambda x: x[:3]), "moments.npy has 3 channels"),
    "a latent of whole numbers": (spoil("moments.npy", lambda x: x.astype(np.int8)), "moments.npy is .*int8"),
    "a hint of another size": (spoil("hint.npy", lambda x: x[:, :, :2]), "hint.npy is .* and its bucket wants"),
    "a narrower caption": (spoil("caption.npy", lambda x: x[:, :5]), "caption.npy is .* are wanted"),
    "a shorter caption": (spoil("caption.npy", lambda x: x[:-1]), "caption.npy is .* are wanted"),
    "no tokens": (spoil("json", lambda x: {**x, "tokens": [0, 16]}), "numbers of tokens are"),
    "tokens that are text": (spoil("json", lambda x: {**x, "tokens": "10"}), "numbers of tokens are"),
    "no captions": (spoil("json", lambda x: {**x, "captions": []}), "other captions"),
    "no height": (spoil("json", lambda x: {**x, "height": 0}), "height is 0"),
    "a ratio that is no number": (spoil("json", lambda x: {**x, "ratio": float("nan")}), "ratio is nan"),
    "a list": (spoil("json", lambda x: [1]), "no JSON object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_features_of_another_shape_or_type_are_refused_by_name(what, tmp_path, monkeypatch):
    change, problem = WRONG[what]
    write = shards_fixture.write_shard
    monkeypatch.setattr(
        shards_fixture,
        "write_shard",
        lambda folder, name, size, samples: write(
            folder, name, size, [change(each) if each["__key__"] == "00000002" else each for each in samples]
        ),
    )
    folder = make_features(tmp_path)
    with pytest.raises(DataError, match=f"64x64_00000.tar holds .*00000002.*: .*{problem}"):
        take(folder, 5, hint=True)


@pytest.mark.parametrize(
    "change",
    [
        {"scaling_factor": 0},
        {"scaling_factor": float("nan")},
        {"scaling_factor": "1"},
        {"shards": None},
        {"shards": [{"name": "a"}]},
        {"shards": [3]},
        {"count": -1},
        {"bytes": "many"},
        {"bucket": [64]},
        {"name": 7},
        {"sha256": None},
    ],
)
def test_a_description_that_cannot_be_is_refused(change, features, tmp_path):
    about = json.loads((features / "dataset.json").read_text())
    target = about if set(change) & {"scaling_factor", "shards"} else about["shards"][0]
    target.update(change)
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="dataset.json"):
        FeatureDataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="dataset.json is damaged"):
        FeatureDataset(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 100 + b"\n",
        b'{"step": 3, "lo\n',
        b'{"step": 3}\n',
        b"[]\n",
        b"\xff\xfe\n",
        b'{"step": "3", "loss": 1}\n',
    ],
)
def test_a_bad_line_of_metrics_is_left_out_and_said(damage, material, tmp_path):
    values = settings("finetune", material, tmp_path / "run", **{**SHORT, "steps": 4})
    run = run_here("finetune", values)
    file = run.path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], damage, *lines[1:]]) + b'{"step": 5, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    run_here("finetune", {**values, "steps": 6})
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert "1 lines of" in (run.path / "log.txt").read_text() and "damaged" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(
    "facts",
    [
        {"step": -1},
        {"step": 3},
        {"step": True},
        {"batches": -5},
        {"global_batch": 0},
        {"pending": ["x"]},
        {"frozen": 1},
    ],
)
def test_a_checkpoint_that_says_what_cannot_be_is_damaged(facts, material, tmp_path):
    values = settings("finetune", material, tmp_path / "run", **{**SHORT, "steps": 4})
    run = run_here("finetune", values)
    newest = run.checkpoints()[-1]
    with safe_open(newest, "pt") as file:
        about = json.loads(file.metadata()["training"])
    save_weights(load_file(newest), newest, {"training": json.dumps(about | facts)})
    said = []
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        restore(str(newest))
    assert newest_readable(run, said.append).path.stem == "step_00000002"
    assert "step_00000004.safetensors is damaged" in said[0]


@pytest.mark.parametrize("change", [{"guidance": 7.0}, {"loss": "l2"}, {"ema_decay": 0.5}, {"learning_rate": 1e-4}])
def test_a_finished_run_is_not_called_otherwise(change, material, tmp_path):
    values = settings("lcd", material, tmp_path / "run", **SHORT)
    run = run_here("lcd", values)
    export = next((run.path / "exports").glob("*.safetensors"))
    before = export.read_bytes(), (run.path / "config.json").read_bytes()
    name = next(iter(change))
    with pytest.raises(
        RunDirError, match=f"all of its 6 steps, so nothing would be trained .*{name} was .*raise steps"
    ):
        run_here("lcd", values | change)
    assert (export.read_bytes(), (run.path / "config.json").read_bytes()) == before
    run_here("lcd", values | {"log_every": 5, "workers": 1})  # says nothing about what was trained
    run_here("lcd", values | change | {"steps": 8})
    assert run.read_status()["step"] == 8 and run.read_config()["config"][name] == change[name]


def test_a_base_that_is_cut_short_while_it_is_trained_on(material, tmp_path, monkeypatch):
    """It would end the process by a signal, without a word, if the frozen weights were read from the file."""
    base = shutil.copy(material["base"], tmp_path / "base.safetensors")
    values = settings("lcm-lora", material, tmp_path / "run", **SHORT, base=str(base))
    from pixart_delta.training.watch.monitor import Monitor

    add, whole = Monitor.add, base.read_bytes()

    def cut(self, step, *others):
        if step == 2:
            os.truncate(base, 4096)
        add(self, step, *others)

    monkeypatch.setattr(Monitor, "add", cut)
    run = run_here("lcm-lora", values)
    assert run.read_status()["state"] == "done"
    monkeypatch.undo()
    with pytest.raises((CheckpointError, RunDirError), match=str(base)):
        run_here("lcm-lora", values | {"steps": 8})
    base.write_bytes(whole)
    straight = run_here("lcm-lora", settings("lcm-lora", material, tmp_path / "straight", **{**SHORT, "steps": 8}))
    run_here("lcm-lora", values | {"steps": 8})
    assert same_weights(run, straight) and losses(run) == losses(straight)
