"""Batches of features: their order, their exactness, where they come from, and what is said when they cannot come."""

import gc
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from pixart_delta.training.data import DataError, FeatureDataset, readahead, remote
from pixart_delta.training.data import dataset as data_module
from pixart_delta.training.data.readahead import read_ahead
from pixart_delta.training.data.shards import write_shard

from tests.training.runs_fixture import wait_until
from tests.training.shards_fixture import BUCKETS, make_features, same, take

ROOT = Path(__file__).resolve().parents[3]


# ------------------------------------------------------------------------------------------------------------- order


def test_what_a_batch_holds(features):
    batch = take(features, 1, hint=True)[0]
    height, width = batch["latent"].shape[2:]
    assert {name: tuple(value.shape) for name, value in batch.items() if name != "keys"} == {
        "latent": (4, 4, height, width),
        "hint": (4, 4, height, width),
        "caption": (4, batch["caption"].shape[1], 16),
        "caption_mask": (4, batch["caption"].shape[1]),
        "image_size": (4, 2),
        "aspect_ratio": (4, 1),
        "share": (),
    }
    kinds = {name: value.dtype for name, value in batch.items() if name != "keys"}
    assert kinds.pop("caption") == torch.float16 and kinds.pop("caption_mask") == torch.uint8
    assert set(kinds.values()) == {torch.float32}
    assert batch["image_size"].tolist() == [[height * 8, width * 8]] * 4
    assert "hint" not in take(features, 1)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_a_batch_decides_about_it(features, workers):
    straight = take(features, 13, hint=True)
    later = take(features, 9, hint=True, start=4, workers=workers)
    assert all(map(same, straight[4:], later))
    assert not same(straight[0], take(features, 1, hint=True, seed=2)[0])
    assert {tuple(batch["latent"].shape[2:]) for batch in straight} == {(8, 8), (6, 10)}


@pytest.mark.parametrize("whole", [False, True])
def test_processes_share_a_batch_by_rows(features, whole):
    together = take(features, 10, whole=whole)
    assert ({len(batch["keys"]) for batch in together} == {4}) == whole
    for rank in (0, 1):
        for full, part in zip(together, take(features, 10, batch_size=2, rank=rank, world=2, whole=whole), strict=True):
            length = part["caption"].shape[1]
            rows = {name: value if name == "share" else value[rank::2] for name, value in full.items()}
            assert same(part, {**rows, **{name: rows[name][:, :length] for name in ("caption", "caption_mask")}})
            assert not full["caption_mask"][rank::2, length:].any()


@pytest.mark.parametrize("window", [data_module.SHUFFLE_WINDOW, 8])
def test_every_sample_once_an_epoch(features, monkeypatch, window):
    monkeypatch.setattr(data_module, "SHUFFLE_WINDOW", window)
    epochs = [
        [name for batch in take(features, 11, batch_size=2, start=start) for name in batch["keys"]]
        for start in (0, 11, 22)
    ]
    assert all(len(names) == len(set(names)) == 21 for names in epochs)  # 6 + 5 batches
    assert len(set(map(tuple, epochs))) == 3


def test_earlier_runs_leave_out_what_fills_no_batch(features):
    names = [name for batch in take(features, 10, batch_size=2, whole=True) for name in batch["keys"]]
    assert len(names) == len(set(names)) == 20  # 6 + 4 batches; one of 9 is left over
    with pytest.raises(DataError, match="no size has the 16 pictures of a batch, .* begun by an earlier version.*new"):
        take(features, 1, batch_size=8, world=2, whole=True)


def test_where_batches_come_out_even_nothing_is_as_in_no_earlier_version(tmp_path):
    """So that runs that left nothing out go on bit by bit."""
    folder = make_features(tmp_path, {(64, 64): 12, (48, 80): 8})
    assert all(map(same, take(folder, 12), take(folder, 12, whole=True)))


def test_a_window_bounds_how_many_shards_are_open(tmp_path, monkeypatch):
    """Of a large, remote dataset only as many shards are wanted at a time as the window takes."""
    folder = make_features(tmp_path, {(64, 64): 60}, hint=False)  # 12 shards of 5
    monkeypatch.setattr(data_module, "SHUFFLE_WINDOW", 10)
    batches = take(folder, 6, batch_size=10)
    shards = [{int(name[:8]) // 5 for name in batch["keys"]} for batch in batches]
    assert all(len(wanted) == 2 for wanted in shards) and len(set().union(*shards)) == 12


def test_captions_are_real_tokens_padded_to_few_lengths(features):
    batches = take(features, 13)
    for batch in batches:
        lengths = batch["caption_mask"].sum(1)
        assert set(lengths.tolist()) <= {10, 6} and batch["caption"].shape[1] == (16 if lengths.max() == 10 else 8)
        assert (batch["caption"][batch["caption_mask"] == 0] == 0).all()
        assert (batch["caption"][batch["caption_mask"] == 1] != 0).any(1).all()
    assert len({int(length) for batch in batches for length in batch["caption_mask"].sum(1)}) == 2  # both wordings


def test_latents_are_drawn_from_the_posterior_and_scaled(tmp_path):
    with_deviation = make_features(tmp_path / "kl", {(64, 64): 16})
    drawn = take(with_deviation, 80, batch_size=16)
    by_name = {}
    for batch in drawn:
        for name, latent in zip(batch["keys"], batch["latent"], strict=True):
            by_name.setdefault(name, []).append(latent)
    latents = torch.stack(by_name["00000000.png"])  # (80, 4, 8, 8)
    data = FeatureDataset(with_deviation)
    mean = torch.from_numpy(data.location.open(data.shards[0]).read(0, ["moments.npy"])["moments.npy"][:4]).float()
    assert (latents.mean(0) - mean).abs().max() < 0.06 and abs(latents.std(0).mean() - 0.1) < 0.01
    plain = make_features(tmp_path / "tiny", {(64, 64): 16}, deviation=False)
    description = json.loads((plain / "dataset.json").read_text())
    (plain / "dataset.json").write_text(json.dumps({**description, "scaling_factor": 0.5}))
    first, other = take(plain, 1, batch_size=16)[0], take(plain, 1, batch_size=16, start=1)[0]
    row = other["keys"].index(first["keys"][0])
    assert torch.equal(first["latent"][0], other["latent"][row])
    stored = FeatureDataset(plain).location.open(FeatureDataset(plain).shards[0])
    kept = {
        each["json"]["source"]: each["moments.npy"]
        for each in (stored.read(row, ["json", "moments.npy"]) for row in range(5))
    }
    name = next(name for name in first["keys"] if name in kept)
    expected = torch.from_numpy(kept[name]).float() * 0.5
    assert torch.equal(first["latent"][first["keys"].index(name)], expected)


def test_webdataset_reads_the_shards(features):
    shards = sorted(map(str, features.glob("64x64*.tar")))
    read = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    assert len(read) == BUCKETS[64, 64] and read[0]["moments.npy"].shape == (8, 8, 8)
    assert read[0]["json"]["source"] == "00000000.png"


# ------------------------------------------------------------------------------------------------------------ errors


def test_a_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(DataError, match="not a folder of prepared features, which `prepare` makes"):
        FeatureDataset(tmp_path)
    for text, message in (
        ("{", "is damaged"),
        ('{"kind": "x"}', "of kind 'x'"),
        ('{"kind": "pixart_delta_features", "buckets": []}', "another version .*: run `prepare` again"),
    ):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=message):
            FeatureDataset(tmp_path)


def test_hints_that_were_not_prepared(tmp_path):
    with pytest.raises(DataError, match="prepared without hints: run `prepare` again with hints="):
        take(make_features(tmp_path, hint=False), 1, hint=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_shard_is_named(tmp_path, workers):
    folder = make_features(tmp_path)
    shard = folder / "64x64_00001.tar"
    os.truncate(shard, 9000)
    with pytest.raises(DataError) as error:
        take(folder, 5, workers=workers)
    size = FeatureDataset(folder).shards[1].bytes
    assert str(error.value) == (
        f"shard {shard} is damaged: it has 9000 of its {size} bytes. Run `prepare` again on its folder: it makes bad "
        "shards anew"
    )
    shard.unlink()
    with pytest.raises(DataError, match="64x64_00001.tar cannot be read: .*No such file"):
        take(folder, 5)


def test_a_shard_with_other_content_is_named(tmp_path):
    folder = make_features(tmp_path)
    shard = folder / "48x80_00000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"\x93NUMPY", b"\x93nampy"))
    with pytest.raises(DataError, match="48x80_00000.tar is damaged at sample 0000001.: "):
        take(folder, 5)
    shard.write_bytes(b"no tar".ljust(len(content)))
    remote._open.cache_clear()
    with pytest.raises(DataError, match="48x80_00000.tar cannot be read: "):
        take(folder, 5)
    bare = make_features(tmp_path / "bare", hint=False)
    description = json.loads((bare / "dataset.json").read_text())
    (bare / "dataset.json").write_text(json.dumps({**description, "hints": "hed"}))
    with pytest.raises(DataError, match="0000..tar has no 'hint.npy' for sample"):
        take(bare, 1, hint=True)


@pytest.mark.parametrize("name", ["../x.tar", "a/x.tar", "/etc/passwd", "a\\x.tar", "..", ".x", "x.tar?y", "", "x\n"])
def test_a_shard_of_a_strange_name_is_refused(tmp_path, name):
    folder = make_features(tmp_path)
    description = json.loads((folder / "dataset.json").read_text())
    description["shards"][1]["name"] = name
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="dataset.json lists a shard of the name .*without folders"):
        FeatureDataset(folder)
    description["shards"][1] |= {"name": "x.tar", "sha256": "../../../../../../x"}
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="checksums 64 hexadecimal digits"):
        FeatureDataset(folder)


def test_two_write_the_same_shard_at_once(tmp_path):
    """Of one process number, as two containers on one disk can have."""
    bucket, sample = (64, 64), {"__key__": "0", "json": {}}

    def samples():
        yield sample
        write_shard(tmp_path, "x.tar", bucket, [sample])

    assert write_shard(tmp_path, "x.tar", bucket, samples()) == write_shard(tmp_path, "x.tar", bucket, [sample])
    assert [file.name for file in tmp_path.iterdir()] == ["x.tar"]


# --------------------------------------------------------------------------------------------------------- processes


def test_results_come_in_order_and_errors_as_they_are():
    def slow_or_broken(number):
        time.sleep(0.05 * (number == 0))
        if number == 3:
            raise DataError(f"no {number}")
        return os.getpid(), number

    results = read_ahead(slow_or_broken, itertools.count(), 2)
    assert [next(results)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="^no 3$"):
        next(results)


def test_helpers_end_with_what_reads_whatever_keeps_an_error():
    """A kept error holds frames in which the reader is: without a garbage collection its helpers would stay."""

    def broken(number):
        if number == 5:
            raise DataError(f"no {number}")
        return os.getpid()

    results, kept = read_ahead(broken, itertools.count(), 2), []
    gc.disable()
    try:
        with pytest.raises(DataError) as failure:
            helpers = set()
            while True:
                helpers.add(next(results))
        kept.append(failure)
        results.close()
        assert len(helpers) == 2 and wait_until(lambda: not any(map(_alive, helpers)), 20)
    finally:
        gc.enable()


def test_little_shared_memory_is_left_alone(monkeypatch):
    """64 MB in a container that was given no more, which a few batches fill: who writes on is killed by a bus error."""

    def result(number):
        if number == 3:
            raise DataError(f"no {number}")
        return {"row": torch.full((2, 3), number), "text": str(number)}, torch.ones(2, dtype=torch.bfloat16)

    def take(count):
        results = read_ahead(result, itertools.count(), 2)
        taken = [next(results) for _ in range(count)]
        with pytest.raises(DataError, match="^no 3$"):
            next(results)
        return taken

    usual = take(3)
    monkeypatch.setattr(readahead, "_SHARED", float("inf"))
    for (first, mask), (second, same_mask) in zip(take(3), usual, strict=True):
        assert torch.equal(first["row"], second["row"]) and first["text"] == second["text"]
        assert torch.equal(mask, same_mask) and not first["row"].is_shared() and second["row"].is_shared()


def test_a_signal_to_the_whole_group_leaves_helpers_to_their_parent():
    results = read_ahead(_who, itertools.count(), 2)
    helpers = {next(results) for _ in range(2)}
    for name in ("INT", "TERM"):  # sent by somebody else, as it would be
        subprocess.run(["kill", f"-{name}", *map(str, helpers)], check=True)
    assert {next(results) for _ in range(40)} == helpers  # more than they had ready
    results.close()
    assert wait_until(lambda: not any(map(_alive, helpers)))


def test_a_thread_that_a_library_starts_in_a_forked_helper_takes_no_signal_either():
    """As pools that start again after a fork: where one of theirs was hit, the whole helper ended."""
    forking = [True]

    def begin():
        if forking:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

    os.register_at_fork(after_in_child=begin)
    try:
        results = read_ahead(_who, itertools.count(), 1)
        helper = next(results)
    finally:
        forking.clear()
    for _ in range(10):
        subprocess.run(["kill", "-TERM", str(helper)], check=True)
    assert {next(results) for _ in range(20)} == {helper}
    results.close()


def test_helpers_die_with_their_parent():
    """Even when it is killed and cannot tell them, and they are busy."""
    program = """
import os, time
from tests import conftest
from pixart_delta.training.data.readahead import read_ahead
from pixart_delta.training.data.shards import write_shard

def busy(number):
    if number:
        time.sleep(600)
    return os.getpid()

results = read_ahead(busy, [0, 0, 1, 1], 2)
print(next(results), next(results), flush=True)
next(results)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        helpers = [int(word) for word in parent.stdout.readline().split()]
        assert len(set(helpers)) == 2 and all(map(_alive, helpers))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(300):
            if not any(map(_alive, helpers)):
                break
            time.sleep(0.1)
    assert not any(map(_alive, helpers))


def _who(_number):
    return os.getpid()


def _alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_equal_samples_make_equal_shards(features, tmp_path):
    again = make_features(tmp_path)
    for shard in FeatureDataset(features).shards:
        assert hashlib.sha256((again / shard.name).read_bytes()).hexdigest() == shard.sha256
    assert np.array_equal((again / "dataset.json").read_bytes(), (features / "dataset.json").read_bytes())
