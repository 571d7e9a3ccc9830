import numpy as np
import pytest
import torch

from vlm.color.associations import Associations
from vlm.color.colors import UW71, open_colors
from vlm.color.prompts import make_prompts
from vlm.color.study import ask, check_names, hue, reduced, severe_underestimates
from vlm.errors import CheckpointError

NAMES = {"yellow": (1, 1, -1), "blue": (-1, -1, 1), "red": (1, -1, -1), "green": (-1, 1, -1), "white": (1, 1, 1), "black": (-1, -1, -1)}


class RgbModel:
    """Pictures by their color, texts by the color names in them; every other text is gray."""

    def encode_image(self, images):
        vectors = torch.tensor(np.stack([np.asarray(image, dtype=np.float32)[0, 0] for image in images]))
        return torch.nn.functional.normalize(vectors / 127.5 - 1 + 1e-3, dim=1)

    def encode_text(self, texts):
        vectors = [next((rgb for name, rgb in NAMES.items() if name in text), (0.1, 0.1, 0.1)) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(vectors, dtype=torch.float32), dim=1)

    def logit_scale(self):
        return 10.0, 0.0


def test_scores_are_cosines_of_prompts_and_swatches():
    colors = open_colors(UW71)
    answer = ask(RgbModel(), make_prompts(1, ["yellow", "blue"]), colors, name="rgb")
    assert answer.scores.values.shape == (2, 71) and answer.scores.values is answer.cosines and answer.scale == 10
    expected = np.array(colors.rgb()[0]) / 127.5 - 1 + 1e-3
    yellow = np.array([1, 1, -1]) / np.sqrt(3)
    assert answer.scores.values[0, 0] == pytest.approx(expected @ yellow / np.linalg.norm(expected), abs=1e-5)


def test_expected_strength_by_hand():
    cosines = np.zeros((22, 1))
    cosines[10] = 0.1  # the first concept's prompt of strength 1.0
    weight = np.exp(10 * 0.1)
    found = reduced(cosines, 2, 10.0)
    assert found[:, 0] == pytest.approx([(4.5 + weight) / (10 + weight), 0.5])


def test_style_4_gives_one_strength_for_each_concept_and_color():
    answer = ask(RgbModel(), make_prompts(4, ["yellow", "blue"]), open_colors(UW71), name="rgb")
    assert answer.cosines.shape == (22, 71) and answer.scores.values == pytest.approx(0.5 * np.ones((2, 71)), abs=1e-6)  # it reads no numbers


def test_names_of_colors_are_checked():
    colors = open_colors(UW71)
    rows = {row.name: row for row in check_names(ask(RgbModel(), make_prompts(5), colors, name="rgb").scores, colors)}
    assert (
        rows["white"].hue is None and rows["yellow"].right and rows["blue"].nearest == "purple"
    )  # the nearest to pure blue is a dark violet, #3518ad
    assert len(rows) == 11 and not rows["purple"].right


def test_hue_is_an_angle():
    assert [hue(np.array(lab, dtype=float)) for lab in ([50, 10, 0], [50, 0, 10], [50, 0, -10], [50, 1, 1])] == [0, 90, 270, None]


def test_severe_underestimates_are_top_with_people_and_bottom_with_the_model():
    names = tuple(map(str, range(1, 9)))
    people = Associations(("a", "b"), names, np.array([[8, 7, 6, 5, 4, 3, 2, 1.0]] * 2), "people")
    model = Associations(("a", "b"), names, np.array([[1, 5, 2, 3, 4, 6, 7, 8.0]] * 2), "model")
    counts = severe_underestimates(people, model, {"a": -0.5, "b": 0.3}.__getitem__)
    assert counts == dict.fromkeys(names, 0) | {"1": 1}  # quartiles of 8 are 2: people 1, 2; model 1, 3; "b" goes with people well enough


def test_values_that_are_not_finite_are_refused():
    class Broken(RgbModel):
        def encode_text(self, texts):
            return super().encode_text(texts) * float("nan")

    with pytest.raises(CheckpointError, match="values that are not finite"):
        ask(Broken(), make_prompts(1), open_colors(UW71), name="broken")
