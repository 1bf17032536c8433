"""The table of `tools.bench gpu` in a document: from a card's figures, never from a rehearsal's."""

import json

import pytest

from tests.bench import bench_gpu

RESULTS = {
    "about": {"device": "NVIDIA H100", "torch": "2.11", "rehearsal": False, "missing": []},
    "parts": {
        "picture": {
            "figures": [
                {"what": "1024 px", "value": 0.1061, "unit": "s", "target": "≤ 0.115", "met": True},
                {"what": "encode", "value": 0.007, "unit": "s"},
            ]
        },
        "memory": {"error": "not done in 5 s", "partial": []},
    },
}
TEXT = "# Name\n\n<!-- gpu -->\nwhat was here\n<!-- /gpu -->\nrest\n"


def test_the_figures_with_a_target_go_between_the_marks():
    made = bench_gpu.with_table(TEXT, RESULTS)
    assert made == bench_gpu.with_table(made, RESULTS)
    assert made.startswith("# Name\n\n<!-- gpu -->\nOn one NVIDIA H100, torch 2.11")
    assert "| 1024 px | 0.1061 s | ≤ 0.115 | met |\n<!-- /gpu -->\nrest\n" in made and "encode" not in made


def test_a_rehearsal_and_a_document_without_marks_are_refused():
    with pytest.raises(ValueError, match="no lines <!-- gpu -->"):
        bench_gpu.with_table("# Name", RESULTS)
    rehearsal = {**RESULTS, "about": {**RESULTS["about"], "rehearsal": True}}
    with pytest.raises(ValueError, match="measure on a GPU first"):
        bench_gpu.with_table(TEXT, rehearsal)
    assert "memory: not done in 5 s" in bench_gpu.table(rehearsal)


def test_the_command_writes_and_prints(tmp_path, monkeypatch, capsys):
    document, file = tmp_path / "README.md", tmp_path / "gpu.json"
    document.write_text(TEXT)
    file.write_text(json.dumps(RESULTS))
    monkeypatch.setattr("sys.argv", ["gpu", "--json", str(file), "--write", str(document)])
    assert bench_gpu.main() == 0 and "0.1061 s" in document.read_text()
    monkeypatch.setattr("sys.argv", ["gpu", "--table", str(file)])
    assert bench_gpu.main() == 0 and "| picture | encode | 0.007 s |" in capsys.readouterr().out


def test_every_part_can_be_run():
    from tests.bench import gpu_parts

    assert all(callable(getattr(gpu_parts, part)) for part in bench_gpu.BOUNDS)
    readme = (bench_gpu.ROOT / "README.md").read_text(encoding="utf-8")
    assert all(mark in readme for mark in bench_gpu.MARKS)
