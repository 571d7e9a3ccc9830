"""Pairs to rows of scores: each distinct picture and text is encoded once, pictures are decoded ahead in threads, and only pairs are multiplied.

Memory is bounded: a window of rows, a few batches of tiles, and the remembered vectors (`Remembered`), however long the table is.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.data.remote import is_url
from vlm.score.encoding import PairEncoder
from vlm.score.metrics import clipscore, refclipscore
from vlm.score.pairs import Pair
from vlm.score.pictures import Fault, PictureReader, Tile
from vlm.score.schema import OK, record_batch
from vlm.score.vectors import Remembered

WINDOW = 1024  # rows whose texts are sorted by length together
HELD_BYTES = 64 * 2**20  # of the cells of a window's rows
MOST_REFERENCES = 1000  # of a row; far more than any dataset has
BATCHES_AHEAD = 2  # that are being decoded while one is encoded


@dataclass(frozen=True)
class Logits:
    """What turns a model's cosines into logits, and whether its loss was of sigmoids."""

    scale: float
    bias: float
    sigmoid: bool

    @classmethod
    def of(cls, model: Any) -> "Logits":
        """Those of a dual encoder."""
        scale, bias = model.logit_scale()
        return cls(scale, bias, bias != 0 if model.heads is None else model.heads.scale.bias is not None)


@dataclass
class Done:
    """What a scorer has done so far."""

    rows: int = 0
    images: int = 0
    texts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)


@dataclass
class _Window:
    """Some rows, and where the vectors of their pictures are or will be."""

    pairs: list[Pair]
    faults: list[Fault | None]
    image_rows: list[int]  # -1 where there is a fault


@dataclass
class _Batch:
    """Pictures that are being decoded, and where their vectors go."""

    rows: list[int]
    tiles: list[Future[Tile | Fault]]


class Scorer:
    """A model that scores pairs; remembers vectors from one call to the next. A context: its threads end with it."""

    def __init__(
        self,
        encoder: PairEncoder,
        reader: PictureReader,
        logits: Logits,
        *,
        workers: int = 4,
        connections: int = 0,
        remember: int = 65_536,
        prefix: str = "",
        carry: Sequence[str] = (),
        full_paths: bool = False,
    ):
        """Join the pieces.

        Args:
            encoder: The model.
            reader: How pictures are read.
            logits: What logits are made with.
            workers: Threads that decode.
            connections: Threads more, that wait for servers.
            remember: Distinct pictures, and texts, whose vectors are remembered.
            prefix: Written before every text.
            carry: Names of the columns that are copied.
            full_paths: Write relative paths of pictures with the folder of their row.
        """
        self.encoder, self.reader, self.logits, self.prefix = encoder, reader, logits, prefix
        self.carry, self.full_paths = tuple(carry), full_paths
        self.window = max(WINDOW, 4 * encoder.batch_size)
        self.capacity = max(remember, self.window, 1 + MOST_REFERENCES)
        self.sizes = torch.zeros(self.capacity, 2, dtype=torch.int32)  # width and height of remembered pictures
        self.tokens = torch.zeros(self.capacity, 2, dtype=torch.int32)  # tokens of remembered texts, and whether they were cut
        self.threads = ThreadPoolExecutor(workers + connections, thread_name_prefix="pictures")
        self.ahead = max(BATCHES_AHEAD, -(-2 * connections // encoder.batch_size))
        self.forget()

    def forget(self) -> None:
        """Remember no vector any more, and count anew what is done."""
        self.image_store, self.text_store = (Remembered(self.capacity, self.encoder.width) for _ in range(2))
        self.image_faults: dict[int, Fault] = {}
        self.done = Done()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)

    def tables(self, pairs: Iterable[Pair]) -> Iterator[Any]:
        """Record batches of scores (`vlm.score.schema`), one row for each pair, in their order."""
        for step in _ahead(self._steps(pairs), self.ahead):
            if isinstance(step, _Batch):
                self._encode_images(step)
            else:
                yield self._scored(step)

    def _steps(self, pairs: Iterable[Pair]) -> Iterator[_Batch | _Window]:
        """The batches of new pictures of each window, then the window; a batch is being decoded from here on."""
        for rows in self._windows(pairs):
            faults = [_fault_of(pair) for pair in rows]
            keys = {_image_key(pair): pair for pair, fault in zip(rows, faults, strict=True) if fault is None}
            places, new = self.image_store.assign(keys)
            wanted = iter(new.items())
            while chunk := list(islice(wanted, self.encoder.batch_size)):
                yield _Batch([row for _, row in chunk], [self._submit(keys[key]) for key, _ in chunk])
            yield _Window(rows, faults, [-1 if fault else places[_image_key(pair)] for pair, fault in zip(rows, faults, strict=True)])

    def _submit(self, pair: Pair) -> "Future[Tile | Fault]":
        return self.threads.submit(self.reader.read, pair.image, pair.folder, pair.content)

    def _windows(self, pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
        """Rows in groups whose texts can all be remembered at once, and whose own pictures and texts take little memory."""
        rows: list[Pair] = []
        texts = held = 0
        for pair in pairs:
            more = 1 + min(len(pair.references), MOST_REFERENCES)
            if rows and (len(rows) == self.window or texts + more > self.capacity or held > HELD_BYTES):
                yield rows
                rows, texts, held = [], 0, 0
            rows.append(pair)
            texts, held = texts + more, held + _length(pair)
        if rows:
            yield rows

    def _encode_images(self, batch: _Batch) -> None:
        read = [future.result() for future in batch.tiles]
        tiles: list[Tile] = []
        rows: list[int] = []
        for row, found in zip(batch.rows, read, strict=True):
            if isinstance(found, Fault):
                self.image_faults[row] = found
                continue
            self.image_faults.pop(row, None)  # of a picture that had this row before
            tiles.append(found)
            rows.append(row)
        if not tiles:
            return
        places = torch.tensor(rows)
        self.image_store.write(places, self.encoder.images([tile.pixels for tile in tiles]))
        self.sizes[places] = torch.tensor([(tile.width, tile.height) for tile in tiles], dtype=torch.int32)
        self.done.images += len(tiles)

    def _scored(self, window: _Window) -> Any:
        faults = [fault or self.image_faults.get(row) for fault, row in zip(window.faults, window.image_rows, strict=True)]
        usable = [i for i, fault in enumerate(faults) if fault is None]
        pairs = [window.pairs[i] for i in usable]
        places = self._text_rows([text for pair in pairs for text in (pair.caption, *pair.references)])
        images = torch.tensor([window.image_rows[i] for i in usable], dtype=torch.long)
        texts = torch.tensor([places[pair.caption] for pair in pairs], dtype=torch.long)
        captions = self.text_store.read(texts)
        cos = (self.image_store.read(images) * captions).sum(1)
        columns = self._numbers(cos, self._reference_cosines(pairs, captions, places))
        columns |= {"tokens": self.tokens[texts, 0].tolist(), "truncated": self.tokens[texts, 1].bool().tolist()}
        columns |= {"width": self.sizes[images, 0].tolist(), "height": self.sizes[images, 1].tolist()}
        for place, finite in zip(usable, cos.isfinite().tolist(), strict=True):
            if not finite:
                faults[place] = Fault("model_error", "The cosine is not finite. Half precision may have overflowed; try --precision fp32.")
        return self._batch(window.pairs, faults, usable, columns)

    def _text_rows(self, texts: Iterable[str]) -> dict[str, int]:
        """Where the vectors of texts are, after those of new ones were computed."""
        places, new = self.text_store.assign(texts)
        if new:
            encoded = self.encoder.texts([self.prefix + text for text in new])
            rows = torch.tensor(list(new.values()))
            self.text_store.write(rows, encoded.vectors)
            self.tokens[rows] = torch.tensor([encoded.tokens, encoded.truncated], dtype=torch.int32).T
            self.done.texts += len(new)
        return places

    def _reference_cosines(self, pairs: Sequence[Pair], captions: Float[Tensor, "B J"], places: dict[str, int]) -> Float[Tensor, " B"]:
        """The highest cosine of each caption with one of its references; NaN where there is none."""
        counts = torch.tensor([len(pair.references) for pair in pairs], dtype=torch.long)
        highest = torch.full((len(pairs),), -torch.inf)
        owners = torch.repeat_interleave(torch.arange(len(pairs)), counts)
        rows: Int[Tensor, " R"] = torch.tensor([places[text] for pair in pairs for text in pair.references], dtype=torch.long)
        highest.scatter_reduce_(0, owners, (captions[owners] * self.text_store.read(rows)).sum(1), "amax")
        return torch.where(counts > 0, highest, torch.nan)

    def _numbers(self, cos: Float[Tensor, " B"], reference: Float[Tensor, " B"]) -> dict[str, list[float | None]]:
        """The columns that follow from cosines; NaN becomes null."""
        logit = self.logits.scale * cos + self.logits.bias
        none = torch.full_like(cos, torch.nan)
        found = {
            "cos": cos,
            "logit": logit,
            "siglip_probability": logit.sigmoid() if self.logits.sigmoid else none,
            "clipscore": clipscore(cos),
            "refclipscore": torch.where(reference.isnan(), none, refclipscore(cos, reference)),
        }
        return {name: [value if value == value else None for value in values.tolist()] for name, values in found.items()}

    def _batch(self, pairs: Sequence[Pair], faults: Sequence[Fault | None], usable: Sequence[int], columns: dict[str, list[Any]]) -> Any:
        """The record batch of a window; `columns` has a value for each usable row."""
        statuses = [OK if fault is None else fault.status for fault in faults]
        self.done.rows += len(pairs)
        self.done.statuses.update(statuses)
        values: dict[str, list[Any]] = {
            "row": [pair.row for pair in pairs],
            "image": [self._written(pair) for pair in pairs],
            "caption": [pair.caption for pair in pairs],
            "status": statuses,
            "error": ["" if fault is None else " ".join(fault.error.split()) for fault in faults],  # names of pictures may hold line breaks
        }
        for name, known in columns.items():
            spread: list[Any] = [None] * len(pairs)
            for place, value in zip(usable, known, strict=True):
                spread[place] = value
            values[name] = spread
        for place, fault in enumerate(faults):
            if fault is not None:
                values["width"][place], values["height"][place] = fault.width, fault.height
        for number, name in enumerate(self.carry):
            values[name] = [pair.carried[number] for pair in pairs]
        return record_batch(values, self.carry)

    def _written(self, pair: Pair) -> str:
        """What the column `image` says."""
        local = self.full_paths and pair.content is None and pair.image and not is_url(pair.image)
        return str(pair.folder / pair.image) if local else pair.image


def _fault_of(pair: Pair) -> Fault | None:
    """What is wrong with a row before its picture is opened."""
    if pair.fault:
        return Fault("row_error", pair.fault)
    if not pair.caption.strip():
        return Fault("empty_text", "The caption is empty.")
    if len(pair.references) > MOST_REFERENCES:
        return Fault("row_error", f"The row has {len(pair.references):,} references; at most {MOST_REFERENCES:,} are read.")
    return None


def _length(pair: Pair) -> int:
    """Bytes and characters of what a row holds."""
    return sum(len(part or "") for part in (pair.content, pair.image, pair.caption, *pair.references, *pair.carried))


def _image_key(pair: Pair) -> str:
    return pair.image if pair.content is not None else f"{pair.folder}\n{pair.image}"


def _ahead(steps: Iterator[_Batch | _Window], depth: int) -> Iterator[_Batch | _Window]:
    """The steps in their order, the next `depth` of them being begun."""
    waiting: deque[_Batch | _Window] = deque()
    for step in steps:
        waiting.append(step)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
