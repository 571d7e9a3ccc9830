import torch

from vlm.data.collate import Example, collate
from vlm.types import IGNORE_INDEX


def example(length: int, tiles: int) -> Example:
    ids = torch.arange(1, length + 1)
    return Example(f"{length}", ids, ids.clone(), torch.full((tiles, 3, 4, 4), length, dtype=torch.uint8))


def test_rows_are_padded_on_the_right_and_nothing_predicts_the_first_token():
    batch = collate([example(4, 1), example(2, 2)], pad_id=9)
    assert batch.ids.tolist() == [[1, 2, 3, 4], [1, 2, 9, 9]]
    assert batch.labels.tolist() == [[IGNORE_INDEX, 2, 3, 4], [IGNORE_INDEX, 2, IGNORE_INDEX, IGNORE_INDEX]]
    assert (batch.num_samples, batch.num_labels) == (2, 4)


def test_each_row_is_one_document_whose_positions_keep_counting():
    documents = collate([example(4, 1), example(2, 0)], pad_id=9).documents
    assert documents.starts.tolist() == [0, 4, 8]
    assert documents.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert documents.is_one_per_row


def test_tiles_follow_the_order_of_rows():
    assert collate([example(4, 1), example(2, 2)], pad_id=9).pixels[:, 0, 0, 0].tolist() == [4, 2, 2]


def test_batch_without_pictures_keeps_the_size_of_a_tile():
    assert collate([example(2, 0), example(3, 0)], pad_id=0).pixels.shape == (0, 3, 4, 4)


def test_examples_are_not_changed():
    one = example(3, 0)
    collate([one], pad_id=0)
    assert one.labels.tolist() == [1, 2, 3]
