"""Configs to JSON and back; unknown keys are refused with the nearest known one. Knows the schema, not what the values mean."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from vlm.conf.schema import FORMAT_VERSION
from vlm.errors import ConfigError, UnknownNameError

T = TypeVar("T")

_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_unstructure_hook(Path, str)
_converter.register_structure_hook(Path, lambda value, _: Path(value))


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return _converter.unstructure(config)


def from_dict(values: dict[str, Any], kind: type[T], *, origin: str) -> T:
    """A config dataclass from plain JSON values.

    Args:
        values: What `to_dict` made.
        kind: The dataclass.
        origin: Where the values come from, for messages.

    Raises:
        UnknownNameError: If a key is not a setting.
        ConfigError: If a value is missing or of the wrong kind.
    """
    _refuse_unknown_keys(values, kind, origin)
    try:
        return _converter.structure(values, kind)
    except cattrs.errors.ClassValidationError as error:
        if refusals := error.split(ConfigError)[0]:
            raise ConfigError(f"{origin}: {'; '.join(map(str, _leaves(refusals)))}") from error
        raise ConfigError(f"{origin}: {'; '.join(cattrs.transform_error(error))}") from error


def _leaves(error: BaseException) -> list[BaseException]:
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)] if isinstance(error, BaseExceptionGroup) else [error]


def _refuse_unknown_keys(values: Any, kind: Any, origin: str, path: str = "") -> None:
    if not (is_dataclass(kind) and isinstance(values, dict)):
        return
    known = {field.name: field.type for field in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise UnknownNameError(f"setting in {origin}{f' under {path!r}' if path else ''}", key, known)
        _refuse_unknown_keys(value, known[key], origin, f"{path}.{key}".lstrip("."))


def write_config(config: Any, path: Path) -> None:
    """Store a config with its format version; the file is replaced in one step."""
    text = json.dumps({"format_version": FORMAT_VERSION} | to_dict(config), indent=2) + "\n"
    building = path.with_name(path.name + ".tmp")
    building.write_text(text, encoding="utf-8")
    building.rename(path)


def kind_of(path: Path, kinds: dict[str, type]) -> type:
    """Which kind of run a stored config is of: that whose word is a setting of its model; the first where no word is, so that `read_config` says why."""
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        return next(kind for word, kind in kinds.items() if word in model)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return next(iter(kinds.values()))


def read_config(path: Path, kind: type[T]) -> T:
    """Read a stored config.

    Raises:
        ConfigError: If the file is missing, is not JSON, or is of a newer format.
        UnknownNameError: If a key is not a setting.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}.") from None
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected an object with the settings of a run.")
    version = values.pop("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ConfigError(f"{path} has format_version {version!r}; this vlm reads up to {FORMAT_VERSION}. Upgrade vlm.")
    return from_dict(values, kind, origin=str(path))
