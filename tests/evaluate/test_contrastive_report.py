import json
import math
import re
import sys

import pytest
import torch
from color_embedder import COLORS, blind_embedder, color_embedder
from PIL import Image

from vlm.data.benchmarks.base import Labelled, Picture
from vlm.data.benchmarks.captioned import Captioned
from vlm.errors import ConfigError, MissingPackageError
from vlm.evaluate.contrastive_report import class_rows, confused_classes, render, score_table, write_results
from vlm.evaluate.retrieval import evaluate_retrieval
from vlm.evaluate.zero_shot import evaluate_zero_shot

MODELS = [color_embedder(), blind_embedder("blind/model")]
OUTSIDE = ('src="http', 'href="http', "<script", "<link", "@import", "url(http")


@pytest.fixture
def pictures(tmp_path):
    for name, rgb in COLORS.items():
        Image.new("RGB", (200, 150), rgb).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"<b>no picture")
    return [Picture(name, tmp_path / f"{name}.png") for name in [*COLORS, "broken"]]


@pytest.fixture
def classified(pictures):
    data = Labelled("colors", pictures, torch.tensor([*range(6), 0]), (*COLORS, "<never>"))
    return evaluate_zero_shot(MODELS, data, [[f"a {name}"] for name in data.class_names], resamples=20)


@pytest.fixture
def searched(pictures):
    data = Captioned("colors", pictures, [*COLORS, "a red one", "lost"], torch.tensor([*range(6), 0, 6]))
    return evaluate_retrieval(MODELS, data, resamples=20)


def test_json_has_clip_benchmarks_keys_one_file_a_model(classified, searched, tmp_path):
    files = {path.name for path in write_results(tmp_path / "a", classified) + write_results(tmp_path / "b", searched)}
    assert "blind-model_colors_zeroshot_classification.json" in files and "color_colors_zeroshot_retrieval.json" in files
    written = json.loads((tmp_path / "a" / "color_colors_zeroshot_classification.json").read_text(encoding="utf-8"))
    assert list(written) == ["dataset", "model", "pretrained", "task", "metrics", "language"]
    assert (written["dataset"], written["model"], written["language"]) == ("colors", "color", "en")
    assert written["task"] == "zeroshot_classification" and written["metrics"] == {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0}
    written = json.loads((tmp_path / "b" / "color_colors_zeroshot_retrieval.json").read_text(encoding="utf-8"))
    assert written["task"] == "zeroshot_retrieval"
    assert set(written["metrics"]) == {f"{what}_retrieval_recall@{k}" for what in ("image", "text") for k in (1, 5, 10)}
    details = json.loads((tmp_path / "b" / "details.json").read_text(encoding="utf-8"))
    assert details["num_pictures"] == 6 and [fault["id"] for fault in details["unreadable"]] == ["broken"]
    assert details["models"]["color"]["image_retrieval_recall@1"] == {"value": 1.0, "low": 1.0, "high": 1.0, "chance": pytest.approx(1 / 6)}


def test_models_stand_side_by_side_with_intervals_above_chance(classified):
    table = score_table(classified)
    assert table.columns == ("model", "top-1", "top-5", "mean recall per class")
    color, blind, chance = table.rows
    assert color[:2] == ["color", "100.0 (100.0 to 100.0)"] and re.fullmatch(r"16\.7 \(0\.0 to [\d.]+\)", blind[1])
    assert chance == ["chance", "14.3", "71.4", "14.3"]


def test_what_is_not_defined_is_a_dash_and_not_a_number_in_json(searched, tmp_path):
    assert score_table(searched).rows[0][3] == score_table(searched).rows[2][3] == "\N{EN DASH}"  # R@10 among 6 pictures
    write_results(tmp_path, searched)
    assert math.isnan(
        json.loads((tmp_path / "color_colors_zeroshot_retrieval.json").read_text(encoding="utf-8"))["metrics"]["image_retrieval_recall@10"]
    )


def test_page_is_one_file_with_numbers_faults_notes_confusions_and_escaped_names(classified):
    page = render(classified, notes=["88 % of these images were trained on."])
    assert not [word for word in OUTSIDE if word in page]
    assert "88 % of these images were trained on." in page and "1 of 7 pictures cannot be read and are not measured." in page
    assert "&lt;never&gt;" in page and "<never>" not in page
    assert page.count("<svg") == 2 and "most often taken for" in page
    assert page.count('<li class="hit">') == 6 + 5  # blind lists the first five of seven classes


def test_page_of_retrieval_marks_the_right_pictures_and_says_where_others_come(searched):
    page = render(searched)
    assert not [word for word in OUTSIDE if word in page] and "Confusions" not in page
    assert '<figure class="hit">' in page and "the right one comes at place 6" in page


def test_classes_are_sorted_by_recall_and_one_without_pictures_is_last(classified):
    rows = class_rows(classified)
    assert [row.shares for row in rows[:5]] == [[100.0, 0.0]] * 5 and rows[5].name == "red" and rows[5].shares == [100.0, 100.0]
    assert rows[6].name == "<never>" and rows[6].count == 0 and math.isnan(rows[6].shares[0])
    assert rows[0].mistaken == ["", "red (1)"]


def test_pictures_of_several_classes_have_average_precision_and_no_confusion(pictures):
    labels = torch.zeros(7, 3, dtype=torch.bool)
    labels[[0, 3, 5], 0] = labels[[1, 3, 4], 1] = labels[[2, 4, 5], 2] = True  # yellow is red and green
    data = Labelled("mixed", pictures, labels, ("red", "green", "blue"))
    measured = evaluate_zero_shot(MODELS, data, [[name] for name in data.class_names], resamples=20)
    assert measured.results[0].scores["mean_average_precision"].value == 1.0 > measured.results[1].scores["mean_average_precision"].value
    page = render(measured)
    assert "mean average precision" in page and "<h2>Confusions" not in page and "average precision</th>" in page


def test_of_many_classes_those_that_are_confused_most_are_drawn():
    confusion = 10 * torch.eye(50, dtype=torch.long)
    confusion[7, 31], confusion[44, 2] = 5, 4
    assert confused_classes(confusion, most=4) == [2, 7, 31, 44]
    assert confused_classes(confusion, most=50) == list(range(50))


def test_numbers_stay_where_there_is_no_matplotlib_and_models_of_one_file_name_have_a_file_each(pictures, tmp_path, monkeypatch):
    data = Labelled("d", pictures[:3], torch.tensor([0, 1, 2]), tuple(COLORS)[:3])
    measured = evaluate_zero_shot([color_embedder("a/b"), blind_embedder("a-b")], data, [[name] for name in data.class_names], resamples=5)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"vlm\[report\]"):
        write_results(tmp_path / "out", measured)
    models = [json.loads(path.read_text(encoding="utf-8"))["model"] for path in sorted((tmp_path / "out").glob("a-b*.json"))]
    assert sorted(models) == ["a-b", "a/b"]


def test_a_folder_that_cannot_be_written_is_said(classified, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_results(tmp_path / "file" / "x", classified)
