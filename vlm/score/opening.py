"""A job opened: its table of pairs, its model ready to score, and the settings by which its parts are known again."""

from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import torch

from vlm import __version__
from vlm.backbones.fingerprint import fingerprint
from vlm.backbones.image import IMAGE
from vlm.conf.sources import sources_of
from vlm.data.fetched import Fetched
from vlm.data.remote import FetchRules
from vlm.models.dual_build import pair_names
from vlm.models.dual_encoder import DualEncoder
from vlm.models.open import open_dual
from vlm.score.encoding import PairEncoder, instruction_of
from vlm.score.job import Job, files_of
from vlm.score.pairs import Columns, PairTable
from vlm.score.parts import Parts
from vlm.score.pictures import PictureReader
from vlm.score.schema import schema
from vlm.score.scoring import Logits, Scorer

CHANGES_SCORES = ("image_col", "text_col", "refs_col", "carry", "images", "image_root", "url_file", "max_bytes", "max_pixels", "prefix", "part_rows")


@dataclass(frozen=True)
class Opened:
    """What scoring a job takes."""

    job: Job
    table: PairTable
    scorer: Scorer
    parts: Parts


def open_job(job: Job, *, device: torch.device | None = None) -> Opened:
    """Look at the table, then load the model.

    Args:
        job: The settings.
        device: This process's own, of several; None: the job's.

    Raises:
        ConfigError: If the settings name something that is not there, or the device does not exist.
        DataFormatError: If a file of pairs cannot be read.
        CheckpointError: If the model cannot be loaded, or is none that compares pictures and texts.
    """
    table, model = open_table(job), open_scoring_model(job)
    model = model if device is None else model.to(device)
    logits = Logits.of(model)
    root = job.image_root.resolve() if job.image_root else table.folder
    places = {"image_root": str(root or ""), "url_file": job.url_file, "cache": str(job.cache.resolve()) if job.cache else ""}
    facts = {"model": job.model, **places, "vlm": __version__, "torch": torch.__version__, "device": model.device.type} | asdict(logits)
    parts = Parts(job.out, settings_of(job, table, model), facts, job.carry)
    return Opened(job, table, scorer_of(job, model, logits, full_paths=root is None), parts)


def open_table(job: Job) -> PairTable:
    """The pairs of a job.

    Raises:
        ConfigError: If the settings name something that is not there, or a carried column has the name of another one.
        DataFormatError: If a file of pairs cannot be read.
    """
    schema(job.carry)
    return PairTable(files_of(job.pairs), Columns(job.image_col, job.text_col, job.refs_col, job.carry))


def open_scoring_model(job: Job) -> DualEncoder:
    """The dual encoder of a job.

    Raises:
        CheckpointError: If it cannot be loaded, or is a model that answers.
    """
    return open_dual(pair_of_source(job.model), device=job.device, precision=job.precision, run_root=job.run_root, **sources_of(job))


def pair_of_source(name: str) -> str:
    """The published pair whose weights lie at a hub id; any other name as it is."""
    return next((pair for pair in pair_names() if IMAGE[f"{pair}-image"].source == name), name)


def scorer_of(job: Job, model: DualEncoder, logits: Logits, *, full_paths: bool = False) -> Scorer:
    """A model with all that a job says about reading and encoding; for `full_paths` see `Scorer`."""
    encoder = PairEncoder(model, batch_size=job.batch_size, batch_tokens=job.batch_tokens, compile=job.compile)
    fetches = job.images != "local"
    rules = FetchRules(job.timeout, job.max_bytes, job.max_pixels, job.hosts, job.allow_private)
    fetched = Fetched(rules, job.cache, job.retries, turns=BoundedSemaphore(job.connections))
    reader = PictureReader(encoder.policy, job.images, fetched, job.image_root, job.url_file, job.max_bytes, job.max_pixels)
    connections = job.connections if fetches else 0
    return Scorer(
        encoder,
        reader,
        logits,
        workers=job.workers,
        connections=connections,
        remember=job.remember,
        prefix=job.prefix,
        carry=job.carry,
        full_paths=full_paths,
    )


def settings_of(job: Job, table: PairTable, model: DualEncoder) -> dict[str, Any]:
    """Everything that changes the scores, or which rows a part has. Files are known by name, size and time of change."""
    weights = {"image": fingerprint(model.image, adapters=True), "text": fingerprint(model.text, adapters=True)}
    if model.heads is not None:
        weights["heads"] = fingerprint(model.heads)
    files = [_file(path) for path in table.files]
    dtype = str(next(model.image.parameters()).dtype).removeprefix("torch.")
    own = {name: getattr(job, name) for name in CHANGES_SCORES}
    known = own | {"pairs": files, "model": job.model, "weights": weights, "dtype": dtype, "instruction": instruction_of(model)}
    return {name: _plain(value) for name, value in known.items()}


def _file(path: Path) -> list[Any]:
    leaves = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [leaf.stat() for leaf in leaves if leaf.is_file()]
    return [str(path.resolve()), sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
