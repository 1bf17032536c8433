"""tools/paper: a figure's trainings are settings that train.py takes; what is said of marks; the page; the check."""

import json
import shutil

import pytest
from PIL import Image
from pixart_delta.training.config import make_config

from tools.paper import __main__ as paper
from tools.paper import page, plots, tables, work
from tools.paper.figures import FIGURES
from tools.paper.verdict import apart, compared, followed, jumps, pictures_alike, risen
from tools.paper.work import Workshop

TEACHER = {"teacher, 14 steps": {"attributes": [99, 1], "at once": [70, 3], "distance": [0.5, 0.1]}}


def marks(*values, half=1.0, batch=24, every=50):
    """As of a distillation: marks of all numbers of sampling steps are the same, at once is half of the attributes, and
    the distance a hundredth of what these lack."""
    points = []
    for i, v in enumerate(values):
        one = {"attributes": [v, half], "at once": [v / 2, half / 2], "distance": [(100 - v) / 100, 0.001]}
        points.append({"step": every * i, "marks": dict.fromkeys("124", one)})
    return {"points": points, "batch": batch, "guidance": 3.5, "teacher": TEACHER}


def control(*curves):
    """As of a control: F1 of every scene at steps 0, 75, …"""
    points = [
        {"step": 75 * i, "each": list(each), "f1": sum(each) / len(each)}
        for i, each in enumerate(zip(*curves, strict=True))
    ]
    return {"points": points, "batch": 8}


@pytest.mark.parametrize("name", FIGURES)
def test_the_trainings_of_a_figure_are_settings_that_exist(name, tmp_path):
    figure, paths = FIGURES[name], {"run": "r", "data": "d", "base": "b"}
    made = [Workshop(tmp_path).values(figure, changed) for changed in figure.variants.values()]
    for values in made:
        make_config(figure.command, values | paths)
    assert len({json.dumps(values, sort_keys=True) for values in made}) == len(made), "two variants are the same"


def test_the_page_has_every_figure():
    assert {*paper.NAMES} == {*FIGURES, "7", "3", "tables"} and len(paper.NAMES) == len(FIGURES) + 3
    assert paper.about().keys() == {*paper.NAMES}


def test_two_trainings_are_told_apart_only_beyond_chance():
    assert apart((80, 1), (83, 1), 0) and not apart((80, 2), (83, 1), 0) and not apart((80, 1), (83, 1), 4)
    found = {"one": marks(20, 80), "one, another seed": marks(20, 84)}
    assert "better: attributes right in one step (80 → 90)" in compared(found | {"two": marks(20, 90)})
    assert "worse: attributes right in one step (80 → 70)" in compared(found | {"two": marks(20, 70)})
    near = compared(found | {"two": marks(20, 83)})
    assert "not told apart: attributes right in one step" in near and "better" not in near and "worse" not in near
    assert "after 50 steps" in near


def test_batches_are_compared_at_equal_steps_and_at_equal_pictures():
    found = {"24": marks(20, 60, 80), "24, another seed": marks(20, 61, 81), "6": marks(20, 30, 40, 50, 70, batch=6)}
    said = pictures_alike(found)
    assert "after 100 steps: worse: attributes right in one step (80 → 40)" in said
    assert "after 200 steps, 1200 pictures, of which *24* takes 50 steps: better: attributes right in one step" in said


def test_the_rise_of_a_distillation_is_told_beside_its_teacher():
    said = risen({"24": marks(20, 60, 80)})
    assert "after step 100 beside what it began as: better: attributes right in one step (20 → 80)" in said
    assert "worse" not in said and "once in 70 % in 14" in said


def test_scenes_that_jump_are_counted():
    steady, sudden, idle = (0.3, 0.4, 0.5, 0.6), (0.3, 0.3, 0.6, 0.61), (0.4, 0.4, 0.4, 0.41)
    said = jumps({"one": control(steady, sudden, idle)})
    assert "Of 3 scenes 2 rose by 0.15 or more, and 1 of these by more than half of it" in said
    assert "steepest from step 75 to 150: +0.13" in followed({"one": control(steady, sudden, idle)})


def test_plots_strips_and_page_are_written(tmp_path):
    place = tmp_path / "paper"
    place.mkdir()
    two = {"one": marks(20, 80), "other": marks(20, 83) | {"guidance": 4.5}}
    plots.plot(two, place / "3.png")
    assert len(plots.teachers(two)) == 2 and "guidance 5.5" in " ".join(plots.teachers(two))
    plots.plot({"one": control((0.3, 0.6), (0.4, 0.5))}, place / "6.png")
    plots.plot_schedules(place / "3_schedules.png")
    Image.new("RGB", (260, 128)).save(place / "sheet.png")
    plots.labelled(place / "sheet.png", place / "strip.jpg", rows=["step 0"])
    with Image.open(place / "strip.jpg") as strip:
        assert strip.size == (260 + 78, 128)
    table = paper.table(two)
    assert table["rows"][0] == ["one, step 50", "1", "80 ± 1", "40 ± 0.5", "0.2 ± 0.001"] and len(table["rows"]) == 8
    figure = {"verdict": "this.", "pictures": ["3.png"], "trained_seconds": {"one": 7}, "table": table, "note": "Mind"}
    figure["made_with"] = {"family": work.family()}
    (place / "3.json").write_text(json.dumps(figure))
    page.write(place, paper.about(), 72, 3)
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert text.index("## Figure 7") < text.index("## Figure 3") < text.index("## The distance in the loss")
    assert (
        "(paper/3.png)" in text and "one 7." in text and "| one, step 50 | 1 | 80 ± 1 |" in text and "\nMind.\n" in text
    )
    assert text.count("**Not made yet**") == len(paper.NAMES) - 1 and "nano family of\n128 px" in text


def test_what_is_said_of_the_schedules_is_so():
    said, ours, theirs = plots.schedules(), plots.log_snr(False), plots.log_snr(True)
    crossing = int(said.split("timesteps 0 to ")[1].split()[0])
    assert (ours[: crossing + 1] > theirs[: crossing + 1]).all() and (
        ours[crossing + 1 :] < theirs[crossing + 1 :]
    ).all()


def test_a_training_that_begins_otherwise_is_found(tmp_path, monkeypatch, capsys):
    shop, place = Workshop(tmp_path), tmp_path
    losses = {label: [1.0, 0.9] for label in FIGURES["loss"].variants}
    known = {"first_losses": losses, "made_with": {"family": work.family()}}
    (place / "loss.json").write_text(json.dumps(known))
    monkeypatch.setattr(shop, "begin", lambda figure, changed, steps: [1.0, 0.95 if "loss" in changed else 0.901])
    assert paper.check(shop, place, ["loss"]) == 1
    out = capsys.readouterr().out
    assert "loss, Huber: differs by 0.00111, 0.02 allowed: ok" in out
    assert "loss, L2: differs by 0.0556, 0.02 allowed: WRONG" in out
    assert paper.check(shop, place, ["average"]) == 0 and "not made yet" in capsys.readouterr().out
    (place / "loss.json").write_text(json.dumps(known | {"made_with": {"family": {"resolution": 256}}}))
    assert paper.check(shop, place, ["loss"]) == 1 and "another family" in capsys.readouterr().out


def test_marks_of_the_family_that_differ_are_found(tmp_path, monkeypatch, capsys):
    before = {"captions": 72, "seeds": 3, "marks": {"student, 4 steps": {"at once": [70, 1], "distance": [0.5, 0.1]}}}
    (tmp_path / "7.json").write_text(json.dumps({"found": before, "made_with": {"family": work.family()}}))
    now = {"student, 4 steps": {"at once": [71.5, 1], "distance": [0.6, 0.1]}}
    monkeypatch.setattr(paper.family, "measure", lambda captions, seeds, teacher: {"marks": now})
    assert paper.check(Workshop(tmp_path), tmp_path, ["7"]) == 1
    out = capsys.readouterr().out
    assert "at once: differs by 1.5, 2 allowed: ok" in out and "distance: differs by 0.1, 0.05 allowed: WRONG" in out


def test_what_trainings_have_in_common_is_measured_once(tmp_path, monkeypatch):
    asked = []

    def printed(*arguments, log=None):
        asked.append(arguments)
        lines = [] if "--no-teacher" in arguments else [TEACHER]
        steps = (50,) if "--no-start" in arguments else (0, 50)
        lines += [{"run": "r", **point} for point in marks(20, 80)["points"] if point["step"] in steps]
        return "\n".join(map(json.dumps, [*lines, {"shown": ["a house"]}]))

    monkeypatch.setattr(work, "train_py", printed)
    shop, figure = Workshop(tmp_path), FIGURES["2"]
    found = []
    for number, changed in enumerate(({}, {"seed": 1}, {"guidance": 4.5})):
        run = tmp_path / str(number)
        run.mkdir()
        found.append(shop.measure(figure, run, changed))
    assert [("--no-teacher" in each, "--no-start" in each) for each in asked] == [
        (False, False),
        (True, True),
        (False, True),
    ]
    assert all([point["step"] for point in each["points"]] == [0, 50] for each in found)
    assert found[2]["guidance"] == 4.5 and found[1]["teacher"] == TEACHER
    assert shop.measure(figure, tmp_path / "0", {}) == found[0] and len(asked) == 3


def test_tables_are_those_of_a_card_or_else_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "FILES", [tmp_path / "gpu.json", tmp_path / "table2.json"])
    card, cpu = tables.FILES
    assert tables.measured() is None
    figures = {"figures": [{"what": "PixArt-δ, 4 steps", "value": 0.19712, "unit": "s"}]}
    known = {"about": {"device": "A card", "torch": "2.11", "rehearsal": True}, "parts": {"table2": figures}}
    card.write_text(json.dumps(known))
    assert tables.measured() is None
    cpu.write_text(json.dumps({**known, "about": {"device": "CPU", "torch": "2.11", "rehearsal": False}}))
    assert "one CPU" in (verdict := tables.measured()["verdict"]) and "waits for a GPU" in verdict
    known["about"]["rehearsal"] = False
    card.write_text(json.dumps(known))
    found = tables.measured()
    assert found["table"]["rows"] == [["Table 2", "PixArt-δ, 4 steps", "0.1971 s"]] and "A card" in found["verdict"]


def test_the_committed_page_is_what_its_figures_say(tmp_path):
    docs = work.ROOT / "docs"
    (tmp_path / "paper").mkdir()
    for file in (docs / "paper").glob("*.json"):
        shutil.copy(file, tmp_path / "paper")
        figure = json.loads(file.read_text(encoding="utf-8"))
        for picture in figure["pictures"]:
            assert (docs / "paper" / picture).stat().st_size < 300_000
    page.write(tmp_path / "paper", paper.about(), work.CAPTIONS, work.SEEDS)
    assert (tmp_path / "paper.md").read_text(encoding="utf-8") == (docs / "paper.md").read_text(encoding="utf-8")
