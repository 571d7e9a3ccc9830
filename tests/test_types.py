"""Which hidden state predicts which token, by hand."""

from dataclasses import replace

import torch

from vlm.types import IGNORE_INDEX, ChatBatch, Documents

NONE = IGNORE_INDEX


def batch(labels: list[list[int]], documents: Documents) -> ChatBatch:
    ids = torch.zeros(len(labels), len(labels[0]), dtype=torch.long)
    return ChatBatch(ids=ids, labels=torch.tensor(labels), documents=documents, pixels=torch.zeros(0, 3, 2, 2, dtype=torch.uint8), num_samples=1)


def test_a_token_is_predicted_by_the_one_before_it_and_the_first_of_a_row_by_none():
    made = batch([[NONE, NONE, 5, 6], [4, 7, NONE, 8]], Documents.one_per_row(2, 4))
    places, before = made.targets
    assert places.tolist() == [2, 3, 5, 7]
    assert before.tolist() == [1, 2, 4, 6]
    assert made.num_labels == 4


def test_the_first_token_of_a_packed_document_is_predicted_by_none():
    documents = Documents(starts=torch.tensor([0, 2, 4]), positions=torch.tensor([[0, 1, 0, 1]]))
    assert batch([[NONE, 5, 6, 7]], documents).targets[0].tolist() == [1, 3]


def test_the_first_token_of_a_branch_is_predicted_by_the_last_of_its_prefix():
    # trunk of two tokens, branches of two and three on it, a document of its own
    documents = Documents(
        starts=torch.tensor([0, 2, 4, 7, 9]), positions=torch.tensor([[0, 1, 2, 3, 2, 3, 4, 0, 1]]), prefix=torch.tensor([-1, 0, 0, -1])
    )
    made = batch([[NONE, NONE, 11, 12, 21, NONE, 23, 31, 32]], documents)
    places, before = made.targets
    assert dict(zip(places.tolist(), before.tolist(), strict=True)) == {2: 1, 3: 2, 4: 1, 6: 5, 8: 7}
    assert made.num_labels == 5


def test_moving_a_batch_keeps_what_is_no_tensor():
    made = replace(batch([[NONE, 1]], Documents.one_per_row(1, 2)), position=(1, 2, 3), samples_by_source=(1, 0), sources=torch.tensor([0]))
    moved = made.to("cpu")
    assert moved.position == (1, 2, 3) and moved.samples_by_source == (1, 0) and moved.sources is not None
