"""Metrics for a chart: columns, thinned."""

import itertools
import json

import pytest
from pixart_delta.training.jobs import read_metrics


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
        assert found["thinned"]
        assert 150 < len(steps) <= 201
        assert steps[-1] == count
        assert steps == sorted(set(steps))
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


@pytest.mark.parametrize(
    "line",
    [
        "[" * 4000,
        '{"step": ' + "9" * 400 + "}",
        '{"step": -1, "loss": 1}',
        '{"step": 3, ' + ", ".join(f'"{i}": 1' for i in range(300)) + "}",
        '{"step": 3, "' + "x" * 3000 + '": 1}',
        '{"step": 3, "loss": ' + "9" * 400 + "}",
        "x" * 300_000,
    ],
)
def test_lines_that_others_wrote_cost_nothing(tmp_path, line):
    """Anybody who can upload may write this file."""
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2}\n' + line + '\n{"step": 4, "loss": 1}\n')
    found = read_metrics(file)["columns"]
    assert found["step"][0] == 1
    assert found["step"][-1] == 4
    assert len(found) <= 32
    json.dumps(found, allow_nan=False)
