"""tools/paper: a figure's trainings are settings that train.py takes; what is said of marks; the page; the check."""

import json
import shutil

import pytest
from PIL import Image
from pixart_delta.training.config import make_config

from tools.paper import __main__ as paper
from tools.paper import page, plots, tables, work
from tools.paper.figures import FIGURES, SEEDS
from tools.paper.seeds import apart, interval, merged
from tools.paper.verdict import compared, followed, jumps, pictures_alike, risen
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


def thrice(*values, chance=(0, 1, -1), **options):
    """As of three trainings, whose last marks differ by chance."""
    return merged([marks(*values[:-1], values[-1] + more, **options) for more in chance])


def control(*curves):
    """As of a control: F1 of every scene at steps 0, 75, …; things are followed less than the land."""
    points = []
    for i, each in enumerate(zip(*curves, strict=True)):
        mean = sum(each) / len(each)
        points.append({"step": 75 * i, "each": list(each), "f1": mean, "recall_things": mean / 2, "recall_land": mean})
    return {"points": points, "batch": 8}


@pytest.mark.parametrize("name", FIGURES)
def test_the_trainings_of_a_figure_are_settings_that_exist(name, tmp_path):
    figure, paths = FIGURES[name], {"run": "r", "data": "d", "base": "b"}
    shop = Workshop(tmp_path)
    made = [shop.values(figure, changed, seed) for changed in figure.variants.values() for seed in shop.seeds]
    for values in made:
        make_config(figure.command, values | paths)
    assert len({json.dumps(values, sort_keys=True) for values in made}) == len(made), "two variants are the same"


def test_the_page_has_every_figure():
    assert {*paper.NAMES} == {*FIGURES, "7", "3", "tables"} and len(paper.NAMES) == len(FIGURES) + 3
    assert paper.about().keys() == {*paper.NAMES}


def test_trainings_are_told_apart_only_beyond_chance():
    assert apart([80, 82, 81], [83, 85, 84.1]) and not apart([80, 82, 81], [83, 81, 85])
    assert not apart([80, 80, 80], [80, 80, 80]) and not apart([80], [90])
    found = {"one": thrice(20, 80)}
    assert "better: attributes right in one step (80 → 90)" in compared(found | {"two": thrice(20, 90)})
    assert "worse: attributes right in one step (80 → 70)" in compared(found | {"two": thrice(20, 70)})
    near = compared(found | {"two": thrice(20, 82, chance=(3, -3, 0))})
    assert "not told apart: attributes right in one step" in near and "better" not in near and "worse" not in near
    assert "after 50 steps" in near


def test_trainings_of_one_kind_are_their_mean():
    mean, half = interval([79, 80, 81])
    assert mean == 80 and half == pytest.approx(4.303 / 3**0.5, abs=1e-3) and interval([5.0, 5.0]) == [5, 0]
    found = thrice(20, 80, half=7)
    start, end = found["points"]
    assert start["marks"]["1"]["attributes"] == [20, 7], "what all began from is as it was measured"
    assert end["marks"]["1"]["attributes"] == [mean, half] and end["marks"]["4"]["at once"] == [40, half / 2]
    assert found["batch"] == 24 and [points[1]["marks"]["1"]["attributes"][0] for points in found["trainings"]] == [
        80,
        81,
        79,
    ]
    controlled = merged([control((0.3, 0.5)), control((0.3, 0.7))])
    assert controlled["points"][1]["f1"][0] == pytest.approx(0.6) and controlled["points"][0]["f1"] == [0.3, 0]


def test_batches_are_compared_at_equal_steps_and_at_equal_pictures():
    found = {"24": merged([marks(20, 60 + c, 80 + c) for c in (0, 1, 2)])}
    found["6"] = merged([marks(20, 30, 40 + c, 50, 70 + c, batch=6) for c in (0, 1, 2)])
    said = pictures_alike(found)
    assert "after 100 steps: worse: attributes right in one step (81 → 41)" in said
    assert "after 200 steps, 1200 pictures, of which *24* takes 50 steps: better: attributes right in one step" in said
    found["48"] = merged([marks(20, 60 + c, 90 + c, batch=48) for c in (0, 1, 2)])
    assert "*48* beside *24* after 50 steps, 2400 pictures, of which *24* takes 100 steps" in pictures_alike(found)


def test_the_rise_of_a_distillation_is_told_beside_its_teacher():
    said = risen({"24": thrice(20, 60, 80)})
    assert "after step 100 beside what it began as: better: attributes right in one step (20 → 80)" in said
    assert "worse" not in said and "once in 70 % in 14" in said


def test_scenes_that_jump_are_counted():
    steady, sudden, idle = (0.3, 0.4, 0.5, 0.6), (0.3, 0.3, 0.6, 0.61), (0.4, 0.4, 0.4, 0.41)
    found = {"one": merged([control(steady, sudden, idle)] * 2)}
    said = jumps(found)
    assert "Of 6 scenes, of all trainings together, 4 rose by 0.15 or more, and 2 of these by more than half" in said
    assert "0.54 ± 0.00 after step 225; steepest from step 75 to 150: +0.13" in followed(found)


def test_kinds_of_edges_are_compared():
    one, two = (merged([control((0.3, f1 + c)) for c in (0, 0.01, 0.02)]) for f1 in (0.5, 0.7))
    said = followed({"N = 3": one, "N = 1": two})
    assert "*N = 1* beside *N = 3* after 75 steps: better: F1 (0.51 → 0.71), edges of things found (" in said


def test_plots_strips_and_page_are_written(tmp_path):
    place = tmp_path / "paper"
    place.mkdir()
    two = {"one": thrice(20, 80, chance=(0, 0, 0)), "other": thrice(20, 83) | {"guidance": 4.5}}
    plots.plot(two, place / "3.png")
    assert len(plots.teachers(two)) == 2 and "guidance 5.5" in " ".join(plots.teachers(two))
    controls = {"one": merged([control((0.3, 0.6), (0.4, 0.5))] * 2)}
    plots.plot(controls, place / "6.png")
    plots.plot_scenes(controls, place / "6_scenes.png")
    assert paper.control_table(controls)["rows"] == [
        ["without", "0.35 ± 0", "0.175 ± 0", "0.35 ± 0"],
        ["one, step 75", "0.55 ± 0", "0.275 ± 0", "0.55 ± 0"],
    ]
    plots.plot_schedules(place / "3_schedules.png")
    Image.new("RGB", (260, 128)).save(place / "sheet.png")
    plots.labelled(place / "sheet.png", place / "strip.jpg", rows=["step 0"])
    with Image.open(place / "strip.jpg") as strip:
        assert strip.size == (260 + 78, 128)
    table = paper.table(two)
    assert table["rows"][0] == ["one, step 50", "1", "80 ± 0", "40 ± 0", "0.2 ± 0"] and len(table["rows"]) == 8
    figure = {"verdict": "this.", "pictures": ["3.png"], "trained_seconds": {"one": 7}, "table": table, "note": "Mind"}
    figure["made_with"] = {"family": work.family()}
    (place / "3.json").write_text(json.dumps(figure))
    page.write(place, paper.about(), 72, 3, 3)
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert text.index("## Figure 7") < text.index("## Figure 3") < text.index("## The distance in the loss")
    assert (
        "(paper/3.png)" in text and "one 7." in text and "| one, step 50 | 1 | 80 ± 0 |" in text and "\nMind.\n" in text
    )
    assert text.count("**Not made yet**") == len(paper.NAMES) - 1 and "of **that of 128 px**" in text


def test_what_is_said_of_the_schedules_is_so():
    said, ours, theirs = plots.schedules(), plots.log_snr(False), plots.log_snr(True)
    crossing = int(said.split("timesteps 0 to ")[1].split()[0])
    assert (ours[: crossing + 1] > theirs[: crossing + 1]).all() and (
        ours[crossing + 1 :] < theirs[crossing + 1 :]
    ).all()


BEGUN = {(False, 0): [1.0, 0.901], (False, 1): [1.0, 0.8], (True, 0): [1.0, 0.91], (True, 1): [1.0, 0.85]}
"""First losses of a training: with another loss or not, seed."""


def test_a_training_that_begins_otherwise_is_found(tmp_path, monkeypatch, capsys):
    shop, place = Workshop(tmp_path), tmp_path
    losses = {label: [[1.0, 0.9], [1.0, 0.8]] for label in FIGURES["loss"].variants}
    known = {"first_losses": losses, "seeds": [0, 1], "made_with": {"family": work.family()}}
    (place / "loss.json").write_text(json.dumps(known))
    monkeypatch.setattr(shop, "begin", lambda figure, changed, seed, steps: BEGUN["loss" in changed, seed])
    assert paper.check(shop, place, ["loss"]) == 1
    out = capsys.readouterr().out
    assert "loss, Huber, seed 0: differs by 0.00111, 0.02 allowed: ok" in out
    assert "loss, L2, seed 0: differs by 0.0111, 0.02 allowed: ok" in out
    assert "loss, L2, seed 1: differs by 0.0625, 0.02 allowed: WRONG" in out
    assert paper.check(shop, place, ["average"]) == 0 and "not made yet" in capsys.readouterr().out
    (place / "loss.json").write_text(json.dumps(known | {"made_with": {"family": {"resolution": 256}}}))
    assert paper.check(shop, place, ["loss"]) == 1 and "another family" in capsys.readouterr().out


def test_marks_of_the_family_that_differ_are_found(tmp_path, monkeypatch, capsys):
    before = {"captions": 72, "seeds": 3, "marks": {"student, 4 steps": {"at once": [70, 1], "distance": [0.5, 0.1]}}}
    (tmp_path / "7.json").write_text(
        json.dumps({"found": before, "made_with": {"family": work.family(paper.family.FOLDER)}})
    )
    now = {"student, 4 steps": {"at once": [71.5, 1], "distance": [0.6, 0.1]}}
    monkeypatch.setattr(paper.family, "measure", lambda captions, seeds, teacher: {"marks": now})
    assert paper.check(Workshop(tmp_path), tmp_path, ["7"]) == 1
    out = capsys.readouterr().out
    assert "at once: differs by 1.5, 4 allowed: ok" in out and "distance: differs by 0.1, 0.05 allowed: WRONG" in out


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
    assert found[0]["rows"] == ["teacher, 14 steps", "step 0"] and found[1]["rows"] == ["step 0"]
    assert found[2]["guidance"] == 4.5 and found[1]["teacher"] == TEACHER
    assert shop.measure(figure, tmp_path / "0", {}) == found[0] and len(asked) == 3


def test_tables_are_those_of_a_card_or_else_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "FILES", [tmp_path / "gpu.json", tmp_path / "table2.json"])
    card, cpu = tables.FILES
    assert tables.measured() is None
    figures = {"figures": [{"what": "PixArt-δ, 4 steps (the paper: 0.5 s)", "value": 0.19712, "unit": "s"}]}
    figures["figures"].append({"what": "SDXL / PixArt-δ (the paper: 7.6)", "value": 8.5, "unit": "x"})
    known = {"about": {"device": "A card", "torch": "2.11", "rehearsal": True}, "parts": {"table2": figures}}
    card.write_text(json.dumps(known))
    assert tables.measured() is None
    cpu.write_text(json.dumps({**known, "about": {"device": "CPU", "torch": "2.11", "rehearsal": False}}))
    assert "one CPU" in (verdict := tables.measured()["verdict"]) and "waits for a GPU" in verdict
    known["about"]["rehearsal"] = False
    card.write_text(json.dumps(known))
    found = tables.measured()
    assert found["table"]["rows"][0] == ["Table 2", "PixArt-δ, 4 steps (the paper: 0.5 s)", "0.1971 s"]
    assert (
        "A card" in (said := found["verdict"]) and "Below the paper's: PixArt-δ, 4 steps (0.197 s, there 0.5)" in said
    )
    assert "Above the paper's: SDXL / PixArt-δ (8.5 x, there 7.6)." in said


def test_the_committed_page_is_what_its_figures_say(tmp_path):
    docs = work.ROOT / "docs"
    (tmp_path / "paper").mkdir()
    for file in (docs / "paper").glob("*.json"):
        shutil.copy(file, tmp_path / "paper")
        figure = json.loads(file.read_text(encoding="utf-8"))
        for picture in figure["pictures"]:
            assert (docs / "paper" / picture).stat().st_size < 300_000
    page.write(tmp_path / "paper", paper.about(), work.CAPTIONS, work.NOISES, len(SEEDS))
    assert (tmp_path / "paper.md").read_text(encoding="utf-8") == (docs / "paper.md").read_text(encoding="utf-8")
