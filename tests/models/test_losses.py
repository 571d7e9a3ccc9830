"""Token losses as sum and count, against torch's own mean."""

import torch
import torch.nn.functional as F

from vlm.models.losses import cross_entropy, cross_entropy_by_source


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
