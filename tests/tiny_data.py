"""What tests of training start from: a LLaVA-style file of mixed samples, and `tiny/*` runs on it. Fixtures are imported by the conftests that need them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.conf.presets import PRESETS
from vlm.conf.schema import BatchPlan, TrainConfig
from vlm.data.stream.loader import MicroBatches
from vlm.data.stream.order import shuffled

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "gray": (120, 120, 120)}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def rows() -> list[dict[str, Any]]:
    """One picture, none, several; one turn and two; answers of one and of fifty words."""
    return [
        *({"id": color, "image": f"{color}.png", "conversations": turns("<image>\nWhat color?", f"The color is {color}.")} for color in COLORS),
        {"id": "text", "conversations": turns("Say yes.", "Yes")},
        {"id": "long", "conversations": turns("Repeat.", "The circle is blue. " * 12)},
        {"id": "two", "image": ["red.png", "blue.png"], "conversations": turns("<image> then <image>\nWhich?", "red, then blue")},
        {"id": "turns", "image": "gray.png", "conversations": turns("<image>Color?", "gray", "Is it red?", "No, it is gray.")},
    ]


def write(folder: Path, conversations: list[dict[str, Any]] | None = None) -> Path:
    """`data.json` with its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for color, rgb in COLORS.items():
        Image.new("RGB", (40, 30), rgb).save(folder / f"{color}.png")
    path = folder / "data.json"
    path.write_text(json.dumps(rows() if conversations is None else conversations), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for converted files."""
    monkeypatch.setenv("VLM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed samples."""
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny(tmp_path: Path, data: Path) -> Callable[..., TrainConfig]:
    """`tiny("finetune", max_steps=2, seed=3)`: a preset on the mixed samples, with settings of the stage or of the run replaced."""

    def config(stage: str = "align", **changed: Any) -> TrainConfig:
        run = {name: changed.pop(name) for name in list(changed) if name in TrainConfig.__dataclass_fields__}
        preset = PRESETS[f"tiny/{stage}"]
        stage_config = replace(preset.stage, **({"dataset": str(data)} | changed))
        return replace(preset, **({"run_root": tmp_path / "runs", "stage": stage_config} | run))

    return config


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The order of sums fixed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images_of_ranks(config: TrainConfig, world: int) -> list[tuple[int, ...]]:
    """How many samples with pictures each rank sees in each micro-batch."""
    plan, counts = BatchPlan.of(config.stage, world=world), [len([*row.get("image", "")][:1]) for row in rows()]
    order = [
        [[row[0][0] for row in batch.rows] for batch in MicroBatches(shuffled(len(counts), config.seed), plan, rank, config.stage.max_steps)]
        for rank in range(world)
    ]
    return [tuple(sum(counts[i] for i in batch) for batch in step) for step in zip(*order, strict=True)]


def losses(run_dir: Path) -> list[float]:
    """The loss curve of a run."""
    return [line["loss"] for line in metrics(run_dir) if "loss" in line]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
