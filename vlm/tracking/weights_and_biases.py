"""Weights & Biases. A run has one id for life, kept in its folder, so that a resumed run goes on in the same charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError
from vlm.tracking.base import Shown

ID_FILE = "wandb_id"  # in the run folder, which --overwrite deletes: what starts anew gets a new id


class WandB:
    """Weights & Biases; offline with WANDB_MODE=offline.

    Charts have `step` on their axis, as a value of its own: the service drops what comes for a step of its counter that has passed, which would be all
    that a resumed run repeats.
    """

    def __init__(self, *, run_id: str, run_dir: Path, config: Mapping[str, Any], project: str, entity: str | None):
        """Start a run under the run folder's name, or go on with it if the folder holds an id.

        Raises:
            ConfigError: If the service refuses or cannot be reached.
        """
        import wandb

        self._wandb = wandb
        stored = run_dir / ID_FILE
        known = stored.read_text(encoding="utf-8").strip() if stored.is_file() else None
        try:
            self._run = wandb.init(
                project=project,
                entity=entity,
                name=run_id,
                id=known or None,
                resume="allow" if known else None,
                dir=str(run_dir),
                config=dict(config),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(f"Weights & Biases did not start: {reason}. Run `wandb login`, or set WANDB_MODE=offline.") from error
        stored.write_text(f"{self._run.id}\n", encoding="utf-8")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics under their own names."""
        self._run.log({"step": step, **metrics})

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Log the pictures with what was said as captions, and a table; the table alone would keep its pictures out of the run's folder when offline."""
        table = self._wandb.Table(columns=["image", "question", "reference", "generated"])
        pictures = []
        for sample in samples:
            image = None
            if sample.image is not None:
                caption = f"{sample.question} -> {sample.generated} (truth: {sample.reference})"
                image = self._wandb.Image(str(sample.image), caption=caption)
                pictures.append(image)
            table.add_data(image, sample.question, sample.reference, sample.generated)
        self._run.log({"step": step, "samples": table} | ({"pictures": pictures} if pictures else {}))

    def finish(self) -> None:
        """Close the run."""
        self._run.finish()
