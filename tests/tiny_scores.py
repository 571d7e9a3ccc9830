"""What tests of scores start from: pictures of noise, tables that name them, and jobs of the tiny dual encoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vlm.score.job import Job
from vlm.score.opening import open_job
from vlm.score.running import Outcome, Share, score_parts


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    """A PNG of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def pictures(folder: Path, count: int) -> list[str]:
    """Names of pictures in a folder."""
    return [picture(folder / f"{i}.png", i, (40 + i, 30)).name for i in range(count)]


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table."""
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def some_pairs(folder: Path, rows: int = 10, images: int = 3) -> Path:
    """A table of rows that are all fine: pictures and captions come again."""
    names = pictures(folder, images)
    return json_lines(folder / "pairs.jsonl", [{"image": names[i % images], "caption": f"Caption number {i % 4}."} for i in range(rows)])


def job(pairs: Path, out: Path, **settings: Any) -> Job:
    return Job(**({"pairs": (str(pairs),), "out": out, "model": "tiny-clip", "device": "cpu", "precision": "fp32"} | settings))


def scored(job: Job, share: Share | None = None) -> Outcome:
    opened = open_job(job)
    with opened.scorer:
        return score_parts(opened, share or Share())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()
