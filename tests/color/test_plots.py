import io

import numpy as np
from PIL import Image

from vlm.color import plots
from vlm.color.plots import draw_concept, ranks


def test_ranks_start_at_1_and_keep_the_order_of_equals():
    assert ranks(np.array([0.2, 0.9, 0.2, 0.5])).tolist() == [3, 1, 4, 2]


def test_four_pictures_have_the_studys_names_and_the_colors_of_the_swatches(monkeypatch):
    monkeypatch.setattr(plots, "DPI", 30)
    drawn = dict(draw_concept("apple", np.array([0.1, 0.5, 0.9]), np.array([0.3, 0.2, 0.1]), ["#ff0000", "#00ff00", "#ffffff"]))
    assert list(drawn) == ["apple_gt_scores.png", "apple_pred_scores.png", "apple_ranking_plot_by_gt.png", "apple_ranking_plot_by_pred.png"]
    for content in drawn.values():
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        assert picture.size == (240, 240) and (0, 255, 0) in {color for _, color in picture.getcolors(100000)}
