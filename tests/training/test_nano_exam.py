"""The measure of distillations: the run's own schedule, the teacher's guidance, intervals over seeds, step 0."""

import json
import shutil

import pytest
import torch
from PIL import Image
from pixart_delta.pixart_core.identify import METADATA_KEY
from pixart_delta.pixart_core.pipeline import Pipeline
from pixart_delta.pixart_core.schedule import alphas_cumprod
from pixart_delta.training.nano import curve as curves
from pixart_delta.training.nano import exam as exams
from pixart_delta.training.run_dir import RunDir
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.training.runs_fixture import make_features, run_here, settings

NANO = ROOT / "models" / "nano"
BASE = NANO / "base" / "pixart_nano_base.safetensors"


@pytest.fixture(scope="module")
def exam():
    """The bundled family, on as few captions as a Fréchet distance can be computed of."""
    return exams.Exam(Pipeline.from_pretrained(NANO), 66, drawings=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps of LCD from the bundled base on the scaled-linear schedule, both kept."""
    folder = tmp_path_factory.mktemp("curve")
    width = 64
    material = {"base": str(BASE), "data": str(make_features(folder / "features", width=width))}
    values = settings("lcd", material, folder / "run", steps=2, checkpoint_every=1, accumulation=1, guidance=3.0)
    return run_here("lcd", values | {"beta_schedule": "scaled_linear", "keep_checkpoints": 5}).path


def test_the_bundled_student_beats_its_base_in_one_step(exam):
    student, base = (curves.load_pixart(path, torch.float32).eval() for path in (NANO / "transformer", BASE))
    marks = [exam.mark(model, 1, seeds=(0,)) for model in (student, base)]
    (student, _), (base, _) = (mark["attributes"] for mark in marks)
    assert student > base + 5
    (student, _), (base, _) = (mark["distance"] for mark in marks)
    assert student < base


def test_a_curve_begins_before_the_first_step_and_uses_the_runs_schedule(exam, run, monkeypatch, tmp_path):
    tables = []

    def noted(predictor, steps, seeds, table=None, **_options):
        tables.append(table)
        return {"attributes": [50.0 + steps, 1.0], "at once": [9.0, 1.0], "distance": [3.0, 0.5]}

    monkeypatch.setattr(exam, "mark", noted)
    points = curves.curve(run, exam, steps=(1, 2), seeds=(0,))
    assert [point["step"] for point in points] == [0, 1, 2] and len(RunDir(run).checkpoints()) == 2
    assert all(set(point["marks"]) == {"1", "2"} for point in points)
    scaled = curves.restore(str(run))[0].table
    assert len(tables) == 6 and all(torch.equal(table, scaled) for table in tables)
    curves.plot(
        {"run": points},
        {"teacher": {"attributes": [99, 1], "at once": [70, 2], "distance": [1, 0]}},
        (1, 2),
        tmp_path / "p.png",
    )
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_curve_can_leave_out_states_and_show_them(exam, run, monkeypatch):
    monkeypatch.setattr(exam, "mark", lambda *_arguments, **_options: {"attributes": [50.0, 1.0]})
    monkeypatch.setattr(exams, "SHOWN", 2)
    sheet = []
    points = curves.curve(run, exam, (1,), (0,), every=2, start=False, sheet=sheet)
    assert [point["step"] for point in points] == [2]
    assert [[picture.size for picture in row] for row in sheet] == [[(128, 128)] * 2] * 3  # step 0, 1 and 2
    again = []
    curves.curve(run, exam, (1,), (0,), every=2, start=False, sheet=again)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(sum(sheet, []), sum(again, []), strict=True))


def test_without_runs_the_folders_own_student_is_measured(monkeypatch, tmp_path, capsys):
    def noted(_exam, _predictor, steps, _seeds, **options):
        return {"attributes": [steps, options.get("guidance", 0)]}

    monkeypatch.setattr(exams.Exam, "mark", noted)
    monkeypatch.setattr(exams, "SHOWN", 1)
    small = ["--count", "4", "--steps", "1", "2", "--sheet", str(tmp_path / "sheet.png")]
    curves.main([str(NANO), "--guidance", "3", "--captions", "hard", *small])
    marks, shown = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {name: each["attributes"] for name, each in marks.items()} == {
        "teacher, 14 steps": [14, 4],
        "teacher, 4 steps": [4, 4],
        "student, 1 step": [1, 0],
        "student, 2 steps": [2, 0],
    }
    assert len(shown["shown"]) == 1 and Image.open(tmp_path / "sheet.png").size == (128, 4 * 132 - 4)
    with pytest.raises(SystemExit):
        curves.main([str(NANO), *small])


def test_the_folders_student_is_measured_on_its_own_noise_schedule(monkeypatch, tmp_path, capsys):
    """As ours are exported: the file says that it was distilled on the scaled-linear one."""
    folder = tmp_path / "nano"
    shutil.copytree(NANO, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    about = json.dumps({"training": {"config": {"beta_schedule": "scaled_linear"}}})
    save_file(load_file(weights), weights, {METADATA_KEY: about})
    asked = []

    def noted(_exam, _predictor, _steps, _seeds, table=None, **_options):
        asked.append(table)
        return {"attributes": [0, 0]}

    monkeypatch.setattr(exams.Exam, "mark", noted)
    small = ["--guidance", "3", "--count", "2", "--steps", "1", "--no-teacher"]
    for models, scaled in ((folder, True), (NANO, False)):
        curves.main([str(models), *small])
        table = asked.pop()
        assert (table is not None) == scaled and (not scaled or table.equal(alphas_cumprod(scaled_linear=True)))


def test_the_teacher_is_guided_as_the_student_learns(exam, monkeypatch):
    asked = []

    def noted(*_arguments, guidance=None, sampler=None, null=None, **_options):
        asked.append((sampler, guidance, null.shape[-1]))
        return {}

    monkeypatch.setattr(exam, "mark", noted)
    curves.teacher_marks(BASE, 3.0, exam)
    assert asked == [("dpm", 4.0, 64)] * len(curves.TEACHER_STEPS)


def test_an_interval_is_students():
    assert exams.interval([2.0]) == [2.0, 0.0]
    mean, half = exams.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    json.dumps([mean, half])
