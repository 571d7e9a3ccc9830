"""Which registry entries ever ran with their real weights, and when: `verified.json`, written by `tests/test_real_weights.py` alone."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PATH = Path(__file__).with_name("verified.json")


@dataclass(frozen=True)
class Verification:
    """One run of an entry with its real weights.

    Attributes:
        date: Day of the run, ISO format.
        check: What was seen.
        versions: Packages that it ran with.
    """

    date: str
    check: str
    versions: str


def verifications(path: Path = PATH) -> dict[str, Verification]:
    """All records, by `<kind>/<name>`."""
    return {key: Verification(**value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}


def record(key: str, verification: Verification, path: Path = PATH) -> None:
    """Add or replace a record."""
    records = verifications(path) | {key: verification}
    values = {key: asdict(records[key]) for key in sorted(records)}
    building = path.with_suffix(".json.tmp")
    building.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    building.rename(path)
