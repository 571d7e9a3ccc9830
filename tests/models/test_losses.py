"""Token losses as sum and count, against torch's own mean."""

import torch
import torch.nn.functional as F

from vlm.models.losses import cross_entropy, predicting
from vlm.types import IGNORE_INDEX


def test_a_position_predicts_the_label_after_it_and_the_last_predicts_nothing():
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 5, 6], [IGNORE_INDEX, 7, IGNORE_INDEX, 8]])
    assert predicting(labels).tolist() == [[False, True, True, False], [True, False, True, False]]


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
