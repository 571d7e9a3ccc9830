"""The configuration file of the tool that `vlm score` stands in for (nick-nikzad/CLIP, image_text_sim_clip.py), and of `vlm score` itself. Reads YAML.

Its keys: csv_path, image_path ("url", or a folder of files named after the URL's fourth part), use_cuda, pretrained_model, batch_size, img_resize. Any
setting of `vlm.score.job.Job` may stand beside them.
"""

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from vlm.errors import ConfigError, DataFormatError, reason_of
from vlm.score.job import Job

log = logging.getLogger(__name__)

URL, CAPTION = "url", "caption"  # the columns that the tool reads
STAND_IN = "{4}.png"  # its get_image_path: url.split('/')[4] + ".png"
ORIGINAL = ("csv_path", "image_path", "use_cuda", "pretrained_model", "img_resize")  # batch_size is a setting of both


def read_job_config(path: Path) -> dict[str, Any]:
    """Settings of a `Job` from a YAML file.

    Raises:
        DataFormatError: If the file is no YAML mapping.
        ConfigError: If a key is unknown or its value is of another kind.
    """
    stated = _mapping(path)
    known = {field.name for field in fields(Job)}
    own = {name.replace("-", "_"): value for name, value in stated.items() if name not in ORIGINAL}
    if unknown := sorted(own.keys() - known):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}. Known are {', '.join((*ORIGINAL, *sorted(known)))}.")
    return _translated(stated, path) | {name: _value(name, value, path) for name, value in own.items()}


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataFormatError(f"--config {path} cannot be read: {reason_of(error)}. Name a readable YAML file.") from None
    if not isinstance(stated, dict) or not all(isinstance(name, str) for name in stated):
        raise DataFormatError(f"--config {path} holds no settings: expected lines such as `csv_path: pairs.csv`.")
    return stated


def _translated(stated: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The original's keys as settings."""
    found: dict[str, Any] = {}
    if "csv_path" in stated:
        found |= {"pairs": (str(stated["csv_path"]),), "image_col": URL, "text_col": CAPTION}
    if "image_path" in stated:
        where = str(stated["image_path"])
        found |= {"images": "url"} if where == URL else {"images": "local", "image_root": Path(where), "url_file": STAND_IN}
    if "use_cuda" in stated:
        if not isinstance(stated["use_cuda"], bool):
            raise ConfigError(f"{path}: use_cuda is true or false, got {stated['use_cuda']!r}.")
        found["device"] = "auto" if stated["use_cuda"] else "cpu"  # the original falls back to the CPU as well
    if "pretrained_model" in stated:
        found["model"] = str(stated["pretrained_model"])
    if "img_resize" in stated:
        log.warning(
            "img_resize %s has no effect: squashing pictures first changes their scores; the model's own preprocessing is used.", stated["img_resize"]
        )
    return found


def _value(name: str, value: Any, path: Path) -> Any:
    """A value of YAML as the setting's type."""
    kind = get_type_hints(Job)[name]
    if kind == tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{path}: {name} is a list of texts, got {value!r}.")
        return tuple(texts)
    if kind in (Path, Path | None):
        return None if value is None else Path(str(value))
    if kind is str and isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if kind == int | None and (value is None or type(value) is int):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    raise ConfigError(f"{path}: {name} is of type {getattr(kind, '__name__', kind)}, got {value!r}.")
