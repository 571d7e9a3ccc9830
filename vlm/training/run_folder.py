"""The folder of a run: made once, never overwritten by accident once a step was taken. Knows its layout, not its contents."""

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from vlm.conf.schema import RunConfig
from vlm.conf.serialize import read_config, write_config
from vlm.errors import ConfigError, VLMError

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Refuse a run folder that is in use, or that could not be made; one that a run left before its first step is named, for `create` replaces it.

    Raises:
        ConfigError: If it exists with more than a config of ours, and the config says neither overwrite nor resume; or if the run root cannot
            be written.
    """
    resumes = bool(config.resume) and (config.run_dir / "config.json").is_file()
    if is_abandoned(config.run_dir, type(config)) and not config.overwrite:
        log.info("run folder %s is of a run that ended before its first step: it is replaced", config.run_dir)
    elif config.run_dir.exists() and not (config.overwrite or resumes):
        raise ConfigError(
            f"Run folder {config.run_dir} exists. Use --resume auto to go on with it, --overwrite to delete it, another --seed, or another --model.name."
        )
    try:
        config.run_root.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=".writable.", suffix=".tmp", dir=config.run_root)).rmdir()
    except OSError as error:
        raise _not_writable(config.run_root, error) from error


def is_abandoned(folder: Path, kind: type[RunConfig]) -> bool:
    """True if a run made this folder and failed before its first step: nothing is in it but the config, or not even that."""
    if not (folder / "checkpoints").is_dir():
        return False
    contents = {path.name for path in folder.rglob("*") if path.is_dir() or path.stat().st_size}
    try:
        ours = "config.json" not in contents or read_config(folder / "config.json", kind).run_id == folder.name
        return ours and contents <= {"config.json", "config.json.tmp", "checkpoints"}
    except VLMError:
        return False


def create(config: RunConfig) -> Path:
    """Make the run folder anew and store the config in it, without the permission to overwrite or resume.

    Raises:
        ConfigError: If it cannot be written.
    """
    folder = config.run_dir
    try:
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    store(config)
    return folder


def store(config: RunConfig) -> None:
    """Store a config in its run folder, without the permission to overwrite or resume.

    Raises:
        ConfigError: If it cannot be written.
    """
    try:
        write_config(replace(config, overwrite=False, resume=""), config.run_dir / "config.json")
    except OSError as error:
        raise _not_writable(config.run_dir, error) from error


def _not_writable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"Run folder {folder} cannot be written: {error.strerror or error}. Make it writable, or choose another --run-root.")


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after a step goes."""
    return run_dir / "checkpoints" / f"step-{step:06d}"
