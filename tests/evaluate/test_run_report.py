from pathlib import Path

from PIL import Image

from vlm.evaluate.run_record import RunRecord
from vlm.evaluate.run_report import cards, differing, labels, numbers, spell, thumbnail, write_run_report
from vlm.tracking import Shown

SETTINGS = {"model.vision": "v", "model.connector": "c", "model.language": "l", "stage.name": "align", "stage.dataset": "d", "stage.max_steps": 4}


def run_of(name="a", lines=(), looks=None, gaps=(), **changed):
    return RunRecord(Path("runs") / name, SETTINGS | changed, [{"step": i + 1.0, **line} for i, line in enumerate(lines)], looks or {}, gaps)


def test_numbers_are_medians_means_and_last_values():
    speeds = [
        {"loss": 4.0 - i, "tokens_per_second": speed, "seconds_per_step": 2.0, "padding_share": 0.1 * i}
        for i, speed in enumerate((10.0, 1000.0, 1200.0))
    ]
    said = numbers(run_of(lines=[*speeds, {"validation_loss": 1.25}]))
    assert said["steps"] == "4 of 4" and said["training loss, last 3 logged"] == "3.000"
    assert said["tokens a second"] == "1,000" and said["padding, mean"] == "10.0 %" and said["validation loss"] == "1.250"
    assert said["time in steps"] == "0:00:08"
    assert numbers(run_of()) == {"steps": "0 of 4"}


def test_settings_in_which_runs_differ_are_found_missing_ones_too():
    runs = labels([run_of("a", seed=7, rate=1e-3, trackers=["jsonl"]), run_of("b", seed=8, rate=1e-3, trackers=["jsonl"], new=True)])
    assert differing(runs) == ["seed", "new"]
    assert [spell(runs["a"], name) for name in ("new", "rate", "trackers", "seed")] == ["\N{EN DASH}", "0.001", "jsonl", "7"]


def test_runs_of_the_same_name_are_called_by_their_paths():
    assert list(labels([run_of("x/a"), run_of("y/a"), run_of("b")])) == ["runs/x/a", "runs/y/a", "b"]


def test_a_picture_has_one_card_with_the_answers_of_all_runs_and_of_earlier_steps(tmp_path):
    Image.new("RGB", (900, 600)).save(tmp_path / "big.jpg")
    said = [Shown(tmp_path / "big.jpg", "<image>\nColor?", "red", answer) for answer in ("blue", "Red.", "green")]
    made = cards({"a": run_of("a", looks={2: [said[0]], 4: [said[1]]}), "b": run_of("b", looks={4: [said[2]]})})
    (card,) = made
    assert card.question == "Color?" and card.picture.startswith("data:image/jpeg;base64,") and not card.pixelated
    assert [(answer.run, answer.latest, answer.right, answer.earlier) for answer in card.answers] == [
        ("a", "Red.", True, [(2, "blue")]),
        ("b", "green", False, []),
    ]


def test_missing_and_broken_pictures_are_said_on_the_page(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "broken.png") == thumbnail(tmp_path / "gone.png") == ("", False)
    looks = {1: [Shown(tmp_path / "gone.png", "What?", "x", "<script>alert(1)</script>"), Shown(None, "Why?", "y", "")]}
    write_run_report([run_of(lines=[{"loss": 1.0}], looks=looks, gaps=["The last line was cut."])], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "gone.png is not there, or cannot be read." in page and "A question without a picture." in page
    assert "(nothing)" in page and "The last line was cut." in page
    assert "<script" not in page and "&lt;script&gt;" in page


def test_page_about_several_runs_begins_with_what_differs_and_one_without_metrics_has_gaps(tmp_path):
    write_run_report([run_of("a", lines=[{"loss": 1.0}], seed=7), run_of("b", seed=8, gaps=["No step."])], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.index("Settings in which the runs differ") < page.index("--seed") < page.index("<h2>Numbers") < page.index("<h2>Curves")
    assert "b: No step." in page and "Settings that the runs share" in page
    write_run_report([run_of(gaps=["No step."])], tmp_path / "empty.html")
    assert "<h2>Curves" not in (tmp_path / "empty.html").read_text(encoding="utf-8")
