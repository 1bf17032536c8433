"""Short real runs of `train.py`: they train, resume to the last bit, stop when asked, and name what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pixart_delta.training.config import ConfigError, FinetuneConfig, LcdConfig, load_config
from pixart_delta.training.data import KIND, DataError, FeatureDataset
from pixart_delta.training.loop import TrainingError, train
from pixart_delta.training.run_dir import RunDir
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pixart_core as pc

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "input_size": 8,
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 16,
    "interpolation_scale": 1.0,
}
FAST = {"batch_size": 4, "precision": "fp32", "log_every": 1, "warmup_steps": 2, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    generator = torch.Generator().manual_seed(0)
    names = []
    for height, width, count in ((8, 8, 12), (6, 10, 9)):
        mask = torch.ones(count, 2, 10, dtype=torch.uint8)
        mask[:, 1, 6:] = 0
        names.append(f"bucket_{height * 8}x{width * 8}.safetensors")
        save_file(
            {
                "latent": torch.randn(count, 4, height, width, generator=generator).half(),
                "caption": torch.randn(count, 2, 10, 16, generator=generator).half(),
                "caption_mask": mask,
                "image_size": torch.tensor([[height * 8.0, width * 8.0]]).repeat(count, 1),
                "aspect_ratio": torch.full((count, 1), height / width),
            },
            folder / names[-1],
        )
    (folder / "dataset.json").write_text(json.dumps({"kind": KIND, "buckets": names}))
    return folder


@pytest.fixture(scope="module")
def teacher(features, tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher")
    train(
        "finetune", FinetuneConfig(run=str(run), data=str(features), model=SHAPE, steps=6, learning_rate=1e-3, **FAST)
    )
    return run / "exports/pixart.safetensors"


def metrics(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def settings(command, features, teacher, run, steps):
    extra = {"model": SHAPE} if command == "finetune" else {"base": str(teacher)}
    kind = FinetuneConfig if command == "finetune" else LcdConfig
    return kind(run=str(run), data=str(features), steps=steps, learning_rate=1e-3, clip_norm=1.0, **extra, **FAST)


@pytest.mark.parametrize("command", ["finetune", "lcd"])
def test_resumed_run_equals_a_straight_one_to_the_last_bit(command, features, teacher, tmp_path):
    train(command, settings(command, features, teacher, tmp_path / "straight", 12))
    halves = settings(command, features, teacher, tmp_path / "halves", 12)
    train(command, settings(command, features, teacher, tmp_path / "halves", 7))
    train(command, halves)
    assert metrics(tmp_path / "halves") == metrics(tmp_path / "straight") and len(metrics(tmp_path / "straight")) == 12
    straight, resumed = (load_file(RunDir(tmp_path / name).checkpoints()[-1]) for name in ("straight", "halves"))
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_the_loss_falls_and_the_export_loads(features, tmp_path):
    config = FinetuneConfig(run=str(tmp_path), data=str(features), model=SHAPE, steps=60, learning_rate=3e-3, **FAST)
    train("finetune", config)
    losses = metrics(tmp_path)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    model = pc.load_pixart(tmp_path / "exports/pixart.safetensors")
    assert model.config == pc.PixArtConfig.from_dict(SHAPE)
    assert RunDir(tmp_path).read_status()["state"] == "done"
    assert [file.name for file in RunDir(tmp_path).checkpoints()] == [
        "step_00000055.safetensors",
        "step_00000060.safetensors",
    ]


def test_only_the_student_learns(features, teacher, tmp_path):
    before = load_file(teacher)
    train("lcd", settings("lcd", features, teacher, tmp_path, 3))
    after, exported = load_file(teacher), load_file(tmp_path / "exports/pixart.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], exported[name]) for name in before)


def test_stop_file_ends_the_run_saved(features, tmp_path, monkeypatch):
    asked = iter([False] * 4 + [True] * 100)
    monkeypatch.setattr(RunDir, "stop_requested", lambda self: next(asked))
    config = FinetuneConfig(run=str(tmp_path), data=str(features), model=SHAPE, steps=50, **FAST)
    train("finetune", config)
    status = RunDir(tmp_path).read_status()
    assert (status["state"], status["step"]) == ("stopped", 4) and (tmp_path / "exports/pixart.safetensors").exists()


def test_exploding_loss_stops_with_the_step_and_keeps_the_last_checkpoint(features, teacher, tmp_path):
    train("lcd", settings("lcd", features, teacher, tmp_path, 5))
    good = load_file(RunDir(tmp_path).checkpoints()[-1])
    broken = {
        **good,
        "model.final_layer.linear.bias": torch.full_like(good["model.final_layer.linear.bias"], torch.inf),
    }
    with safe_open(RunDir(tmp_path).checkpoints()[-1], "pt") as file:
        metadata = file.metadata()
    save_file(broken, RunDir(tmp_path).checkpoints()[-1], metadata)
    with pytest.raises(TrainingError, match="at step 6: lower learning_rate"):
        train("lcd", settings("lcd", features, teacher, tmp_path, 9))
    assert len(RunDir(tmp_path).checkpoints()) == 1 and RunDir(tmp_path).read_status()["state"] == "failed"


def test_data_order_depends_on_the_place_alone(features):
    data = FeatureDataset(features)
    whole = data.batches(4, seed=1)
    straight = [next(whole) for _ in range(13)]
    resumed = next(data.batches(4, seed=1, start=12))
    assert all(torch.equal(straight[12][name], resumed[name]) for name in resumed)
    assert {tuple(batch["latent"].shape[2:]) for batch in straight} == {(8, 8), (6, 10)}
    lengths = {(batch["caption"].shape[1], int(batch["caption_mask"].sum(1).max())) for batch in straight}
    assert lengths <= {(8, 6), (10, 10)}  # cut to the longest, in steps of 8; no real token is lost


def test_bad_settings_and_data_are_named(features, tmp_path):
    with pytest.raises(ConfigError, match="loss is 'l1': choose one of huber, l2"):
        LcdConfig(run="r", data="d", base="b", loss="l1")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        LcdConfig(run="r", data="d", base="b", batch_size=0)
    with pytest.raises(ConfigError, match="lcd has no setting lerning_rate"):
        load_config("lcd", None, ["run=r", "data=d", "base=b", "lerning_rate=1"])
    with pytest.raises(ConfigError, match="either base"):
        FinetuneConfig(run="r", data="d")
    with pytest.raises(DataError, match="not a folder of prepared features"):
        FeatureDataset(tmp_path)
    with pytest.raises(DataError, match="lower batch_size"):
        next(FeatureDataset(features).batches(64, 0))
    (tmp_path / "dataset.json").write_text(json.dumps({"kind": KIND, "buckets": ["bucket_8x8.safetensors"]}))
    (tmp_path / "bucket_8x8.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(DataError, match="bucket_8x8.safetensors cannot be read"):
        FeatureDataset(tmp_path)


def test_a_folder_of_another_run_is_left_alone(features, teacher, tmp_path):
    train("lcd", settings("lcd", features, teacher, tmp_path, 1))
    config = FinetuneConfig(run=str(tmp_path), data=str(features), model=SHAPE, steps=2, **FAST)
    with pytest.raises(ValueError, match="holds another run"):
        train("finetune", config)


def test_command_line_from_another_directory(features, tmp_path):
    def call(*arguments):
        command = [sys.executable, str(ROOT / "training/train.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    values = ["run=run", f"data={features}", "steps=2", "precision=fp32", "batch_size=4", f"model={json.dumps(SHAPE)}"]
    done = call("finetune", *(part for value in values for part in ("--set", value)))
    assert done.returncode == 0, done.stderr
    assert "state: done" in call("status", "run").stdout
    wrong = call("lcd", "--set", "run=x", "--set", f"data={features}")
    assert wrong.returncode == 1 and wrong.stderr.strip().endswith("the teacher, which the student starts from")
    assert "pseudo-Huber" in call("lcd", "--help").stdout
