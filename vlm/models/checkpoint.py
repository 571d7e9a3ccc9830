"""Weights on disk: `weights.safetensors` holds what was trained, `model.json` the composition and fingerprints of the frozen parts.

Knows nothing of optimizers or of how training goes on; finds runs by name.
"""

import json
import logging
import shutil
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm.backbones.fingerprint import fingerprint, own_name
from vlm.backbones.lora import is_idle, is_lora, renew_magnitudes
from vlm.backbones.writing import write_tensors
from vlm.conf.contrastive import DualEncoderConfig
from vlm.conf.schema import LoRATowers, VisionLanguageConfig
from vlm.conf.serialize import from_dict, to_dict
from vlm.conf.sources import TOWERS
from vlm.distributed.launch import choose_device, choose_precision
from vlm.distributed.shard import place_of
from vlm.errors import MOST_NAMES, CheckpointError, ConfigError, listed, nearest
from vlm.models.build import build
from vlm.models.hub import fetch_checkpoint, is_hub_id
from vlm.models.parameters import parameter_rows
from vlm.models.vision_language import PARTS, VisionLanguageModel

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
WEIGHTS, MODEL = "weights.safetensors", "model.json"
INSIDE = "hf:./"  # how `model.json` names a tower that lies in the checkpoint's own folder, so that the folder can be moved
KINDS: dict[str, type] = {"vision-language": VisionLanguageConfig, "dual-encoder": DualEncoderConfig}


@dataclass(frozen=True)
class Manifest:
    """`model.json`: what a checkpoint is made of.

    Attributes:
        config: The composition.
        stored: Parts whose trained weights the checkpoint holds.
        fingerprints: Fingerprint of each part's untrained weights, for the parts that have any.
        trained_on: Datasets that the weights were trained on, where the checkpoint says.
    """

    config: Any  # a VisionLanguageConfig or a DualEncoderConfig
    stored: tuple[str, ...]
    fingerprints: dict[str, str]
    trained_on: tuple[str, ...] = ()

    @property
    def adapted(self) -> set[str]:
        """Parts whose adapter the checkpoint must hold."""
        return {part for part, lora in vars(getattr(self.config, "lora", LoRATowers())).items() if lora.rank}


def trained_state(model: Any) -> dict[str, Tensor]:
    """What a checkpoint holds: every adapter, and all own weights and buffers of the altered parts, tied ones once; names are those without adapters."""
    state: dict[str, Tensor] = {}
    seen: set[Hashable] = set()
    for part in model.PARTS:
        for name, tensor in getattr(model, part).state_dict(keep_vars=True).items():
            place = place_of(tensor)
            if (is_lora(name) or part in model.altered) and (place not in seen or tensor.numel() == 0):
                seen.add(place)
                state[f"{part}.{own_name(name)}"] = tensor.detach()
    return state


def fingerprint_of(model: VisionLanguageModel, part: str) -> str:
    """Fingerprint of a part's own weights; of a quantized one, of those that it was made from, so that how it is stored does not matter."""
    return model.quantized.get(part) or fingerprint(getattr(model, part))


def model_values(model: VisionLanguageModel, config: VisionLanguageConfig) -> dict[str, Any]:
    """The contents of `model.json`. Frozen parts do not change, so a run may ask once."""
    fingerprints = {part: fingerprint_of(model, part) for part in PARTS if part not in model.altered}
    return values_of(model, config, kind="vision-language", fingerprints=fingerprints)


def values_of(model: Any, config: Any, *, kind: str, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The contents of `model.json` of either kind of model.

    Args:
        model: What is stored, by its `PARTS`.
        config: The composition.
        kind: A key of KINDS.
        fingerprints: Of the weights that are not stored.
    """
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": to_dict(config),
        "stored": sorted({name.split(".")[0] for name in trained_state(model)}),
        "parameters": parameter_rows(model),
        "fingerprints": dict(fingerprints),
    }


def write_model(state: Mapping[str, Tensor], values: Mapping[str, Any], folder: Path) -> None:
    """Write `weights.safetensors` and `model.json` into a folder that exists.

    Raises:
        OSError, SafetensorError: If the folder cannot be written (permission, full disk).
    """
    write_tensors(state, folder / WEIGHTS)
    (folder / MODEL).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save(model: VisionLanguageModel, config: VisionLanguageConfig, folder: Path) -> None:
    """Write a checkpoint of a model.

    Raises:
        CheckpointError: If the folder cannot be written (permission, full disk).
    """
    save_weights(trained_state(model), model_values(model, config), folder)


def save_weights(state: Mapping[str, Tensor], values: Mapping[str, Any], folder: Path) -> None:
    """Write weights and `model.json` under a temporary name, then rename the folder; one that is there is replaced.

    Raises:
        CheckpointError: If the folder cannot be written (permission, full disk).
    """
    building = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write_model(state, values, building)
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(building, ignore_errors=True)
        raise CheckpointError(
            f"Checkpoint {folder} could not be written: {error}. Free space or choose another --run-root; earlier checkpoints are intact."
        ) from error


def read_manifest(folder: Path) -> Manifest:
    """The `model.json` of a checkpoint.

    Raises:
        CheckpointError: If it is missing, is not JSON, or is of a newer format.
    """
    path = folder / MODEL
    remedy = "Name a checkpoint or run folder written by vlm."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. {remedy}") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path} cannot be read: it states no format_version. {remedy}")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format_version {version}; this vlm reads up to {FORMAT_VERSION}. Upgrade vlm.")
    missing = [key for key in ("config", "stored", "fingerprints") if key not in values]
    if missing:
        raise CheckpointError(f"{path} cannot be read: it lacks {', '.join(missing)}. {remedy}")
    kind = KINDS.get(values.get("kind", "vision-language"))
    if kind is None:
        raise CheckpointError(f"{path} is of a model of kind {values['kind']!r}; this vlm knows {', '.join(KINDS)}. Upgrade vlm.")
    config: Any = anchored(from_dict(values["config"], kind, origin=str(path)), folder)
    trained_on = tuple(values.get("trained_on", ()))
    return Manifest(config=config, stored=tuple(values["stored"]), fingerprints=values["fingerprints"], trained_on=trained_on)


def anchored(config: Any, folder: Path) -> Any:
    """The config with the places of towers that lie inside the checkpoint's folder."""
    names = {part: getattr(config, part, "") for part in ("vision", "language")}
    inside = {part: name.removeprefix(INSIDE) for part, name in names.items() if name.startswith(INSIDE)}
    return replace(config, **{part: f"hf:{folder.absolute() / name}" for part, name in inside.items()}) if inside else config


def load(folder: Path, *, precision: str, sources: dict[str, str] | None = None) -> VisionLanguageModel:
    """The model of a checkpoint: towers from their sources, checked against their fingerprints, then the trained weights.

    Args:
        folder: A checkpoint folder.
        precision: Type of the weights; see `build`.
        sources: Other folders for the towers: `{"vision_source": ..., "language_source": ...}`.

    Raises:
        ConfigError: If a source is of no tower: another setting would make another model of it.
        CheckpointError: If a tower is not the one that the checkpoint was trained with, or weights are missing.
    """
    if unknown := sorted(set(sources or {}) - set(TOWERS)):
        raise ConfigError(f"{unknown[0]!r} names no tower of a model that answers; give {' or '.join(TOWERS)}.")
    manifest = read_manifest(folder)
    if not isinstance(manifest.config, VisionLanguageConfig):
        raise CheckpointError(f"{folder} is a dual encoder, not a model that answers. Measure it with `vlm evaluate`, or use vlm.load.")
    model = build(replace(manifest.config, **(sources or {})), precision=precision)  # type: ignore[arg-type]
    check_fingerprints(model, manifest, folder)
    load_trained(model, folder)
    return model


def open_model(
    name: str | Path, *, device: str = "auto", precision: str = "auto", run_root: Path = Path("runs"), **sources: str
) -> VisionLanguageModel:
    """A trained model, ready to be asked; also `vlm.load`.

    Args:
        name: A checkpoint folder, a run folder, a unique prefix of a run's name, or a hub id (`owner/name`, `owner/name@revision`).
        device: auto, cuda, mps or cpu.
        precision: fp32, bf16-mixed, bf16 or auto; see TrainConfig.precision.
        run_root: Where a prefix is looked up.
        sources: `vision_source`, `language_source`: other folders for the towers.

    Raises:
        ConfigError: If no or more than one run answers to the name, or the device does not exist.
        CheckpointError: If weights are missing or not those that the checkpoint was trained with.
    """
    place = torch.device(choose_device(device))
    folder = find_checkpoint(name, run_root=run_root)
    return load(folder, precision=choose_precision(precision, place), sources=sources).to(place)


def check_fingerprints(model: VisionLanguageModel, manifest: Manifest, folder: Path) -> None:
    """Compare the towers with those that a checkpoint was trained with.

    Raises:
        CheckpointError: If one differs.
    """
    for part, expected in manifest.fingerprints.items():
        seen = fingerprint_of(model, part)
        if seen != expected:
            raise CheckpointError(
                f"The {part} weights are not those that {folder} was trained with: fingerprint {seen[:12]}, expected {expected[:12]}. "
                f"Point --model.{part}-source to the original weights."
            )


def load_trained(model: Any, folder: Path) -> list[str]:
    """Copy a checkpoint's trained weights into a model, tensor by tensor; returns a line for each part that says what was loaded.

    Raises:
        CheckpointError: If the file is damaged or lacks a tensor of a part, one of its tensors has no place in the model or another shape there, or
            an adapter changes nothing.
    """
    path = folder / WEIGHTS
    own = {own_name(name): tensor for name, tensor in model.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            shapes = {name: file.get_slice(name).get_shape() for name in names}
        _refuse_misfits(own, shapes, folder)
        whole, adapted = _parts_of(name for name in shapes if not is_lora(name)), _parts_of(filter(is_lora, shapes))
        _refuse_quantized(model, whole, folder)
        model.altered |= whole
        _refuse_gaps(model, shapes, adapted | read_manifest(folder).adapted, folder)
        for name in shapes:
            with safe_open(path, framework="pt") as file:  # opened anew, because pages of the file stay in memory until it is closed
                own[name].copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Use another checkpoint of the run.") from error
    _refuse_idle(model, adapted, folder)
    for part in whole - adapted:
        renew_magnitudes(getattr(model, part))
    loaded = {part: [own[name].numel() for name in shapes if name.startswith(f"{part}.")] for part in model.PARTS}
    return [f"{part}: {len(sizes)} tensors, {sum(sizes):,} values" for part, sizes in sorted(loaded.items()) if sizes]


def _parts_of(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3]))


def _refuse_gaps(model: Any, shapes: dict[str, Any], adapted: set[str], folder: Path) -> None:
    """A part is stored whole or not at all; the adapter of a part that has none in the checkpoint is a new one."""
    missing = [name for name in trained_state(model) if name not in shapes and (not is_lora(name) or name.split(".")[0] in adapted)]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the tensors of the parts that it holds, among them {_first(missing)}. Use another checkpoint."
        )


def _refuse_quantized(model: Any, whole: set[str], folder: Path) -> None:
    if part := next((part for part in model.quantized if part in whole), None):
        raise CheckpointError(
            f"{folder} holds the {part} weights themselves, which do not load into quantized ones. Set --model.lora.{part}.quantize none."
        )


def _refuse_idle(model: Any, adapted: set[str], folder: Path) -> None:
    for part in sorted(adapted):
        if is_idle(getattr(model, part)):
            names = [name for name in trained_state(model) if name.startswith(f"{part}.") and ".lora_B." in name]
            raise CheckpointError(
                f"The adapter of {part} in {folder} changes nothing: its {len(names)} tensors lora_B are all zero, among them {_first(names)}. "
                "It was never trained, or its file was damaged; use another checkpoint."
            )


def _refuse_misfits(own: dict[str, Tensor], shapes: dict[str, Any], folder: Path) -> None:
    unknown = [name for name in shapes if name not in own]
    if unknown:
        adapter = next((name.split(".")[0] for name in unknown if is_lora(name)), None)
        hint = "" if adapter is None else f" It has a LoRA adapter, this model has none: set --model.lora.{adapter}.rank."
        if adapter and any(name.startswith(f"{adapter}.") and is_lora(name) for name in own):
            hint = f" Its LoRA adapter is on other layers or of another kind: set --model.lora.{adapter} to the values in its {MODEL}."
        raise CheckpointError(
            f"{folder} holds {len(unknown)} tensors that this model lacks, among them {_first(unknown)}.{hint} Compose the same parts."
        )
    different = [(name, tuple(shape), tuple(own[name].shape)) for name, shape in shapes.items() if tuple(shape) != tuple(own[name].shape)]
    if different:
        name, theirs, ours = different[0]
        raise CheckpointError(f"{folder}: {name!r} has shape {theirs}, this model needs {ours}. Compose the same parts, or leave --init-from out.")


def find_checkpoint(name: str | Path, *, run_root: Path = Path("runs")) -> Path:
    """The checkpoint folder behind a checkpoint, a run folder, a unique prefix of a run's name, or a hub id; of a run, the latest.

    A folder is a run's if it has `checkpoints`; the name of another one (`runs/demo`, the demo's report) is taken for a prefix.

    Raises:
        ConfigError: If nothing or more than one run answers to the name.
        CheckpointError: If the run has no checkpoint yet, or the hub does not give one.
    """
    if not str(name):
        raise ConfigError("The name of a model is empty. Give a run folder, a checkpoint folder, or a unique prefix of a run's name.")
    path = Path(name)
    if (path / MODEL).is_file():
        return path
    run = next((folder for folder in (path, run_root / path) if (folder / "checkpoints").is_dir()), None)
    if run is None and is_hub_id(name, run_root=run_root):
        return fetch_checkpoint(str(name), files=(MODEL, WEIGHTS))
    run = run or _run_by_prefix(path, run_root)
    folders = (run / "checkpoints").glob("step-*")
    steps = sorted((f for f in folders if (f / MODEL).is_file() and f.suffix != ".tmp"), key=lambda f: int(f.name.removeprefix("step-")))
    if not steps:
        raise CheckpointError(f"Run {run} has no checkpoint. Let it train to its first checkpoint, or name another run.")
    return steps[-1]


def _run_by_prefix(path: Path, run_root: Path) -> Path:
    parent = path.parent if path.parent != Path() else run_root
    runs = sorted(folder for folder in parent.glob("*+*") if folder.is_dir())
    matches = [folder for folder in runs if path.name and folder.name.startswith(path.name)]
    if len(matches) == 1:
        return matches[0]
    if not matches and path.is_dir():
        raise ConfigError(
            f"{path} is a folder, but neither a run (it has no checkpoints/) nor a checkpoint of vlm (it has no {MODEL}). Name a run, or turn a model of "
            "another layout into a checkpoint with `vlm import` (`vlm import --help`)."
        )
    shown = [folder.name for folder in (matches or runs)]
    problem = f"{len(matches)} runs begin with {path.name!r}" if matches else f"There is no run that begins with {path.name!r}"
    raise ConfigError(
        f"{problem} in {parent}.{' Name one of them.' if matches else _nearest(path.name, shown)} Runs: {listed(shown, MOST_NAMES) or 'none'}."
    )


def _nearest(name: str, runs: Sequence[str]) -> str:
    """The runs whose names, or as much of their beginnings as the name is long, are most like it: prefixes are allowed."""
    beginnings: dict[str, str] = {}
    for run in runs:
        beginnings.setdefault(run[: len(name)], run)
    near = [beginnings[start] for start in nearest(name, beginnings)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
