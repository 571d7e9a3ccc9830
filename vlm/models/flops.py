"""FLOPs of a training step, by part and kind, for any batch: arithmetic over what one trace of the model saw (`vlm.models.trace`).

Two for a multiplication and an addition; matrix products, convolutions and attention only, as `torch.utils.flop_counter` counts and as MFU is defined
(PaLM, arXiv:2204.02311, appendix B): the rest of a step is memory traffic.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

from vlm.models.trace import Call, Shape, Trace, trace
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import ChatBatch

PARTS = ("vision", "connector", "language", "head")
KINDS = ("forward", "input_gradient", "weight_gradient", "attention", "recompute")
PROBE = Shape(rows=1, tiles=1, text=1, labels=1)


@dataclass(frozen=True)
class Work:
    """What the batches of a step hold, as far as it costs anything.

    Attributes:
        tiles: Tiles.
        slots: Places in the rows, padding included.
        padding: Places that hold no token.
        labels: Labelled tokens.
        documents: For each document its tokens, and the tokens before it that it sees as well, as pairs; padding at the end of a row of one document
            belongs to it.
        samples: Conversations.
    """

    tiles: int
    slots: int
    padding: int
    labels: int
    documents: tuple[tuple[int, int], ...]
    samples: int = 0

    @classmethod
    def of(cls, batch: ChatBatch) -> "Work":
        """What a batch holds; reads its tensors, so give it one that is on CPU."""
        starts = batch.documents.starts.tolist()
        lengths = [end - start for start, end in pairwise(starts)]
        before = [0] * len(lengths)
        if batch.documents.prefix is not None:
            for i, parent in enumerate(batch.documents.prefix.tolist()):
                before[i] = before[parent] + lengths[parent] if parent >= 0 else 0
        documents = tuple(zip(lengths, before, strict=True))
        return cls(len(batch.pixels), batch.ids.numel(), batch.num_padding, batch.num_labels, documents, batch.num_samples)

    def __add__(self, other: "Work") -> "Work":
        """Two batches of a step."""
        return Work(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    @classmethod
    def total(cls, works: Sequence["Work"]) -> "Work":
        """All batches of a step."""
        return reduce(Work.__add__, works, cls(0, 0, 0, 0, ()))

    def pairs(self, window: int | None, *, causal: bool) -> int:
        """Queries times the keys that they see.

        Args:
            window: Keys that a query sees at most, itself included; None for all earlier ones.
            causal: False to count every key of a document and its prefix for every query, as a counter of shapes does.
        """
        if not causal:
            return sum(length * (before + length) for length, before in self.documents)
        return sum(_visible(length, before, window) for length, before in self.documents)


def _visible(length: int, before: int, window: int | None) -> int:
    """Keys that `length` queries see, the first of them behind `before` keys: all earlier ones and itself, at most `window`."""
    if window is None or window >= before + length:
        return length * before + length * (length + 1) // 2
    growing = max(0, window - before)  # queries that see less than a whole window
    return growing * before + growing * (growing + 1) // 2 + (length - growing) * window


@dataclass(frozen=True)
class Spent:
    """FLOPs of a step.

    Attributes:
        useful: What tokens, tiles or pairs need: without padding, and without what is computed twice.
        recomputed: What is computed a second time, to keep less memory.
        total: What is computed.
    """

    useful: float
    recomputed: float
    total: float


@dataclass(frozen=True)
class FlopModel:
    """FLOPs of one tile, token, label and pair of tokens, by part and kind.

    Attributes:
        per_tile: Vision backbone and connector.
        per_token: Language model without attention and what is computed at labels alone.
        per_label: Head, and the feed-forward part of the last layer.
        per_pair: Attention of the language model, for each window: None for whole documents.
    """

    per_tile: Mapping[tuple[str, str], float]
    per_token: Mapping[tuple[str, str], float]
    per_label: Mapping[tuple[str, str], float]
    per_pair: Mapping[int | None, Mapping[tuple[str, str], float]]

    @classmethod
    def of(cls, model: VisionLanguageModel, *, recomputed: Sequence[str] = ()) -> "FlopModel":
        """Trace a model on the meta device.

        Args:
            model: From `vlm.models.build.skeleton`, its frozen parts frozen.
            recomputed: Parts with gradient checkpointing.
        """
        tokens = PROBE.tiles * model.tokens_per_tile + PROBE.text
        return cls.from_trace(trace(model, PROBE), recomputed=recomputed, tokens=tokens)

    @classmethod
    def from_trace(cls, traced: Trace, *, tokens: int, recomputed: Sequence[str] = (), tiles: int = 1, labels: int = 1) -> "FlopModel":
        """Divide what a trace of one row saw by what the row held.

        Args:
            traced: The trace.
            tokens: Tokens of the row.
            recomputed: Parts with gradient checkpointing.
            tiles: Tiles.
            labels: Labelled tokens.
        """
        calls, again = traced.calls, frozenset(recomputed)
        windows = {call.window for call in calls if _is_causal(call)}
        return cls(
            per_tile=_table([call for call in calls if call.part in ("vision", "connector")], again, units=tiles),
            per_token=_table([call for call in calls if call.part == "language" and not (call.is_attention or call.at_labels)], again, units=tokens),
            per_label=_table([call for call in calls if call.at_labels], again, units=labels),
            per_pair={w: _table([call for call in calls if _is_causal(call) and call.window == w], again, units=tokens**2) for w in windows},
        )

    def count(self, work: Work, *, causal: bool = True) -> dict[tuple[str, str], float]:
        """FLOPs of a step by part and kind (KINDS), padding included.

        Args:
            work: What the step's batches hold.
            causal: True for the pairs that attention needs; False for all of each document, as `torch.utils.flop_counter` counts.
        """
        total: dict[tuple[str, str], float] = defaultdict(float)
        tables = [(self.per_tile, work.tiles), (self.per_token, work.slots), (self.per_label, work.labels)]
        tables += [(table, work.pairs(window, causal=causal)) for window, table in self.per_pair.items()]
        for table, units in tables:
            for key, flops in table.items():
                total[key] += flops * units
        return dict(total)

    @staticmethod
    def work_of(batch: ChatBatch) -> Work:
        """What a batch holds."""
        return Work.of(batch)

    def spent(self, works: Sequence[Work]) -> Spent:
        """FLOPs of a step of these batches."""
        work = Work.total(works)
        computed = self.count(work)
        recomputed = sum((value for (_, kind), value in computed.items() if kind == "recompute"), 0.0)
        return Spent(self.useful(work), recomputed, float(sum(computed.values())))

    def useful(self, work: Work) -> float:
        """FLOPs that the tokens and tiles of a step need: without padding and without what is computed twice.

        Of attention, the share of padding is taken to be the same in all rows, which counts a little too little where it is not.
        """
        filled = 1 - work.padding / work.slots if work.slots else 0.0
        pairs = {window: work.pairs(window, causal=True) * filled**2 for window in self.per_pair}
        linear = _once(self.per_tile) * work.tiles + _once(self.per_token) * (work.slots - work.padding) + _once(self.per_label) * work.labels
        return linear + sum(_once(table) * pairs[window] for window, table in self.per_pair.items())


def _is_causal(call: Call) -> bool:
    return call.part == "language" and call.is_attention


def _table(calls: Sequence[Call], recomputed: frozenset[str], *, units: int) -> dict[tuple[str, str], float]:
    table: dict[tuple[str, str], float] = defaultdict(float)
    for call in calls:
        table[call.part, "attention" if call.is_attention else "forward"] += call.forward / units
        table[call.part, "attention" if call.is_attention else "input_gradient"] += call.input_gradient / units
        table[call.part, "weight_gradient"] += call.weight_gradient / units
        if call.is_recomputed and call.part in recomputed:
            table[call.part, "recompute"] += call.forward / units
    return dict(table)


def _once(table: Mapping[tuple[str, str], float]) -> float:
    return sum(flops for (_, kind), flops in table.items() if kind != "recompute")
