"""Token losses as sum and count, against torch's own mean."""

import pytest
import torch
import torch.nn.functional as F

from vlm.models import losses
from vlm.models.losses import cross_entropy, cross_entropy_by_source, in_chunks


def test_sum_over_count_is_torchs_mean():
    logits, targets = torch.randn(7, 11), torch.randint(11, (7,))
    loss = cross_entropy(logits, targets)
    assert int(loss.count) == 7
    torch.testing.assert_close(loss.sum / loss.count, F.cross_entropy(logits, targets))


def test_loss_of_no_labels_is_zero_and_differentiable():
    logits = torch.randn(0, 11, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    loss.sum.backward()
    assert (loss.sum.item(), int(loss.count)) == (0.0, 0)


def test_losses_of_sources_are_those_of_their_tokens_alone():
    logits, targets, sources = torch.randn(7, 11, requires_grad=True), torch.randint(11, (7,)), torch.tensor([0, 2, 2, 0, 0, 2, 0])
    loss = cross_entropy_by_source(logits, targets, sources, 3)
    whole = cross_entropy(logits, targets)
    torch.testing.assert_close((loss.sum, loss.count), (whole.sum, whole.count))
    assert loss.by_source is not None and not loss.by_source.requires_grad
    for i, count in enumerate([4, 0, 3]):
        mine = cross_entropy(logits[sources == i], targets[sources == i])
        torch.testing.assert_close(loss.by_source[i], torch.stack([mine.sum.detach(), torch.tensor(float(count))]))


@pytest.mark.parametrize("with_sources", [False, True])
@pytest.mark.parametrize("rows", [1, 6, 7])
def test_loss_in_chunks_and_its_gradients_are_those_of_all_rows_at_once(rows, with_sources, monkeypatch):
    hidden, weight = torch.randn(rows, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    targets, sources = torch.randint(11, (rows,)), torch.randint(3, (rows,)) if with_sources else None
    made = []

    def loss(hidden, targets, sources):
        logits = hidden @ weight.T
        made.append(len(logits))
        return cross_entropy(logits, targets) if sources is None else cross_entropy_by_source(logits, targets, sources, 3)

    monkeypatch.setattr(losses, "WHOLE", 0)
    monkeypatch.setattr(losses, "CHUNK", 23)  # two rows of 11 logits
    seen = in_chunks(loss, hidden, targets, sources, vocabulary=11)
    gradients = torch.autograd.grad(seen.sum, (hidden, weight))
    assert max(made) <= 2
    assert int(seen.count) == rows
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(seen.sum, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, (hidden, weight)))
    if sources is not None:
        assert seen.by_source is not None
        assert seen.by_source[:, 1].tolist() == torch.bincount(sources, minlength=3).tolist()
        torch.testing.assert_close(seen.by_source[:, 0].sum(), wanted.detach())
