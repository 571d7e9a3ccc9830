"""Batches of pairs: no image twice, ranks disjoint, every caption in its turn, continued exactly from any position."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm.data.stream.order import Position
from vlm.data.stream.pairs import (
    Captions,
    FreeTexts,
    PairBatch,
    PairLoader,
    PairOrder,
    TextOrder,
    count_batches,
    refuse_accumulation,
)
from vlm.errors import ConfigError, DataFormatError

COUNTS = np.array([5, 1, 3, 5, 2, 6, 1, 5, 4, 5, 5])  # captions of each image
OWNERS = np.repeat(np.arange(len(COUNTS)) * 10, COUNTS)  # rows of images, not all of which have captions
CAPTIONS = np.arange(len(OWNERS)) + 1000


class Table:
    """Row i is `width` times the number i, as a feature cache would give it."""

    def __init__(self, width: int):
        self.width = width

    def rows(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(indices).float()[:, None].expand(-1, self.width).half()


def order(batch: int = 4, seed: int = 3) -> PairOrder:
    shuffled = np.random.default_rng(0).permutation(len(OWNERS))
    return PairOrder(Captions.of(OWNERS[shuffled], CAPTIONS[shuffled]), batch, seed)


def loader(made: PairOrder | None = None, **settings) -> PairLoader:
    settings = {"num_steps": 7, "teacher": Table(2), "texts": FreeTexts(Table(3), Table(2), TextOrder(10, 2, 5))} | settings
    return PairLoader(Table(4), Table(3), made or order(), **settings)


def pairs(batch: PairBatch) -> list[tuple[int, int]]:
    return list(zip(batch.image_ids.tolist(), batch.samples, strict=True))


def test_a_batch_holds_an_image_once_and_an_epoch_too():
    made = order()
    assert made.batches_per_epoch == 2
    for epoch in range(50):
        drawn = [made.draw(epoch, number) for number in range(2)]
        images = np.concatenate([images for images, _ in drawn])
        assert len(set(images.tolist())) == 8
        for rows, captions in drawn:
            assert (OWNERS[captions - 1000] == rows).all()


def test_images_that_are_left_out_of_an_epoch_are_others_in_the_next():
    made = order()
    seen = [frozenset(np.concatenate([made.draw(epoch, number)[0] for number in range(2)]).tolist()) for epoch in range(30)]
    assert len(set(seen)) > 20
    assert set.union(*map(set, seen)) == set(OWNERS.tolist())


def test_an_image_shows_each_caption_once_before_any_comes_again():
    made = order(batch=len(COUNTS))  # no image is left out
    shown: dict[int, list[int]] = {}
    for epoch in range(60):
        for image, caption in zip(*made.draw(epoch, 0), strict=True):
            shown.setdefault(int(image), []).append(int(caption))
    for image, captions in shown.items():
        mine = set(CAPTIONS[image == OWNERS].tolist())
        for first in range(0, 60 - len(mine) + 1, len(mine)):
            assert set(captions[first : first + len(mine)]) == mine
        turns = {tuple(captions[first : first + len(mine)]) for first in range(0, 60 - len(mine) + 1, len(mine))}
        assert len(turns) > 1 or len(mine) == 1  # in another order each time


def test_images_do_not_show_their_captions_in_step():
    owners = np.repeat(np.arange(3000), 5)
    made = PairOrder(Captions.of(owners, np.arange(15000)), 3000, 1)
    turns = np.bincount(made.draw(0, 0)[1] % 5, minlength=5)
    assert turns.min() > 500  # of 600 on average


def test_the_order_is_a_function_of_the_seed():
    first, again, other = (list(loader(order(seed=seed))) for seed in (3, 3, 4))
    assert [pairs(batch) for batch in first] == [pairs(batch) for batch in again] != [pairs(batch) for batch in other]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_take_disjoint_stretches_of_the_same_batches(world: int):
    texts = FreeTexts(Table(3), Table(2), TextOrder(20, 4, 5))
    whole = list(loader(texts=texts))
    ranks = [list(loader(texts=texts, world=world, rank=rank)) for rank in range(world)]
    for step, batch in enumerate(whole):
        mine = [rank[step] for rank in ranks]
        assert [pair for part in mine for pair in pairs(part)] == pairs(batch)
        assert {part.num_labels for part in mine} == {4 // world}
        assert batch.texts is not None
        torch.testing.assert_close(torch.cat([part.texts.text for part in mine if part.texts is not None]), batch.texts.text)
        assert {part.position for part in mine} == {batch.position}


def test_batches_go_on_from_every_position_exactly():
    whole = list(loader(num_steps=25))
    for i, batch in enumerate(whole[:-7]):
        rest = list(loader(start=Position(*batch.position)))
        for seen, wanted in zip(rest, whole[i + 1 : i + 8], strict=True):
            assert pairs(seen) == pairs(wanted) and seen.position == wanted.position
            assert seen.texts is not None and wanted.texts is not None
            assert seen.texts.samples == wanted.texts.samples
    assert [batch.position for batch in whole[:3]] == [(0, 1, 0), (1, 0, 0), (1, 1, 0)]


def test_a_batch_holds_the_vectors_of_its_rows():
    batch = next(iter(loader()))
    torch.testing.assert_close(batch.image, Table(4).rows(batch.image_ids.numpy()))
    torch.testing.assert_close(batch.text, Table(3).rows(np.array(batch.samples)))
    assert batch.teacher is not None and batch.texts is not None
    torch.testing.assert_close(batch.teacher, Table(2).rows(np.array(batch.samples)))
    torch.testing.assert_close(batch.texts.teacher, Table(2).rows(np.array(batch.texts.samples)))
    assert (len(batch.image), batch.num_labels, len(batch.texts.text)) == (4, 4, 2)


def test_a_batch_moves_with_all_its_tensors():
    moved = next(iter(loader())).to("meta")
    assert moved.texts is not None and moved.teacher is not None
    assert {tensor.device.type for tensor in (moved.image, moved.text, moved.image_ids, moved.teacher, moved.texts.text, moved.texts.teacher)} == {
        "meta"
    }
    assert next(iter(loader(teacher=None, texts=None))).to("meta").teacher is None


def test_texts_without_images_have_epochs_of_their_own():
    batches = list(loader(texts=FreeTexts(Table(3), Table(2), TextOrder(10, 3, 5)), num_steps=6))
    for epoch in range(2):
        seen = [row for batch in batches[3 * epoch : 3 * epoch + 3] for row in batch.texts.samples]
        assert len(set(seen)) == 9
    rest = loader(texts=FreeTexts(Table(3), Table(2), TextOrder(10, 3, 5)), num_steps=2, start=Position(*batches[3].position))
    assert [batch.texts.samples for batch in rest] == [batch.texts.samples for batch in batches[4:]]
    halves = [list(loader(texts=FreeTexts(Table(3), Table(2), TextOrder(10, 4, 5)), world=2, rank=rank, num_steps=2)) for rank in range(2)]
    assert all(len({*a.texts.samples, *b.texts.samples}) == 4 for a, b in zip(*halves, strict=True))


def test_reading_stops_where_the_user_stops():
    class Counting(Table):
        read = 0

        def rows(self, indices: np.ndarray) -> Tensor:
            self.read += 1
            return super().rows(indices)

    images = Counting(4)
    list(islice(PairLoader(images, Table(3), order(), num_steps=100), 3))
    assert images.read <= 5


def test_an_error_of_the_source_arrives_as_it_was_raised():
    class Broken:
        def rows(self, indices: np.ndarray) -> Tensor:
            raise DataFormatError("shard 3 is damaged")

    with pytest.raises(DataFormatError, match="shard 3 is damaged"):
        list(loader(teacher=Broken()))


def test_steps_of_epochs():
    assert [count_batches(order(), epochs) for epochs in (0.1, 1.0, 1.5, 2.0, 0.3)] == [1, 2, 3, 4, 1]


def test_the_digest_knows_pairs_batch_and_seed():
    assert order().digest() == order().digest()
    swapped = PairOrder(Captions.of(OWNERS, CAPTIONS[::-1].copy()), 4, 3)
    assert len({order().digest(), order(batch=3).digest(), order(seed=4).digest(), swapped.digest()}) == 4
    assert len({TextOrder(*values).digest() for values in ((9, 3, 1), (9, 2, 1), (9, 3, 2), (8, 3, 1))}) == 4


def test_impossible_arithmetic_is_refused():
    with pytest.raises(ConfigError, match=r"--stage.global-batch-size is 12, and the data has 11 images\. .* Lower it to 11 or less"):
        order(batch=12)
    with pytest.raises(ConfigError, match="a contrastive loss compares at least 2 pairs"):
        order(batch=1)
    with pytest.raises(ConfigError, match=r"to hold 11 texts without images, and there are 10\."):
        TextOrder(10, 11, 0)
    with pytest.raises(ConfigError, match=r"batch of 4 cannot be cut evenly for 3 devices. Take 3 or 6\."):
        loader(world=3)
    with pytest.raises(DataFormatError, match="got 2 images and 1 captions"):
        Captions.of(np.arange(2), np.arange(1))


def test_accumulation_is_refused_with_the_reason_and_a_remedy():
    refuse_accumulation(32, 16, 2)
    with pytest.raises(
        ConfigError, match=r"size 16 on 2 device\(s\) would cut .*128 into micro-batches, .* part of the contrastive loss.* rather than accumulate"
    ):
        refuse_accumulation(128, 16, 2)
    with pytest.raises(ConfigError, match=r"is 32 pairs, more than --stage.global-batch-size 8\. Leave it out, or raise that to 32\."):
        refuse_accumulation(8, 16, 2)
