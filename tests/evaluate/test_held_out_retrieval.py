import pytest
import torch
from color_embedder import COLORS, blind_embedder, color_embedder
from PIL import Image

from vlm.data.benchmarks.base import Picture
from vlm.data.benchmarks.captioned import Captioned
from vlm.evaluate.held_out_retrieval import HeldOutRetrieval
from vlm.evaluate.report import write_report
from vlm.evaluate.retrieval import evaluate_retrieval


@pytest.fixture
def found(tmp_path):
    for name, rgb in COLORS.items():
        Image.new("RGB", (72, 72), rgb).save(tmp_path / f"{name}.png")
    pictures = [Picture(name, tmp_path / f"{name}.png") for name in COLORS]
    data = Captioned("colors@test", pictures, list(COLORS), torch.arange(len(COLORS)))
    measured = evaluate_retrieval([color_embedder("runs/a"), blind_embedder("runs/b")], data, resamples=10)
    return HeldOutRetrieval(measured, {"runs/a": "distilled", "runs/b": "plain"}, "Trained on <colors>.", "retrieval/report.html")


def test_summary_has_each_variant_beside_chance(found):
    summary = found.summary()
    assert (summary["dataset"], summary["num_pictures"]) == ("colors@test", 6)
    assert summary["distilled"]["image_retrieval_recall@1"] == 1
    assert summary["plain"]["image_retrieval_recall@1"] == pytest.approx(1 / 6)
    assert summary["chance"]["image_retrieval_recall@1"] == pytest.approx(1 / 6)
    assert "image_retrieval_recall@10" not in summary["chance"]  # of six pictures


def test_table_has_both_directions_and_chance(found):
    table = found.table()
    assert table.columns == ("heads", *(f"{one} to {other} R@{k}" for one, other in (("caption", "picture"), ("picture", "caption")) for k in (1, 5)))
    assert [row[:2] for row in table.rows] == [["distilled", "1.000"], ["plain", "0.167"], ["chance", "0.167"]]


def test_examples_are_of_the_first_variant_and_name_the_right_picture(found):
    examples = found.examples()
    assert {example.name for example in examples} == set(COLORS)
    for example in examples:
        assert example.place == 1
        assert next((shown.right, shown.name) for shown in example.found) == (True, example.name)
        assert sum(shown.right for shown in example.found) == 1


def test_page_shows_names_with_pictures_and_escapes_text(found, tmp_path):
    write_report(tmp_path / "page.html", title="t", summary="s", tables=[], curves="", answered=[], retrieval=found, chat_line="vlm chat")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<figure class="hit">') == 6 and page.count("data:image/png;base64,") == 30
    assert "Trained on &lt;colors&gt;." in page and 'href="retrieval/report.html"' in page
