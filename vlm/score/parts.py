"""The parts of a table of scores on disk: each written whole under a temporary name and renamed, known again by the settings that made it.

A process that is killed leaves finished parts and a temporary file that nobody reads. Knows no model.
"""

import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from vlm.errors import ConfigError, DataFormatError
from vlm.score.schema import METADATA, pyarrow, schema

FORMAT_VERSION = 1
MANIFEST, LOCK = "manifest.json", ".lock"
PART = "part-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"
ROWS_A_GROUP = 10_000  # of the Parquet file that parts are joined to


@dataclass(frozen=True)
class Parts:
    """The parts of one table.

    Attributes:
        out: A Parquet file that they become in the end, or the folder where they stay.
        settings: Everything that changes the scores or where a part begins; compared with what is there.
        facts: What else the file's metadata say.
        carry: Names of the columns that are copied.
    """

    out: Path
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    carry: tuple[str, ...] = ()

    @property
    def joined(self) -> bool:
        """True if the parts become one file."""
        return self.out.suffix.lower() == ".parquet"

    @property
    def folder(self) -> Path:
        """Where the parts are."""
        return self.out.with_name(f"{self.out.name}.parts") if self.joined else self.out

    @cached_property
    def identity(self) -> str:
        """A hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def path(self, index: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{index:06d}.parquet"

    def has(self, index: int) -> bool:
        """True if a part is finished.

        Raises:
            ConfigError: If what is there was made with other settings.
        """
        path = self.path(index)
        if not path.is_file():
            return False
        try:
            self._check(path)
        except ConfigError:
            if path.is_file():
                raise
        return path.is_file()  # another process may have joined the parts and taken them away meanwhile

    def complete(self) -> bool:
        """True if the whole table is there already.

        Raises:
            ConfigError: If what is there was made with other settings, or is something else.
        """
        if self.joined and self.out.exists():
            self._check(self.out)
            return True
        manifest = self.folder / MANIFEST
        if self.joined or not manifest.is_file():
            return False
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        if stored.get("identity") != self.identity:
            raise ConfigError(self._other(self.out, stored.get("settings", {})))
        return all(self.has(index) for index in range(stored["parts"]))

    def write(self, index: int, batches: Iterable[Any]) -> Counter[str]:
        """Write a part; returns how often each status is in it.

        Raises:
            ConfigError: If the folder cannot be written.
        """
        pa = pyarrow()
        target = self.path(index)
        building = target.with_name(f"{target.name}.{socket.gethostname()}.{os.getpid()}.tmp")
        statuses: Counter[str] = Counter()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_batches(_counted(batches, statuses), schema=schema(self.carry))
            pa.parquet.write_table(table.replace_schema_metadata(self._metadata(statuses)), building, compression="zstd")
            _rename(building, target)
        except OSError as error:
            raise ConfigError(
                f"Scores cannot be written to {self.folder} ({error.strerror or error}). Make it writable, or free space there."
            ) from error
        finally:
            with suppress(OSError):  # of a folder that cannot be written
                building.unlink(missing_ok=True)
        return statuses

    def statuses(self, num_parts: int) -> Counter[str]:
        """How often each status is in the parts."""
        counted: Counter[str] = Counter()
        for index in range(num_parts):
            counted.update(read_facts(self.path(index))["statuses"])
        return counted

    def missing(self, num_parts: int) -> list[int]:
        """The numbers of the parts that are not finished."""
        return [index for index in range(num_parts) if not self.has(index)]

    def finish(self, num_parts: int) -> Counter[str]:
        """Join the parts, or write the folder's manifest; whoever comes later finds it done. Returns how often each status is.

        Args:
            num_parts: All parts of the table, each of them finished.

        Raises:
            ConfigError: If the table cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / LOCK):
                if not self.complete():
                    (self._join if self.joined else self._list)(num_parts)
        except OSError as error:
            if not self.complete():  # else another process has joined the parts, and taken their folder away, lock and all
                raise ConfigError(
                    f"{self.out} cannot be written ({error.strerror or error}). Its parts are kept in {self.folder}; free space, and give the same command again."
                ) from error
        self.clean()
        return self.found()

    def clean(self) -> None:
        """Take away what killed processes left beside a finished table: temporary files, and the parts of a file that is joined."""
        if self.joined:
            shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.folder.glob("part-*.tmp"):
            path.unlink(missing_ok=True)

    def found(self) -> Counter[str]:
        """How often each status is in the finished table."""
        facts = read_facts(self.out) if self.joined else json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        return Counter(facts["statuses"])

    def remove(self) -> None:
        """Take away what is there.

        Raises:
            ConfigError: If it is not a table of scores.
        """
        if self.joined:
            if self.out.exists():
                read_facts(self.out)
            self.out.unlink(missing_ok=True)
        for path in [*self.folder.glob("part-*.parquet"), *self.folder.glob("part-*.tmp"), self.folder / MANIFEST, self.folder / LOCK]:
            path.unlink(missing_ok=True)

    def _list(self, num_parts: int) -> None:
        statuses = self.statuses(num_parts)
        manifest = self._facts(statuses) | {"parts": num_parts, "rows": statuses.total()}
        building = self.folder / f"{MANIFEST}.tmp"
        building.write_text(json.dumps(manifest, indent=1, default=str), encoding="utf-8")
        building.replace(self.folder / MANIFEST)

    def _join(self, num_parts: int) -> None:
        pa, statuses = pyarrow(), self.statuses(num_parts)
        building = self.folder / f"joined.{socket.gethostname()}.{os.getpid()}.tmp"
        described = schema(self.carry).with_metadata(self._metadata(statuses))
        try:
            with pa.parquet.ParquetWriter(building, described, compression="zstd") as writer:
                for table in _grouped(pa.parquet.ParquetFile(self.path(index)).read() for index in range(num_parts)):
                    writer.write_table(table.replace_schema_metadata(described.metadata))
            _rename(building, self.out)
        finally:
            with suppress(OSError):
                building.unlink(missing_ok=True)

    def _facts(self, statuses: Counter[str]) -> dict[str, Any]:
        known = {"format_version": FORMAT_VERSION, "identity": self.identity, "settings": dict(self.settings)}
        return known | dict(self.facts) | {"statuses": dict(statuses)}

    def _metadata(self, statuses: Counter[str]) -> dict[bytes, bytes]:
        return {METADATA: json.dumps(self._facts(statuses), default=str).encode()}

    def _check(self, path: Path) -> None:
        facts = read_facts(path)
        if facts.get("identity") != self.identity:
            raise ConfigError(self._other(path, facts.get("settings", {})))

    def _other(self, path: Path, stored: Mapping[str, Any]) -> str:
        now = json.loads(json.dumps(self.settings, default=str))
        names = sorted(name for name in {*now, *stored} if now.get(name) != stored.get(name))
        seen = "; ".join(f"{name} was {stored.get(name)}, now {now.get(name)}" for name in names)[:400]
        return f"{path} was made with other settings: {seen}. Give another --out, or --overwrite."


def read_facts(path: Path) -> dict[str, Any]:
    """What the metadata of a file of scores say: model, settings, counts of statuses.

    Raises:
        ConfigError: If it is no file of scores.
    """
    pa = pyarrow()
    try:
        stored = (pa.parquet.read_schema(path).metadata or {}).get(METADATA)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path} is there and cannot be read as scores ({' '.join(str(error).split())}). Give another --out.") from error
    if stored is None:
        raise ConfigError(f"{path} is there and holds no scores of `vlm score`. Give another --out.")
    return json.loads(stored)


def score_files(path: Path) -> list[Path]:
    """The Parquet files of a table of scores, in the order of their rows: the file itself, or those of a folder.

    Raises:
        DataFormatError: If the folder's parts are not finished.
    """
    if path.is_file():
        return [path]
    if not (path / MANIFEST).is_file() and (there := list(path.glob(PART))):
        raise DataFormatError(
            f"{path} is no finished table of scores: it holds {len(there):,} parts and no {MANIFEST}. Run `vlm score` to its end first, or name the parts: "
            f"'{path}/part-*.parquet'."
        )
    return sorted(path.glob("*.parquet"))


def _counted(batches: Iterable[Any], statuses: Counter[str]) -> Iterator[Any]:
    for batch in batches:
        statuses.update(batch.column("status").to_pylist())
        yield batch


def _grouped(tables: Iterable[Any]) -> Iterator[Any]:
    """Tables joined to such of at least ROWS_A_GROUP rows, but the last."""
    pa = pyarrow()
    held: list[Any] = []
    for table in tables:
        held.append(table)
        if sum(one.num_rows for one in held) >= ROWS_A_GROUP:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _rename(building: Path, target: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with building.open("rb+") as file:
        os.fsync(file.fileno())
    building.replace(target)
