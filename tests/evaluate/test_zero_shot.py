"""CLIP_benchmark's own arithmetic (1.6.2, metrics/zeroshot_classification.py) and scikit-learn's balanced accuracy, written out again, are the reference."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from color_embedder import COLORS, blind_embedder, color_embedder
from PIL import Image

from vlm.data.benchmarks.base import Labelled, Picture
from vlm.errors import ConfigError, DataFormatError
from vlm.evaluate.embedder import NamedEmbedder
from vlm.evaluate.zero_shot import (
    average_precisions,
    chance_levels,
    class_vectors,
    confusion_matrix,
    evaluate_zero_shot,
    zero_shot_metrics,
)


def random_task(pictures=200, classes=9):
    labels = torch.randint(0, classes - 1, (pictures,))  # no picture of the last class
    return torch.randn(pictures, classes) + 1.5 * F.one_hot(labels, classes), labels


def clip_benchmark(output, target, classes):
    def accuracy(topk):
        pred = output.topk(max(topk), 1, True, True)[1].t()
        correct = pred.eq(target.view(1, -1).expand_as(pred))
        return [correct[:k].reshape(-1).float().sum().item() / len(target) for k in topk]

    recalls = defaultdict(list)
    for truth, guess in zip(target.tolist(), output.argmax(1).tolist(), strict=True):
        recalls[truth].append(truth == guess)
    balanced = float(np.mean([np.mean(hits) for _, hits in sorted(recalls.items())]))
    acc1, acc5 = accuracy((1, 5)) if classes >= 5 else (*accuracy((1,)), float("nan"))
    return {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": balanced}


@pytest.mark.parametrize("classes", [4, 5, 9])
def test_metrics_equal_clip_benchmarks(classes):
    similarity, labels = random_task(classes=classes)
    assert zero_shot_metrics(similarity, labels) == pytest.approx(clip_benchmark(similarity, labels, classes), abs=1e-12, nan_ok=True)


def test_top_5_of_four_classes_is_not_a_number():
    assert math.isnan(zero_shot_metrics(*random_task(classes=4))["acc5"])


def test_mean_average_precision_equals_clip_benchmarks_loop():
    scores, targets = torch.randn(50, 6), torch.rand(50, 6) < 0.3
    targets[:, 2] = False
    expected = torch.zeros(6)
    for k in range(6):
        truth = targets[:, k][torch.sort(scores[:, k], 0, True)[1]]
        precision = truth.float().cumsum(0).div(torch.arange(1, 51).float())
        expected[k] = precision[truth].sum() / max(float(truth.sum()), 1)
    assert torch.allclose(average_precisions(scores, targets).float(), expected, atol=1e-6)
    assert zero_shot_metrics(scores, targets) == {"mean_average_precision": pytest.approx(expected.mean().item(), abs=1e-6)}


def test_a_class_is_the_normalized_mean_of_its_normalized_prompts():
    prompts = [torch.randn(7, 5), torch.randn(3, 5)]
    for own, vector in zip(prompts, class_vectors(prompts), strict=True):
        mean = sum(row / row.norm() for row in own) / len(own)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-6)


def test_equal_scores_go_to_the_first_class_so_that_a_constant_model_is_at_chance():
    labels = torch.arange(6).repeat(5)
    found = zero_shot_metrics(torch.zeros(30, 6), labels)
    assert found == pytest.approx(chance_levels(labels, 6))
    assert found["acc1"] == pytest.approx(1 / 6) and found["acc5"] == pytest.approx(5 / 6)


def test_chance_of_average_precision_is_what_random_orders_reach():
    targets = torch.zeros(20, 3, dtype=torch.bool)
    targets[:1, 0] = targets[:8, 1] = True  # one of twenty, eight, none
    seen = torch.stack([average_precisions(torch.rand(20, 3), targets) for _ in range(4000)]).mean(0)
    assert chance_levels(targets, 3)["mean_average_precision"] == pytest.approx(seen.mean().item(), abs=0.005)


def test_confusion_counts_true_rows_and_predicted_columns():
    assert confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def color_task(tmp_path, *broken):
    pictures, labels = [], []
    for number, (name, rgb) in enumerate(COLORS.items()):
        for i in range(3):
            Image.new("RGB", (6, 6), rgb).save(tmp_path / f"{name}{i}.png")
            pictures.append(Picture(f"{name}{i}", tmp_path / f"{name}{i}.png"))
            labels.append(number)
    for name in broken:
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG no picture")
    return Labelled("colors", pictures, torch.tensor(labels), tuple(COLORS)), [[f"a {name} thing", f"{name}."] for name in COLORS]


def test_models_are_measured_side_by_side_on_the_pictures_that_can_be_read(tmp_path):
    data, prompts = color_task(tmp_path, "green1", "blue0")
    measured = evaluate_zero_shot([color_embedder(), blind_embedder()], data, prompts, batch_size=4, resamples=50)
    sees, blind = measured.results
    assert {fault.id for fault in measured.unreadable} == {"green1", "blue0"} and len(measured.data.pictures) == 16
    assert sees.scores["acc1"].value == sees.scores["acc1"].low == 1.0 and sees.scores["acc1"].chance == pytest.approx(1 / 6)
    assert blind.scores["mean_per_class_recall"].value == pytest.approx(1 / 6)
    assert blind.scores["acc1"].low < 3 / 16 < blind.scores["acc1"].high
    assert sees.confusion.diagonal().tolist() == [3, 2, 2, 3, 3, 3]


def test_pictures_that_a_model_refuses_for_their_shape_are_reported_and_the_others_of_the_batch_are_kept(tmp_path):
    data, prompts = color_task(tmp_path)
    Image.new("RGB", (60, 6)).save(tmp_path / "red1.png")
    color = color_embedder()

    def only_square(images):
        if any(image.width != image.height for image in images):
            raise DataFormatError("too narrow")
        return color.encode_images(images)

    measured = evaluate_zero_shot([blind_embedder(), NamedEmbedder("square", only_square, color.encode_texts)], data, prompts, resamples=5)
    assert [(fault.id, fault.reason) for fault in measured.unreadable] == [("red1", "too narrow")]
    assert measured.results[1].scores["acc1"].value == 1.0 and len(measured.data.pictures) == 17


def test_all_pictures_unreadable_no_prompts_equal_models_and_nan_features_are_errors(tmp_path):
    data, prompts = color_task(tmp_path)
    nan = NamedEmbedder("nan", lambda images: torch.full((len(images), 3), math.nan), color_embedder().encode_texts)
    with pytest.raises(ConfigError, match=r"'nan' gave values that are not finite for 18 of 18 inputs, first for 'red0'"):
        evaluate_zero_shot([nan], data, prompts)
    with pytest.raises(ConfigError, match="each once; got color, color"):
        evaluate_zero_shot([color_embedder(), color_embedder()], data, prompts)
    with pytest.raises(DataFormatError, match="6 lists of prompts for 6 classes"):
        evaluate_zero_shot([color_embedder()], data, [*prompts[:5], []])
    with pytest.raises(DataFormatError, match="None of 18 pictures can be read"):
        evaluate_zero_shot([color_embedder()], color_task(tmp_path, *(picture.id for picture in data.pictures))[0], prompts)
