import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from vlm.evaluate.curves import PANELS, draw_panels, smooth, thin
from vlm.evaluate.run_record import RunRecord

STEP = {"loss": 2.0, "grad_norm": 0.5, "lr/connector": 1e-3, "lr/language": 1e-5, "tokens_per_second": 9e4, "mfu": 0.4, "padding_share": 0.1}


def run_of(*lines):
    return RunRecord(Path("runs/a"), {}, [{"step": i + 1.0, **line} for i, line in enumerate(lines)])


def test_a_panel_is_drawn_where_there_are_values_and_named_where_there_are_none():
    drawn = {panel.title: panel.svg for panel in draw_panels({"a": run_of(STEP, STEP)})}
    assert list(drawn) == [panel.title for panel in PANELS]
    assert drawn["Validation loss"] == drawn["Memory"] == ""
    for title in ("Training loss", "Learning rate", "Model FLOPs utilization", "Where the rest goes"):
        ElementTree.fromstring(drawn[title])
        assert "currentColor" in drawn[title] and "http://" not in drawn[title].replace("http://www.w3.org", "")
    assert ">language<" in drawn["Learning rate"]


def test_several_runs_share_a_picture_with_a_legend_and_metrics_of_one_kind_stand_apart():
    drawn = {panel.title: panel.svg for panel in draw_panels({"first": run_of(STEP), "second": run_of(STEP)})}
    assert ">first<" in drawn["Training loss"] and ">second<" in drawn["Training loss"]
    assert {"Learning rate: connector", "Learning rate: language"} <= drawn.keys()


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e12, -1.0])
def test_any_finite_value_can_be_drawn(value):
    lines = [dict.fromkeys([*STEP, "validation_loss", "validation/exact_match", "system/rss_gb"], value)] * 3
    assert all(panel.svg for panel in draw_panels({"a": run_of(*lines)}) if panel.title == "Gradient norm")


def test_long_curves_are_thinned_by_means_and_smoothed_without_a_shift():
    assert thin([1.0, 3.0, 5.0, 7.0, 9.0], 3) == [2.0, 6.0, 9.0]
    assert thin([], 3) == []
    line = [float(i) for i in range(200)]
    assert smooth(line) == pytest.approx(line)  # a centered mean leaves a line as it is, up to both ends
