"""Examples to batches: one conversation a row, padded on the right. Knows nothing of where examples come from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.types import IGNORE_INDEX, ChatBatch, Documents


@dataclass(frozen=True)
class Example:
    """One conversation, tokenized, with its pictures as tiles.

    Attributes:
        id: Name of the sample, for messages.
        ids: Token ids, images expanded.
        labels: `ids` where the loss looks, IGNORE_INDEX elsewhere.
        pixels: Tiles in the order of their placeholders; N is 0 without pictures.
    """

    id: str
    ids: Int[Tensor, " T"]
    labels: Int[Tensor, " T"]
    pixels: UInt8[Tensor, "N 3 H W"]


def collate(examples: Sequence[Example], *, pad_id: int) -> ChatBatch:
    """A batch of one document a row.

    Args:
        examples: At least one; their tiles are of one size.
        pad_id: Id of the padding; what it is does not matter, because nothing attends to it.
    """
    ids = pad_sequence([example.ids for example in examples], batch_first=True, padding_value=pad_id)
    labels = pad_sequence([example.labels for example in examples], batch_first=True, padding_value=IGNORE_INDEX)
    labels[:, 0] = IGNORE_INDEX  # nothing predicts the first token
    return ChatBatch(
        ids=ids,
        labels=labels,
        documents=Documents.one_per_row(*ids.shape),
        pixels=torch.cat([example.pixels for example in examples]),
        num_samples=len(examples),
    )
