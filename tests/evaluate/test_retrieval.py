"""CLIP_benchmark's own arithmetic (1.6.2, metrics/zeroshot_retrieval.py: a one-hot of the top k against the pairs), written out again, is the reference."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlm.data.benchmarks.base import Picture
from vlm.data.benchmarks.captioned import Captioned
from vlm.errors import DataFormatError
from vlm.evaluate.embedder import NamedEmbedder
from vlm.evaluate.retrieval import both_places, chance_levels, evaluate_retrieval, recalls, retrieval_metrics, select_pictures


def ragged(pictures=37, most=6, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, most + 1, (pictures,), generator=generator)
    owners = torch.arange(pictures).repeat_interleave(counts)
    images = F.normalize(torch.randn(pictures, width, generator=generator), dim=-1)
    texts = F.normalize(images[owners] + torch.randn(len(owners), width, generator=generator), dim=-1)
    return images, texts, owners


def one_hot_recall(scores, positive_pairs, k):
    top = torch.topk(scores, k, dim=1)[1]
    one_hot = F.one_hot(top, num_classes=scores.shape[1])
    true_positives = (one_hot * positive_pairs[:, None, :]).sum(dim=(1, 2))
    return true_positives / positive_pairs.sum(dim=1)


def clip_benchmark(images, texts, owners, ks):
    scores = texts @ images.t()
    pairs = torch.zeros_like(scores, dtype=torch.bool)
    pairs[torch.arange(len(scores)), owners] = True
    metrics = {}
    for k in ks:
        metrics[f"image_retrieval_recall@{k}"] = (one_hot_recall(scores, pairs, k) > 0).float().mean().item()
        metrics[f"text_retrieval_recall@{k}"] = (one_hot_recall(scores.T, pairs.T, k) > 0).float().mean().item()
    return metrics


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 7, 512])
def test_recalls_equal_clip_benchmarks_exactly_with_ragged_captions(seed, block):
    data = ragged(seed=seed)
    assert retrieval_metrics(*data, (1, 5, 10), block=block) == clip_benchmark(*data, (1, 5, 10))


def test_captions_may_stand_in_any_order():
    images, texts, owners = ragged()
    order = torch.randperm(len(owners))
    assert retrieval_metrics(images, texts[order], owners[order]) == retrieval_metrics(images, texts, owners)


def test_a_model_that_gives_one_vector_for_everything_is_at_chance_and_not_perfect():
    images, texts, owners = ragged(pictures=40, most=1)
    found = retrieval_metrics(torch.ones_like(images), torch.ones_like(texts), owners)
    assert found == pytest.approx(chance_levels(owners, (1, 5, 10)))
    assert found["text_retrieval_recall@5"] == pytest.approx(5 / 40)


def test_of_equal_scores_the_first_goes_first():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    of_captions, of_pictures = both_places(images, images, torch.arange(3))
    assert of_captions.tolist() == of_pictures.tolist() == [0, 1, 0]


def test_more_places_than_items_are_not_a_number():
    images, texts, owners = ragged(pictures=4, most=2)
    found = retrieval_metrics(images, texts, owners)
    assert math.isnan(found["image_retrieval_recall@5"]) and not math.isnan(found["image_retrieval_recall@1"])


def test_chance_is_what_random_orders_reach_on_average():
    _, _, owners = ragged(pictures=12, most=5)
    expected = chance_levels(owners, (1, 3))
    seen = dict.fromkeys(expected, 0.0)
    for _ in range(3000):
        for name, value in retrieval_metrics(torch.eye(12), torch.rand(len(owners), 12), owners, (1, 3)).items():
            seen[name] += value / 3000
    assert seen == pytest.approx(expected, abs=0.01)


def test_a_picture_without_caption_is_an_error():
    with pytest.raises(DataFormatError, match=r"1 of 3 pictures have no caption, first number 1\."):
        retrieval_metrics(torch.eye(3), torch.eye(3)[[0, 2]], torch.tensor([0, 2]))


def test_a_drawn_picture_brings_its_captions_as_often_as_it_is_drawn():
    images, texts, owners = ragged(pictures=9)
    of_captions, of_pictures = both_places(images, texts, owners)
    chosen = torch.tensor([3, 3, 0])
    found = recalls(of_captions, of_pictures, owners, (1,), chosen=chosen)
    drawn = torch.cat([(of_captions < 1)[owners == i] for i in chosen.tolist()])
    assert found["image_retrieval_recall@1"] == pytest.approx(drawn.float().mean().item())
    assert found["text_retrieval_recall@1"] == pytest.approx((of_pictures[chosen] < 1).float().mean().item())


def test_pictures_that_cannot_be_read_are_reported_and_their_captions_are_not_searched(tmp_path):
    for i, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    data = Captioned("d", [Picture(str(i), tmp_path / f"{i}.png") for i in range(3)], ["red", "crimson", "green", "blue"], torch.tensor([0, 0, 1, 2]))
    asked = []
    model = NamedEmbedder("m", lambda images: torch.eye(3)[[0, 2]], lambda texts: asked.extend(texts) or torch.eye(3)[: len(texts)])
    measured = evaluate_retrieval([model], data, resamples=5)
    assert [fault.id for fault in measured.unreadable] == ["1"] and "1.png cannot be read" in measured.unreadable[0].reason
    assert measured.data.captions == ["red", "crimson", "blue"] and measured.data.owners.tolist() == [0, 0, 1]
    assert sorted(asked) == ["blue", "crimson", "red"]


def test_selecting_all_pictures_changes_nothing():
    data = Captioned("d", [Picture("a", Path("a")), Picture("b", Path("b"))], ["x", "y", "z"], torch.tensor([0, 1, 1]))
    same = select_pictures(data, [0, 1])
    assert same.captions == data.captions and same.owners.tolist() == [0, 1, 1]


@pytest.mark.slow
def test_karpathys_test_split_fits_in_memory_and_takes_seconds():
    owners = torch.arange(5000).repeat_interleave(5)
    images = F.normalize(torch.randn(5000, 64), dim=-1)
    assert retrieval_metrics(images, images[owners], owners)["text_retrieval_recall@1"] == 1.0
