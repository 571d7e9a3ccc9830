"""Examples to batches: one conversation a row, or several packed into one, padded on the right. Knows nothing of where examples come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.data.stream.examples import Example, ExampleTree
from vlm.errors import ConfigError
from vlm.types import IGNORE_INDEX, ChatBatch, Documents


@dataclass(frozen=True)
class Document:
    """A stretch of a row whose tokens see each other.

    Attributes:
        ids: Token ids.
        labels: Labels.
        first_position: Position number of its first token: of a branch, the number of tokens before it in its conversation.
        source: Number of its source.
        prefix: The document before it in the row, by how many, whose tokens it sees as well; 0 for none.
    """

    ids: Int[Tensor, " T"]
    labels: Int[Tensor, " T"]
    first_position: int = 0
    source: int = 0
    prefix: int = 0


def collate(rows: Sequence[Sequence[ExampleTree]], *, pad_id: int, num_sources: int = 1) -> ChatBatch:
    """A batch.

    Args:
        rows: For each row its trees, at least one; all tiles are of one size.
        pad_id: Id of the padding; what it is does not matter, because nothing attends to it.
        num_sources: Sources of the mixture.

    Raises:
        ConfigError: If tokens are to be hidden, and a row has several conversations.
    """
    documents = [[document for tree in row for document in _documents(tree)] for row in rows]
    ids = pad_sequence([_join([d.ids for d in row]) for row in documents], batch_first=True, padding_value=pad_id)
    labels = pad_sequence([_join([d.labels for d in row]) for row in documents], batch_first=True, padding_value=IGNORE_INDEX)
    examples = [example for row in rows for tree in row for example in tree.examples]
    counts = [0] * num_sources
    for example in examples:
        counts[example.source] += 1
    simple = all(len(row) == 1 for row in documents)
    placed, sources = (_one_a_row if simple else _several_a_row)(documents, ids.shape[1])
    if any(example.hidden for example in examples):
        placed = _hide(placed, examples)
    return ChatBatch(
        ids=ids,
        labels=labels,
        documents=placed,
        pixels=_join([tree.pixels for row in rows for tree in row]),
        num_samples=len(examples),
        num_padding=ids.numel() - sum(len(d.ids) for row in documents for d in row),
        num_truncated=sum(example.truncated for example in examples),
        sources=torch.tensor(sources) if num_sources > 1 else None,
        samples_by_source=tuple(counts) if num_sources > 1 else (),
    )


def _hide(placed: Documents, examples: Sequence[Example]) -> Documents:
    if not placed.is_one_per_row:
        raise ConfigError(
            "This chat template hides end tokens from later ones, which is only possible with one conversation a row. "
            "Leave out --stage.pack-length and --stage.share-images, or name another --stage.template."
        )
    hidden = torch.zeros_like(placed.positions, dtype=torch.bool)
    for row, example in enumerate(examples):
        hidden[row, list(example.hidden)] = True
    return replace(placed, hidden=hidden)


def collate_singly(examples: Sequence[Example], *, pad_id: int) -> ChatBatch:
    """A batch of one conversation a row."""
    return collate([[ExampleTree((example,))] for example in examples], pad_id=pad_id)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _documents(tree: ExampleTree) -> Iterator[Document]:
    """A conversation as one document; several about the same pictures as the pictures and a branch for each."""
    first, shared = tree.examples[0], tree.shared
    if len(tree.examples) == 1:
        yield _conversation(first)
        return
    yield Document(first.ids[:shared], torch.full_like(first.labels[:shared], IGNORE_INDEX), source=first.source)
    for i, example in enumerate(tree.examples, start=1):
        yield Document(example.ids[shared:], example.labels[shared:], first_position=shared, source=example.source, prefix=i)


def _conversation(example: Example) -> Document:
    labels = example.labels
    if labels[0] != IGNORE_INDEX:  # nothing predicts the first token
        labels = labels.clone()
        labels[0] = IGNORE_INDEX
    return Document(example.ids, labels, source=example.source)


def _one_a_row(rows: Sequence[Sequence[Document]], length: int) -> tuple[Documents, list[int]]:
    return Documents.one_per_row(len(rows), length), [row[0].source for row in rows]


def _several_a_row(rows: Sequence[Sequence[Document]], length: int) -> tuple[Documents, list[int]]:
    """Padding is a document of its own at position 0: long-context rotary scaling looks at the largest position of the batch."""
    lengths: list[int] = []
    positions: list[Tensor] = []
    prefix: list[int] = []
    sources: list[int] = []
    for row in rows:
        for document in row:
            prefix.append(len(prefix) - document.prefix if document.prefix else -1)
            lengths.append(len(document.ids))
            positions.append(torch.arange(document.first_position, document.first_position + len(document.ids)))
            sources.append(document.source)
        if padding := length - sum(len(document.ids) for document in row):
            prefix.append(-1)
            lengths.append(padding)
            positions.append(torch.zeros(padding, dtype=torch.int64))
            sources.append(row[-1].source)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    tree = torch.tensor(prefix) if any(document >= 0 for document in prefix) else None
    return Documents(starts=starts, positions=torch.cat(positions).view(len(rows), length), prefix=tree), sources
