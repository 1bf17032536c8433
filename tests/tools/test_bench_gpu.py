"""`tools.bench gpu`: its table in a document, from a card's figures alone; parts that lack a package, or time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

from pixart_core.vae import load_vae
from tests.bench import bench_gpu, bench_pipeline, gpu_parts
from tests.bench.bench_pipeline import make_vae
from tests.bench.gpu_bench import Bench
from tests.training.runs_fixture import wait_until
from tools.bench import environment

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


def test_what_a_part_had_measured_before_it_failed_is_in_both_tables():
    row = {"what": "int8", "value": 5.95, "unit": "GB", "target": "≤ 8", "met": True}
    parts = {"memory": {"error": "not done in 5 s", "partial": [row], "left_out": ["what needs peft"]}}
    results = {**RESULTS, "parts": parts}
    assert "| int8 | 5.95 GB | ≤ 8 | met |" in bench_gpu.short_table(results)
    table = bench_gpu.table(results)
    assert "| memory | int8 |" in table and "memory: not done" in table and "memory left out: what needs peft" in table


def test_the_command_writes_and_prints(tmp_path, monkeypatch, capsys):
    document, file = tmp_path / "README.md", tmp_path / "gpu.json"
    document.write_text(TEXT)
    file.write_text(json.dumps(RESULTS))
    monkeypatch.setattr("sys.argv", ["gpu", "--json", str(file), "--write", str(document)])
    assert bench_gpu.main() == 0 and "0.1061 s" in document.read_text()
    monkeypatch.setattr("sys.argv", ["gpu", "--table", str(file)])
    assert bench_gpu.main() == 0 and "| picture | encode | 0.007 s |" in capsys.readouterr().out


SLOW = """
import signal, subprocess, sys, time
sys.path.insert(0, ".")
from tests.bench import gpu_bench, gpu_parts

def slow(bench):
    server = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        bench.add("server", server.pid)
        time.sleep(600)
    finally:
        server.kill()

gpu_parts.slow = slow
sys.exit(gpu_parts.main())
"""


def test_a_part_whose_time_is_over_ends_the_servers_that_it_started(tmp_path):
    (tmp_path / "parts.py").write_text(SLOW)
    command = [sys.executable, tmp_path / "parts.py", "slow", tmp_path / "figures.json", tmp_path]
    with subprocess.Popen(command, cwd=bench_gpu.ROOT, start_new_session=True) as process:
        assert wait_until(lambda: (tmp_path / "figures.json").is_file() and (tmp_path / "figures.json").read_text())
        bench_gpu._end(process)
    server = int(json.loads((tmp_path / "figures.json").read_text())["figures"][0]["value"])

    def is_gone():
        """Killed; who reaps it is whoever has its parent's children now."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    assert wait_until(is_gone)


def test_a_part_is_bounded_in_time_and_keeps_what_it_had(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text(
        'import sys, time; open(sys.argv[2], "w").write(\'{"figures": [1]}\'); time.sleep(600)'
    )
    monkeypatch.setattr(bench_gpu, "PARTS", tmp_path / "parts.py")
    result = bench_gpu._run("any", 20, True, tmp_path)
    assert result["error"] == "not done in 20 s" and result["partial"] == [1]


FAILING = """
import sys
sys.path.insert(0, ".")
from tests.bench import gpu_parts

def failing(bench):
    for number in (1, 0, 2):
        with bench.apart(f"1 / {number}"):
            bench.add("quotient", 1 / number)

gpu_parts.failing = failing
sys.exit(gpu_parts.main())
"""


def test_what_fails_in_a_part_leaves_the_rest_of_it(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text(FAILING)
    monkeypatch.setattr(bench_gpu, "PARTS", tmp_path / "parts.py")
    result = bench_gpu._run("failing", 500, True, tmp_path)
    assert [each["value"] for each in result["partial"]] == [1, 0.5]
    assert result["error"] == "ended with exit status 1; 1 / 0: ZeroDivisionError: division by zero"


def test_a_run_that_is_stopped_keeps_what_its_part_had_and_starts_no_other(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text(
        "import os, sys, signal, time\n"
        'open(sys.argv[2], "w").write(\'{"figures": [{"what": "a", "value": 1, "unit": "s"}]}\')\n'
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(bench_gpu, "PARTS", tmp_path / "parts.py")
    monkeypatch.setattr("sys.argv", ["gpu", "--rehearse", "--json", str(file), "--parts", "picture", "memory"])
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert bench_gpu.main() == 1
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == ["picture"] and parts["picture"]["partial"][0]["value"] == 1
    assert parts["picture"]["error"] == bench_gpu.STOPPED


def test_the_true_folder_is_made_anew_where_a_part_was_ended_while_it_made_it(tmp_path, monkeypatch):
    def make(folder):
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")

    monkeypatch.setattr(bench_pipeline, "make_folder", make)
    (tmp_path / "true.begun").mkdir()
    bench = Bench(tmp_path / "figures.json", tmp_path / "true", rehearse=False)
    assert (bench.folder / "model_index.json").is_file() and not (tmp_path / "true.begun").exists()


@pytest.fixture
def without(monkeypatch):
    """without(package, …): they cannot be found."""

    def hide(*names):
        find = PathFinder.find_spec

        def found(name, *rest):
            return None if name.split(".")[0] in names else find(name, *rest)

        monkeypatch.setattr(PathFinder, "find_spec", staticmethod(found))
        for name in [each for each in sys.modules if each.split(".")[0] in names]:
            monkeypatch.delitem(sys.modules, name)

    return hide


@pytest.mark.parametrize("part,measured", [("graphs", 3), ("more", 4)])
def test_what_needs_a_package_that_is_missing_is_named_and_the_rest_measured(part, measured, without, tmp_path):
    without("diffusers")
    bench = Bench(tmp_path / "figures.json", tmp_path / "none", rehearse=True)
    getattr(gpu_parts, part)(bench)
    kept = json.loads(bench.out.read_text())
    assert len(kept["figures"]) == measured and "diffusers" in kept["left_out"][0] and len(kept["left_out"]) == 1


def test_what_another_process_would_need_is_looked_for(without, tmp_path):
    without("pytest")
    bench = Bench(tmp_path / "figures.json", tmp_path / "none", rehearse=True)
    gpu_parts.tests(bench)
    assert json.loads(bench.out.read_text()) == {
        "figures": [],
        "left_out": ["what needs pytest: it is not installed"],
        "failed": [],
    }


def test_the_true_autoencoder_is_made_without_diffusers_and_is_one_of_its_own(tmp_path):
    from diffusers import AutoencoderKL

    shape = {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4}
    make_vae(tmp_path / "vae", **shape)
    one, other = load_vae(tmp_path / "vae", torch.float32), AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    latent = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(one.decode(latent).sample, other.decode(latent).sample)


def test_every_part_can_be_run():
    assert all(callable(getattr(gpu_parts, part)) for part in bench_gpu.BOUNDS)
    readme = (bench_gpu.ROOT / "README.md").read_text(encoding="utf-8")
    assert all(mark in readme for mark in bench_gpu.MARKS)


def test_packages_that_were_brought_along_are_found_by_every_part(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/brought")
    assert environment()["PYTHONPATH"].split(os.pathsep) == [str(bench_gpu.ROOT), "/brought"]
    monkeypatch.delenv("PYTHONPATH")
    assert environment()["PYTHONPATH"] == str(bench_gpu.ROOT)
