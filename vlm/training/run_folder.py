"""The folder of a run: made once, never overwritten by accident. Knows its layout, not its contents."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from vlm.conf.schema import TrainConfig
from vlm.conf.serialize import write_config
from vlm.errors import ConfigError


def check(config: TrainConfig) -> None:
    """Refuse a run folder that exists, or that could not be made.

    Raises:
        ConfigError: If it exists and the config does not say overwrite, or if the run root cannot be written.
    """
    if config.run_dir.exists() and not config.overwrite:
        raise ConfigError(f"Run folder {config.run_dir} exists. Use --overwrite to delete it, another --seed, or another --model.name.")
    try:
        config.run_root.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=".writable.", suffix=".tmp", dir=config.run_root)).rmdir()
    except OSError as error:
        raise _not_writable(config.run_root, error) from error


def create(config: TrainConfig) -> Path:
    """Make the run folder and store the config in it, without the permission to overwrite.

    Raises:
        ConfigError: If it cannot be written.
    """
    folder = config.run_dir
    try:
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True)
        write_config(replace(config, overwrite=False), folder / "config.json")
    except OSError as error:
        raise _not_writable(folder, error) from error
    return folder


def _not_writable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"Run folder {folder} cannot be written: {error.strerror or error}. Make it writable, or choose another --run-root.")


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after a step goes."""
    return run_dir / "checkpoints" / f"step-{step:06d}"
