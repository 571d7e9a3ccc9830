"""Which scored pairs are kept: rules in one stated order, over any number of rows. Knows neither pictures nor how the kept pairs are written.

Everything is passes over columns: a row takes one byte of memory, its fate, whatever the rules; see `ranking` and `duplicates` for what a rule takes besides.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32

from vlm.data.manifest import file_sha256
from vlm.errors import ConfigError, DataFormatError
from vlm.score.duplicates import Hashed, digests, worse_of_equals
from vlm.score.located import Pictures
from vlm.score.ranking import Edge, edge_of, keys_of
from vlm.score.schema import OK
from vlm.score.scores import Scores

Same = Literal["pair", "image", "caption", "bytes"]
SAME: dict[Same, str] = {
    "pair": "picture's name and caption",
    "image": "picture's name",
    "caption": "caption",
    "bytes": "picture's bytes",
}
MOST_VALUES = 100_000  # of --balance: 205 MB of counts
NO_SCORE = "ok, but without a number"


class Fate(IntEnum):
    """What becomes of a row; the rules are applied in this order, each to what the ones before have left."""

    KEPT = 0
    NOT_SCORED = 1
    BELOW_MIN = 2
    DUPLICATE = 3
    BELOW_TOP = 4
    OVER_SHARE = 5


@dataclass(frozen=True)
class Rules:
    """What is kept.

    Attributes:
        min_cos: Least cosine; None for any.
        drop_duplicates: Keep the best of equal rows alone.
        same: What makes rows equal.
        keep_top: Share of the rows that the rules before have left, the best ones, above 0 to 1; None for all.
        balance: Column of whose values each gets the same number of rows; empty for none.
        per_value: Most rows of a value; None: as many as the rarest value has.
        by: Column of the numbers by which a row is better than another.
    """

    min_cos: float | None = None
    drop_duplicates: bool = False
    same: Same = "pair"
    keep_top: float | None = None
    balance: str = ""
    per_value: int | None = None
    by: str = "cos"

    def __post_init__(self) -> None:
        if self.min_cos is None and self.keep_top is None and not self.drop_duplicates and not self.balance:
            raise ConfigError("Say what to keep: --keep-top 0.3, --min-cos 0.25, --drop-duplicates or --balance COLUMN, or several of them.")
        if self.min_cos is not None and not -1 <= self.min_cos <= 1:
            raise ConfigError(f"--min-cos is a cosine, from -1 to 1; got {self.min_cos}.")
        if self.keep_top is not None and not 0 < self.keep_top <= 1:
            raise ConfigError(f"--keep-top is a share, above 0 to 1, such as 0.3; got {self.keep_top}.")
        if self.same != "pair" and not self.drop_duplicates:
            raise ConfigError(f"--same {self.same} is for --drop-duplicates; add it, or leave --same out.")
        if self.per_value is not None and (not self.balance or self.per_value < 1):
            raise ConfigError(f"--per-value {self.per_value} is for --balance COLUMN, and at least 1.")


@dataclass(frozen=True)
class Step:
    """What one rule did.

    Attributes:
        fate: Of the rows that it dropped.
        rule: The rule in words.
        dropped: Rows that it dropped.
        left: Rows that it left.
    """

    fate: Fate
    rule: str
    dropped: int
    left: int


@dataclass(frozen=True)
class Selection:
    """What is kept of some scores.

    Attributes:
        fates: A `Fate` for each row.
        steps: What each rule did, in order.
        statuses: Rows by status; NO_SCORE for those that are ok and have no number.
        values: Rows of each value of the balanced column before and after, those with most rows first; empty without --balance.
    """

    fates: UInt8[np.ndarray, " n"]
    steps: list[Step]
    statuses: Mapping[str, int]
    values: Mapping[str, tuple[int, int]]

    @property
    def num_kept(self) -> int:
        """Rows that are kept."""
        return self.steps[-1].left


def select(scores: Scores, rules: Rules, *, scratch: Path, pictures: Pictures | None = None) -> Selection:
    """Apply the rules: rows without a score, least cosine, duplicates, top share, balance; in this order, each to what is left.

    Args:
        scores: The opened files.
        rules: What is kept.
        scratch: Folder with room for 20 bytes a row, while duplicates are looked for.
        pictures: Where the pictures are, whose bytes are compared; None: below the current folder.

    Raises:
        ConfigError: If nothing is left.
        DataFormatError: If a column is missing, no numbers, or has too many values.
    """
    for flag, column in (("--by", rules.by), ("--balance", rules.balance)):
        if column:
            scores.require(column, flag=flag)
    selecting = _Selecting(scores, rules)
    statuses = selecting.drop_unscored()
    if rules.drop_duplicates:
        selecting.drop_duplicates(scratch, pictures or Pictures())
    if rules.keep_top is not None:
        selecting.keep_top()
    values = selecting.balance() if rules.balance else {}
    return Selection(selecting.fates, selecting.steps, statuses, values)


@dataclass
class _Selecting:
    """Fates while the rules are applied."""

    scores: Scores
    rules: Rules
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fates = np.zeros(self.scores.num_rows, dtype=np.uint8)
        self.left = self.scores.num_rows

    def drop_unscored(self) -> Counter[str]:
        """Drop rows without a score, and those below the least cosine; returns the rows of each status."""
        statuses: Counter[str] = Counter()
        low = 0
        for start, batch in self.scores.batches(*dict.fromkeys(("status", "cos", self.rules.by))):
            status = batch.column("status").to_numpy(zero_copy_only=False)
            cos = numbers(batch.column("cos"), "cos")
            scored = (status == OK) & ~np.isnan(cos) & ~np.isnan(numbers(batch.column(self.rules.by), self.rules.by))
            for name, rows in zip(*np.unique(np.where((status == OK) & ~scored, NO_SCORE, status.astype(str)), return_counts=True), strict=True):
                statuses[str(name)] += int(rows)
            fates = self.fates[start : start + len(cos)]
            fates[~scored] = Fate.NOT_SCORED
            if self.rules.min_cos is not None:
                below = scored & (cos < np.float32(self.rules.min_cos))
                fates[below] = Fate.BELOW_MIN
                low += int(below.sum())
        self._record(Fate.NOT_SCORED, "a score", self.scores.num_rows - statuses[OK])
        if self.rules.min_cos is not None:
            self._record(Fate.BELOW_MIN, f"cosine of at least {self.rules.min_cos:g}", low)
        return statuses

    def drop_duplicates(self, scratch: Path, pictures: Pictures) -> None:
        """Keep the best of equal rows."""
        worse = worse_of_equals(self._hashed(pictures), num_rows=self.left, scratch=scratch)
        dropped = 0
        for rows in worse:
            self.fates[rows] = Fate.DUPLICATE
            dropped += len(rows)
        self._record(Fate.DUPLICATE, f"best of those with the same {SAME[self.rules.same]}", dropped)

    def _hashed(self, pictures: Pictures) -> Iterator[Hashed]:
        texts = _texts_of(self.rules.same, pictures)
        for alive, start, batch in self._alive(*dict.fromkeys(("image", "caption", self.rules.by))):
            images, captions = (batch.column(name).to_pylist() for name in ("image", "caption"))
            keys = keys_of(numbers(batch.column(self.rules.by), self.rules.by))
            yield start + alive, digests(texts(images[i] or "", captions[i] or "") for i in alive), keys[alive]

    def keep_top(self) -> None:
        """Keep the best share."""
        assert self.rules.keep_top is not None
        wanted = max(1, round(self.rules.keep_top * self.left))

        def parts() -> Iterator[tuple[Int[np.ndarray, " n"], UInt32[np.ndarray, " n"]]]:
            for alive, _, batch in self._alive(self.rules.by):
                keys = keys_of(numbers(batch.column(self.rules.by), self.rules.by))[alive]
                yield np.zeros(len(keys), dtype=np.int64), keys

        edge = edge_of(parts, np.array([wanted]))
        rule = f"{100 * self.rules.keep_top:g} % of the highest {self.rules.by}"
        self._cut(edge, lambda batch: np.zeros(batch.num_rows, dtype=np.int64), (self.rules.by,), Fate.BELOW_TOP, rule)

    def balance(self) -> dict[str, tuple[int, int]]:
        """Keep the best of each value of a column, of each as many; returns the rows of each value before and after."""
        column, by = self.rules.balance, self.rules.by
        numbered = _Values(column)
        counts: Counter[int] = Counter()
        for alive, _, batch in self._alive(column):
            found, times = np.unique(numbered.of(batch)[alive], return_counts=True)
            counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
        cap = self.rules.per_value or min(counts.values())
        before = np.array([counts.get(i, 0) for i in range(len(numbered.names))])
        present = before > 0  # a value may have lost all its rows to the rules before
        renumbered = np.cumsum(present) - 1

        def parts() -> Iterator[tuple[Int[np.ndarray, " n"], UInt32[np.ndarray, " n"]]]:
            for alive, _, batch in self._alive(*dict.fromkeys((column, by))):
                yield renumbered[numbered.of(batch)[alive]], keys_of(numbers(batch.column(by), by))[alive]

        after = np.minimum(before, cap)
        edge = edge_of(parts, after[present])
        rule = f"at most {cap:,} of each {column}, the highest {by}"
        self._cut(edge, lambda batch: renumbered[numbered.of(batch)], (column, by), Fate.OVER_SHARE, rule)
        order = np.argsort(-before, kind="stable")
        return {numbered.names[i]: (int(before[i]), int(after[i])) for i in order if present[i]}

    def _cut(self, edge: Edge, groups: Callable[[Any], Int[np.ndarray, " n"]], columns: tuple[str, ...], fate: Fate, rule: str) -> None:
        """Drop what lies beyond an edge."""
        dropped = 0
        for alive, start, batch in self._alive(*dict.fromkeys(columns)):
            keys = keys_of(numbers(batch.column(self.rules.by), self.rules.by))[alive]
            beyond = start + alive[~edge.keeps(groups(batch)[alive], keys)]
            self.fates[beyond] = fate
            dropped += len(beyond)
        self._record(fate, rule, dropped)

    def _alive(self, *columns: str) -> Iterator[tuple[Int[np.ndarray, " m"], int, Any]]:
        """Positions in each batch that are still kept, the number of its first row, and the batch."""
        for start, batch in self.scores.batches(*columns):
            yield np.flatnonzero(self.fates[start : start + batch.num_rows] == Fate.KEPT), start, batch

    def _record(self, fate: Fate, rule: str, dropped: int) -> None:
        self.left -= dropped
        self.steps.append(Step(fate, rule, dropped, self.left))
        if self.left <= 0:
            counted = "; ".join(f"{step.rule}: {step.left:,} left" for step in self.steps)
            raise ConfigError(f"Nothing is left of {self.scores.num_rows:,} rows ({counted}). Ask for less.")


def numbers(column: Any, name: str) -> Float[np.ndarray, " n"]:
    """A column as float32, NaN where it is null.

    Raises:
        DataFormatError: If it holds anything but numbers.
    """
    try:
        return column.to_numpy(zero_copy_only=False).astype(np.float32)
    except (TypeError, ValueError):
        raise DataFormatError(f"The column {name} holds {column.type}, not numbers. Name another one with --by, such as cos.") from None


def is_kept(fates: UInt8[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which rows are kept."""
    return fates == Fate.KEPT


@dataclass
class _Values:
    """Numbers for the values of a column, in the order in which they come by."""

    column: str
    names: list[str] = field(default_factory=list)
    _number: dict[str, int] = field(default_factory=dict)

    def of(self, batch: Any) -> Int[np.ndarray, " n"]:
        """The number of each row's value; none at all is a value too."""
        coded = batch.column(self.column).dictionary_encode(null_encoding="encode")
        table = np.array([self._numbered("" if value is None else str(value)) for value in coded.dictionary.to_pylist()], dtype=np.int64)
        return table[coded.indices.to_numpy()]

    def _numbered(self, name: str) -> int:
        number = self._number.setdefault(name, len(self.names))
        if number == len(self.names):
            if number == MOST_VALUES:
                raise DataFormatError(f"--balance {self.column}: the column has more than {MOST_VALUES:,} values. Name one that groups the rows.")
            self.names.append(name)
        return number


def _texts_of(same: Same, pictures: Pictures) -> Callable[[str, str], str]:
    """What is equal for rows that are the same; a picture that cannot be read is equal to none of another name."""

    @lru_cache(maxsize=4_096)  # captions of a picture mostly follow each other
    def content(image: str) -> str:
        file = pictures.file(image)
        try:
            return f"\0{image}" if file is None else file_sha256(file)
        except OSError:
            return f"\0{image}"

    texts: dict[Same, Callable[[str, str], str]] = {
        "pair": lambda image, caption: f"{image}\0{caption.strip()}",
        "image": lambda image, caption: image,
        "caption": lambda image, caption: caption.strip(),
        "bytes": lambda image, caption: content(image),
    }
    return texts[same]
