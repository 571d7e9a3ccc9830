"""The parts of a job on a Ray cluster, by Ray Data: the function that one process runs, run by actors with a model each. Optional: needs the package ray.

`RAY_ADDRESS` names a running cluster; without it Ray starts on this machine. Pairs, pictures and --out must lie where every node sees them.
"""

import importlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from vlm.distributed.launch import choose_device
from vlm.errors import MissingPackageError
from vlm.score.job import Job
from vlm.score.opening import Opened, open_job
from vlm.score.running import Outcome


@dataclass(frozen=True)
class OnePart:
    """The share of a single part; see `vlm.score.running.Share`."""

    index: int

    def holds(self, index: int) -> bool:
        """True for that part."""
        return index == self.index


class PartScorer:
    """An actor: it opens the job once, and scores the parts whose numbers it is sent."""

    def __init__(self, job: Job):
        """Open the job."""
        self.opened: Opened = open_job(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Score parts; returns the rows, pictures and texts of each."""
        before = self._done()
        for index in batch["part"]:
            self._score(int(index))
        return {name: [now - before[name]] for name, now in self._done().items()}

    def _score(self, index: int) -> None:
        opened = self.opened
        if opened.parts.has(index):
            return
        for _, pairs in opened.table.parts(opened.job.part_rows, OnePart(index).holds):
            if pairs is not None:
                opened.parts.write(index, opened.scorer.tables(pairs))
                return

    def _done(self) -> dict[str, int]:
        done = self.opened.scorer.done
        return {"rows": done.rows, "images": done.images, "texts": done.texts}


def score_on_ray(job: Job, *, actors: int = 1, overwrite: bool = False) -> Outcome:
    """Score all parts that are not finished, and join them.

    Args:
        job: The job.
        actors: Processes that score, each with a model, and with a GPU if the job's device is one.
        overwrite: Take away what is there first.

    Raises:
        MissingPackageError: If ray is not installed.
        ConfigError: If what is there was made with other settings.
    """
    ray = _ray()
    opened = open_job(job)  # the driver's own: it knows what is finished, and refuses what an actor would refuse
    opened.scorer.__exit__()
    if overwrite:
        opened.parts.remove()
    if opened.parts.complete():
        return Outcome(0, [], opened.parts.found())
    num_parts = opened.table.count_parts(job.part_rows)
    missing, begin = opened.parts.missing(num_parts), time.perf_counter()
    done: Counter[str] = Counter()
    if missing:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        for batch in _mapped(ray, job, missing, actors).iter_batches(batch_size=None):
            done.update({name: int(sum(values)) for name, values in batch.items()})
    seconds = time.perf_counter() - begin
    return Outcome(num_parts, [], opened.parts.finish(num_parts), done["rows"], seconds, done["images"], done["texts"])


def _mapped(ray: Any, job: Job, missing: list[int], actors: int) -> Any:
    """The parts as a dataset whose rows actors score, one part at a time."""
    numbers = ray.data.from_items([{"part": index} for index in missing], override_num_blocks=len(missing))
    on_gpu = torch.device(choose_device(job.device)).type == "cuda"
    return numbers.map_batches(PartScorer, fn_constructor_args=(job,), batch_size=1, concurrency=actors, num_gpus=1 if on_gpu else 0)


def _ray() -> Any:
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError:
        raise MissingPackageError("ray", needed_for="--engine ray", extra="ray") from None
