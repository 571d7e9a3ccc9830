"""HTML pages from templates, and files that are written whole or not at all. Knows no content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError


def filled(template: Path, values: Mapping[str, Any]) -> str:
    """The page of a template; a value that it names and does not get is an error.

    Args:
        template: Its file.
        values: What it shows.
    """
    import jinja2

    text = template.read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(text).render(values)


def write_whole(path: Path, content: str | bytes, *, remedy: str) -> Path:
    """Write a file under a temporary name and rename it; its folder is made if it is missing.

    Raises:
        ConfigError: If it cannot be written; ends with the remedy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = path.with_name(path.name + ".tmp")
        building.write_bytes(content.encode() if isinstance(content, str) else content)
        building.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. {remedy}") from error
    return path
