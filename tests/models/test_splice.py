"""Image embeddings go to the places of image tokens, count for count."""

import pytest
import torch

from vlm.errors import DataFormatError
from vlm.models.splice import splice, touch

IMAGE = 9


def test_tiles_fill_image_tokens_in_reading_order_across_rows():
    ids = torch.tensor([[IMAGE, IMAGE, 1, IMAGE], [2, IMAGE, 3, 3]])
    images = torch.arange(1.0, 5.0).view(2, 2, 1)  # two tiles of two tokens each
    out = splice(torch.zeros(2, 4, 1), ids, images, image_token_id=IMAGE)
    assert out.squeeze(-1).tolist() == [[1, 2, 0, 3], [0, 4, 0, 0]]


def test_gradient_reaches_exactly_the_spliced_embeddings():
    images = torch.ones(1, 2, 3, requires_grad=True)
    embeds = torch.ones(1, 4, 3, requires_grad=True)
    splice(embeds, torch.tensor([[1, IMAGE, IMAGE, 1]]), images, image_token_id=IMAGE).sum().backward()
    assert images.grad.tolist() == torch.ones(1, 2, 3).tolist()
    assert embeds.grad[0, :, 0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_splice_raises_with_both_counts_when_they_differ(num_tokens):
    ids = torch.tensor([[IMAGE] * num_tokens + [1]])
    with pytest.raises(DataFormatError, match=rf"{num_tokens} image tokens, but its 1 tiles give 2 image embeddings"):
        splice(torch.zeros(1, num_tokens + 1, 1), ids, torch.zeros(1, 2, 1), image_token_id=IMAGE)


def test_touch_changes_nothing_and_gives_zero_gradients():
    embeds, unused = torch.randn(1, 2, 3), torch.randn(4, requires_grad=True)
    out = touch(embeds, unused)
    out.sum().backward()
    assert torch.equal(out, embeds)
    assert unused.grad.tolist() == [0, 0, 0, 0]
