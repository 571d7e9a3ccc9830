"""Contrastive losses against loops over single pairs and against open_clip; distillation against torch's definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.errors import ConfigError, UnknownNameError
from vlm.models import losses
from vlm.models.contrastive import CONTRASTS, Distillation, LogitScale, Pairs, distillation, unit, weighted_sum
from vlm.types import LossSum, World

ONE = World.single()
IDS = torch.tensor([3, 1, 3, 7, 3, 1])  # three captions of image 3, two of image 1
WIDTH = 5
SCALE, BIAS = torch.tensor(12.0), torch.tensor(-2.0)


def vectors(rows: int = len(IDS)) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, WIDTH, requires_grad=True), torch.randn(rows, WIDTH, requires_grad=True)


def logit(image: Tensor, text: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return SCALE * (image @ text) / (image.norm() * text.norm()) + bias


def by_loops(name: str, image: Tensor, text: Tensor, ids: list[int]) -> Tensor:
    """Each loss as its definition reads, one pair after the other."""
    sigmoid, multi = "sig" in name, name.startswith("multi")
    total = torch.zeros(())
    for i in range(len(ids)):
        siblings = [j for j in range(len(ids)) if ids[j] == ids[i]]
        strangers = [j for j in range(len(ids)) if ids[j] != ids[i]]
        positives = siblings if multi else [i]
        if sigmoid:
            total = total - sum(F.logsigmoid(logit(image[i], text[j], BIAS)) for j in positives)
            total = total - sum(F.logsigmoid(-logit(image[i], text[j], BIAS)) for j in strangers)
            continue
        for score in (lambda i, j: logit(image[i], text[j]), lambda i, j: logit(image[j], text[i])):
            everybody = torch.stack([score(i, j) for j in positives + strangers]).logsumexp(0)
            total = total + sum(everybody - score(i, j) for j in positives) / len(positives) / 2
    return total


@pytest.mark.parametrize("name", CONTRASTS)
@pytest.mark.parametrize("ids", [IDS, torch.arange(6), torch.zeros(6, dtype=torch.long)], ids=["siblings", "strangers", "one image"])
def test_a_loss_and_its_gradients_are_those_of_its_definition_in_loops(name: str, ids: Tensor):
    image, text = vectors()
    spec = CONTRASTS[name]
    seen = spec.loss(Pairs.of(image, text, ids, ONE), SCALE, None if spec.bias is None else BIAS)
    wanted = by_loops(name, image, text, ids.tolist())
    assert int(seen.count) == len(ids)
    torch.testing.assert_close(seen.sum, wanted)
    gradients, expected = (torch.autograd.grad(loss, (image, text), allow_unused=True) for loss in (seen.sum, wanted))
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_without_siblings_the_losses_are_open_clips(name: str):
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    image, text = vectors()
    bias = None if name == "clip" else BIAS
    theirs = {"clip": open_clip.loss.ClipLoss(), "siglip": open_clip.loss.SigLipLoss()}[name](unit(image), unit(text), SCALE, bias)
    seen = CONTRASTS[name].loss(Pairs.of(image, text, torch.arange(6), ONE), SCALE, bias)
    torch.testing.assert_close(seen.sum / seen.count, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (image, text)) for loss in (seen.sum / seen.count, theirs)))


def test_a_sibling_is_no_negative_however_similar():
    """Two captions of one image with the same words: each is found with certainty, which is impossible where one is a negative of the other."""
    image = torch.eye(3)[[0, 0, 1]]
    ids = torch.tensor([0, 0, 1])
    sure = CONTRASTS["clip"].loss(Pairs.of(image, image.clone(), ids, ONE), torch.tensor(50.0), None)
    assert float(sure.sum) < 1e-6
    negatives = CONTRASTS["clip"].loss(Pairs.of(image, image.clone(), torch.arange(3), ONE), torch.tensor(50.0), None)
    assert float(negatives.sum) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("name", CONTRASTS)
def test_losses_in_chunks_of_rows_are_those_of_all_at_once(name: str, monkeypatch):
    image, text = vectors()
    scale, bias = SCALE.clone().requires_grad_(), BIAS.clone().requires_grad_()
    spec = CONTRASTS[name]

    def compute() -> tuple[Tensor, ...]:
        seen = spec.loss(Pairs.of(image, text, IDS, ONE), scale, None if spec.bias is None else bias)
        return seen.sum, *torch.autograd.grad(seen.sum, (image, text, scale))

    whole = compute()
    monkeypatch.setattr(losses, "WHOLE", 0)
    monkeypatch.setattr(losses, "CHUNK", 13)  # two rows of 6 logits
    torch.testing.assert_close(compute(), whole)


@pytest.mark.parametrize("name", CONTRASTS)
def test_similarities_are_in_fp32_under_autocast(name: str):
    image, text = vectors()
    spec = CONTRASTS[name]
    exact = spec.loss(Pairs.of(image, text, IDS, ONE), SCALE, spec.bias and BIAS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = spec.loss(Pairs.of(image, text, IDS, ONE), SCALE, spec.bias and BIAS)
        near = distillation(image, text, Distillation(), ONE)
    assert seen.sum.dtype == torch.float32
    torch.testing.assert_close(seen.sum, exact.sum, atol=0, rtol=0)
    torch.testing.assert_close(near.sum, distillation(image, text, Distillation(), ONE).sum, atol=0, rtol=0)


def test_scales_start_where_the_papers_start_them():
    clip, siglip = (LogitScale(CONTRASTS[name].scale, CONTRASTS[name].bias) for name in ("clip", "siglip"))
    assert clip.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert clip.bias is None and clip()[1] is None
    assert (siglip.log_scale.item(), siglip.bias.item()) == pytest.approx((math.log(10), -10))
    assert [tuple(part.shape) for part in siglip()] == [(), ()]
    assert all(weight.ndim == 1 for weight in siglip.parameters())  # the optimizer decays matrices only


def test_the_scale_stops_at_a_hundred_and_comes_back():
    learned = LogitScale(scale=99.0)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1.0)
    for direction in (-1, -1, 1):
        scale, _ = learned()
        assert scale.item() <= 100.0 + 1e-4
        optimizer.zero_grad()
        (direction * scale / 100).backward()
        assert learned.log_scale.grad.item() != 0
        optimizer.step()
    assert learned()[0].item() < 50
    with torch.no_grad():
        learned.log_scale.fill_(9.0)
    with torch.inference_mode():
        assert learned.eval()()[0].item() == pytest.approx(100)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student = vectors()[0]
    teacher = 3 * student.detach()
    for options in (Distillation(), Distillation(divergence="mse")):
        for images in (None, (unit(torch.randn(4, WIDTH)),) * 2):
            loss = distillation(student, teacher, options, ONE, images=images)
            assert loss.sum.item() == pytest.approx(0, abs=1e-5)
            assert int(loss.count) == len(IDS)


@pytest.mark.parametrize("divergence", ["kl", "mse"])
@pytest.mark.parametrize("with_images", [False, True])
def test_distillation_is_its_definition_in_loops(divergence: str, with_images: bool):
    (student, teacher), (seen_images, true_images) = vectors(4), vectors(3)
    options = Distillation(instance=0.7, structure=0.3, divergence=divergence, scale=9.0)
    loss = distillation(student, teacher, options, ONE, images=(seen_images, true_images) if with_images else None)
    wanted = torch.zeros(())
    for i in range(4):
        wanted = wanted + 0.7 * (1 - F.cosine_similarity(student[i], teacher[i], dim=0))
        columns = range(3) if with_images else [j for j in range(4) if j != i]
        ours = torch.stack([F.cosine_similarity(student[i], (seen_images if with_images else student)[j], dim=0) for j in columns])
        theirs = torch.stack([F.cosine_similarity(teacher[i], (true_images if with_images else teacher)[j], dim=0) for j in columns])
        if divergence == "mse":
            wanted = wanted + 0.3 * (ours - theirs).square().sum() / (3 if with_images else 4)
        else:
            p, q = (9 * theirs).softmax(0), (9 * ours).softmax(0)
            wanted = wanted + 0.3 * (p * (p / q).log()).sum()
    torch.testing.assert_close(loss.sum, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss.sum, student), torch.autograd.grad(wanted, student))


def test_half_the_squared_distance_of_proclip_is_the_instance_term():
    student, teacher = vectors()
    loss = distillation(student, teacher, Distillation(structure=0.0), ONE)
    torch.testing.assert_close(loss.sum, F.mse_loss(unit(student), unit(teacher), reduction="sum") / 2)


def test_a_teacher_of_another_width_is_refused():
    with pytest.raises(ConfigError, match="The joint space has width 5, the teacher's vectors 4"):
        distillation(torch.randn(2, 5), torch.randn(2, 4), Distillation(), ONE)


def test_impossible_distillation_is_refused():
    with pytest.raises(UnknownNameError, match=r"No divergence named 'k1'. Did you mean 'kl'"):
        Distillation(divergence="k1")
    with pytest.raises(ConfigError, match="one must be positive"):
        Distillation(instance=0.0, structure=0.0)


def test_a_weighted_sum_over_its_count_is_the_weighted_sum_of_means():
    pairs, texts = LossSum(torch.tensor(6.0), torch.tensor(3)), LossSum(torch.tensor(10.0), torch.tensor(4))
    total = weighted_sum((1.0, pairs), (0.5, texts))
    assert float(total.sum / total.count) == pytest.approx(6 / 3 + 0.5 * 10 / 4)
    assert int(total.count) == 3


def test_a_linear_map_learns_to_match_pairs():
    """Texts are a fixed rotation of the images; some dozens of steps align a random start."""
    image = torch.randn(32, 8)
    text = image @ torch.linalg.qr(torch.randn(8, 8)).Q
    for name, spec in CONTRASTS.items():
        head, learned = nn.Linear(8, 8), LogitScale(spec.scale, spec.bias)
        optimizer = torch.optim.AdamW([*head.parameters(), *learned.parameters()], lr=5e-2)
        for _ in range(60):
            loss = spec.loss(Pairs.of(image, head(text), torch.arange(32), ONE), *learned())
            optimizer.zero_grad()
            (loss.sum / loss.count).backward()
            optimizer.step()
        found = (unit(head(text)) @ unit(image).T).argmax(1)
        assert (found == torch.arange(32)).float().mean() > 0.9, name
