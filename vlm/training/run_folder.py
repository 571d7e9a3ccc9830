"""The folder of a run: made once, never overwritten by accident. Knows its layout, not its contents."""

import shutil
from pathlib import Path

from vlm.conf.schema import TrainConfig
from vlm.conf.serialize import write_config
from vlm.errors import ConfigError


def check_free(config: TrainConfig) -> None:
    """Refuse a run folder that exists.

    Raises:
        ConfigError: If it exists and the config does not say overwrite.
    """
    if config.run_dir.exists() and not config.overwrite:
        raise ConfigError(f"Run folder {config.run_dir} exists. Use --overwrite to delete it, another --seed, or another --model.name.")


def create(config: TrainConfig) -> Path:
    """Make the run folder and store the config in it.

    Raises:
        ConfigError: If it cannot be written.
    """
    folder = config.run_dir
    try:
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True)
        write_config(config, folder / "config.json")
    except OSError as error:
        raise ConfigError(f"Run folder {folder} cannot be written: {error}. Choose another --run-root.") from error
    return folder


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after a step goes."""
    return run_dir / "checkpoints" / f"step-{step:06d}"
