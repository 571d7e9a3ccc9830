from dataclasses import replace

import pytest
import torch

from vlm.data.stream.collate import collate, collate_singly
from vlm.data.stream.examples import Example, ExampleTree
from vlm.errors import ConfigError
from vlm.types import IGNORE_INDEX

NONE = IGNORE_INDEX


def example(length: int, tiles: int, *, source: int = 0) -> Example:
    ids = torch.arange(1, length + 1)
    return Example(f"{length}", ids, ids.clone(), torch.full((tiles, 3, 4, 4), length, dtype=torch.uint8), source)


def alone(length: int, tiles: int = 0, *, source: int = 0) -> ExampleTree:
    return ExampleTree((example(length, tiles, source=source),))


def branching() -> ExampleTree:
    """Two conversations about one picture (tokens 90, 91), of two and three tokens of their own."""
    pixels = torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)
    texts = ([11, 12], [21, 22, 23])
    return ExampleTree(
        tuple(Example("x", torch.tensor([90, 91, *text]), torch.tensor([NONE, NONE, *text]), pixels) for text in texts),
        shared=2,
    )


def test_rows_are_padded_on_the_right_and_nothing_predicts_the_first_token():
    batch = collate_singly([example(4, 1), example(2, 2)], pad_id=9)
    assert batch.ids.tolist() == [[1, 2, 3, 4], [1, 2, 9, 9]]
    assert batch.labels.tolist() == [[NONE, 2, 3, 4], [NONE, 2, NONE, NONE]]
    assert (batch.num_samples, batch.num_labels, batch.num_padding) == (2, 4, 2)


def test_each_row_is_one_document_whose_positions_keep_counting():
    documents = collate_singly([example(4, 1), example(2, 0)], pad_id=9).documents
    assert documents.starts.tolist() == [0, 4, 8]
    assert documents.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert documents.is_one_per_row


def test_packed_rows_state_their_documents_and_padding_is_one_of_its_own():
    batch = collate([[alone(2), alone(3)], [alone(4)]], pad_id=9)
    assert batch.ids.tolist() == [[1, 2, 1, 2, 3], [1, 2, 3, 4, 9]]
    assert batch.labels.tolist() == [[NONE, 2, NONE, 2, 3], [NONE, 2, 3, 4, NONE]]
    assert batch.documents.starts.tolist() == [0, 2, 5, 9, 10]
    assert batch.documents.positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    assert batch.documents.prefix is None
    assert (batch.num_samples, batch.num_labels, batch.num_padding) == (3, 6, 1)


def test_padding_has_no_position_beyond_the_longest_conversation():
    batch = collate([[alone(3)] * 9, [alone(2), alone(1)]], pad_id=9)
    assert int(batch.documents.positions.max()) == 2


def test_a_tree_is_its_pictures_and_a_branch_for_each_conversation():
    batch = collate([[alone(3), branching()]], pad_id=9)
    assert batch.ids.tolist() == [[1, 2, 3, 90, 91, 11, 12, 21, 22, 23]]
    assert batch.labels.tolist() == [[NONE, 2, 3, NONE, NONE, 11, 12, 21, 22, 23]]
    assert batch.documents.starts.tolist() == [0, 3, 5, 7, 10]
    assert batch.documents.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 2, 3, 4]]
    assert batch.documents.prefix is not None
    assert batch.documents.prefix.tolist() == [-1, -1, 1, 1]
    assert (batch.num_samples, batch.num_labels) == (3, 7)
    assert batch.pixels[:, 0, 0, 0].tolist() == [7]


def test_prefixes_count_the_documents_of_earlier_rows_and_their_padding():
    batch = collate([[alone(3)], [branching()]], pad_id=9)
    assert batch.documents.starts.tolist() == [0, 3, 7, 9, 11, 14]
    assert batch.documents.prefix is not None
    assert batch.documents.prefix.tolist() == [-1, -1, -1, 2, 2]


def test_sources_are_those_of_the_documents():
    batch = collate([[alone(2, source=1), alone(3)], [alone(4, source=1)]], pad_id=9, num_sources=3)
    assert batch.sources is not None
    assert batch.sources.tolist() == [1, 0, 1, 1]
    assert batch.samples_by_source == (1, 2, 0)
    assert collate([[alone(2)]], pad_id=9).sources is None


def test_tiles_follow_the_order_of_rows():
    assert collate_singly([example(4, 1), example(2, 2)], pad_id=9).pixels[:, 0, 0, 0].tolist() == [4, 2, 2]


def test_batch_without_pictures_keeps_the_size_of_a_tile():
    assert collate_singly([example(2, 0), example(3, 0)], pad_id=0).pixels.shape == (0, 3, 4, 4)


def test_examples_are_not_changed():
    one = example(3, 0)
    collate_singly([one], pad_id=0)
    assert one.labels.tolist() == [1, 2, 3]


def test_hidden_tokens_keep_their_places_in_padded_rows_and_are_refused_in_packed_ones():
    long, short = replace(example(4, 0), hidden=(1, 3)), replace(example(2, 0), hidden=(1,))
    documents = collate_singly([long, short, example(3, 0)], pad_id=9).documents
    assert documents.hidden is not None
    assert documents.hidden.tolist() == [[False, True, False, True], [False, True, False, False], [False] * 4]
    assert collate_singly([example(3, 0)], pad_id=9).documents.hidden is None
    with pytest.raises(ConfigError, match="only possible with one conversation a row"):
        collate([[ExampleTree((long,)), ExampleTree((short,))]], pad_id=9)
