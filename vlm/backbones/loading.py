"""Loading of towers from the hub, from a folder or at random, with errors that say what to do. Knows no family."""

import importlib
import importlib.util
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vlm.errors import WEIGHTS_REMEDY, CheckpointError, MissingPackageError, reason_of

LOADING = threading.RLock()  # held while a name of transformers is another one; a load may begin another load
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # what safetensors calls them


@dataclass(frozen=True)
class Load:
    """How to fill a tower.

    Attributes:
        source: Hub id or folder of the weights; None builds the architecture with random weights (or none at all, under the meta device).
        dtype: Type of the weights.
        feature_layer: Index into the hidden states, -1 the last; None for the spec's own.
    """

    source: str | Path | None
    dtype: torch.dtype = torch.float32
    feature_layer: int | None = None


def from_pretrained(model_class: Any, source: str | Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """`model_class.from_pretrained` and what it says about missing and mismatched tensors; a folder is read without the network.

    Raises:
        CheckpointError: If neither a folder nor the hub has it, or the files cannot be read; in one line.
    """
    options = {"attn_implementation": "sdpa"} | options
    return _read(model_class, source, what="Weights", output_loading_info=True, ignore_mismatched_sizes=True, **options)


def read_config(config_class: Any, source: str | Path) -> Any:
    """`config_class.from_pretrained`: a file of a few kB, so that a wrong model is refused before its weights are fetched.

    Raises:
        CheckpointError: If neither a folder nor the hub has it, or the file cannot be read; in one line.
    """
    return _read(config_class, source, what="The config")


def _read(transformers_class: Any, source: str | Path, *, what: str, **options: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError  # a config whose values contradict each other

    local = is_folder(source)
    try:
        with quiet(local), _without_load_report(), _unmapped(options.get("dtype")):
            return transformers_class.from_pretrained(str(source), local_files_only=local, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise CheckpointError(f"{what} of {str(source)!r} could not be loaded ({' '.join(str(error).split())[:300]}). {WEIGHTS_REMEDY}") from error


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Mute transformers' table of unused tensors: hundreds of lines for one tower of two, and what is missing is checked by our callers."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def _unmapped(dtype: torch.dtype | None) -> Iterator[None]:
    """Have tensors that change their type read one by one: pages of a mapped file would stay in memory beside the copies until the last one is made.

    transformers maps every file. Of its settings, `disable_mmap` reads whole files, and `state_dict` takes neither a folder nor a hub id; so its opener is
    exchanged, in one thread at a time. A file whose tensors are of the wanted type stays mapped: then nothing is copied at all.
    """
    library: Any = importlib.import_module("transformers.modeling_utils") if dtype is not None else None
    if dtype is None or not hasattr(library, "safe_open"):  # memory alone depends on it, so a transformers that opens files elsewhere is no error
        yield
        return

    def opened(file: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("backend") == "mmap" and _converts(file, dtype):
            options["backend"] = "pread"
        return mapped(file, *arguments, **options)

    with LOADING:
        mapped, library.safe_open = library.safe_open, opened
        try:
            yield
        finally:
            library.safe_open = mapped


def _converts(file: Any, dtype: torch.dtype) -> bool:
    """True if a file of safetensors has a tensor of numbers that are of another floating type."""
    with safe_open(file, framework="pt") as tensors:
        stored = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    return bool(stored & set(STORED.values()) - {STORED.get(dtype)})


@contextmanager
def quiet(local: bool) -> Iterator[None]:
    """No progress bar for files that are here already; downloads keep theirs."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if local and was_on:
            logging.enable_progress_bar()


def is_folder(source: str | Path) -> bool:
    """True for a folder, False for what can only be a hub id (`owner/name`)."""
    if Path(source).is_dir():
        return True
    if isinstance(source, Path) or source.startswith((".", "~", "/")) or source.count("/") > 1:
        raise CheckpointError(f"There is no folder {str(source)!r}. {WEIGHTS_REMEDY}")
    return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: If there is no such file, or it holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}. Name the folder that holds it, or complete it.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected an object.")
    return values


def check_architecture(config: Any, expected: Mapping[str, Any], source: str | Path) -> None:
    """Compare a loaded config with the values of a spec.

    Raises:
        CheckpointError: With every value that differs.
    """
    config = getattr(config, "vision_config", config)
    different = {key: (getattr(config, key, None), value) for key, value in expected.items() if getattr(config, key, None) != value}
    if different:
        listed = ", ".join(f"{key} is {seen}, expected {wanted}" for key, (seen, wanted) in different.items())
        raise CheckpointError(f"{source} is another model than its name says: {listed}.")


def check_complete(info: Mapping[str, Any], source: str | Path) -> None:
    """Refuse weights that would leave a parameter random; `info` is the second value of `from_pretrained`.

    Tensors that the model does not use are accepted: a vision tower taken out of a two-tower checkpoint leaves the text tower's.

    Raises:
        CheckpointError: With the first tensors that are missing or of another shape.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing:
        raise CheckpointError(f"{source} lacks {len(missing)} tensors of the model, among them {', '.join(missing[:3])}.")
    if mismatched:
        key, seen, wanted = mismatched[0]
        raise CheckpointError(f"{source} has {len(mismatched)} tensors of another shape: {key} is {tuple(seen)}, expected {tuple(wanted)}.")


def load_transformers(
    class_name: str, config_name: str, spec: Any, load: Load, *, random_config: Mapping[str, Any] | None = None, **model_arguments: Any
) -> nn.Module:
    """A tower of transformers: random from the spec's architecture, or with weights whose config agrees with it.

    Args:
        class_name: Model class in transformers.
        config_name: Its config class.
        spec: A spec with `architecture`.
        load: Source and type of the weights; a folder or hub id of the tower, or of a two-tower model that contains it.
        random_config: Config values of random models alone, where published configs have wrong ones that nothing reads.
        model_arguments: Arguments of the model class beside the config.

    Raises:
        CheckpointError: If the weights cannot be found, miss a tensor, or are of another size than the spec says.
    """
    import transformers

    config_class, model_class = getattr(transformers, config_name), getattr(transformers, class_name)
    if load.source is None:
        config = config_class(**spec.architecture, **(random_config or {}), attn_implementation="sdpa")
        return model_class(config, **model_arguments).to(load.dtype)
    check_architecture(read_config(config_class, load.source), spec.architecture, load.source)
    model, info = from_pretrained(model_class, load.source, dtype=load.dtype, **model_arguments)
    check_complete(info, load.source)
    return model


def require(package: str, needed_for: str, *, extra: str | None = None) -> None:
    """Raise with the install line unless a package is importable.

    Raises:
        MissingPackageError: If it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(package, needed_for=needed_for, extra=extra)
