"""Settings of a dataset's preparation from words such as `max_questions=2`. Knows no single dataset."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from vlm.conf.serialize import from_dict
from vlm.errors import ConfigError


def options_from(pairs: Sequence[str], defaults: Any, *, dataset: str) -> Any:
    """The dataset's options with some of them set.

    Args:
        pairs: `key=value`; the value is JSON (`3`, `true`, `["a", "b"]`) or else plain text.
        defaults: The dataset's own dataclass.
        dataset: Name of the dataset, for messages.

    Raises:
        UnknownNameError: If a key is no option of the dataset; the options are listed.
        ConfigError: If a pair is none, or a value is of the wrong kind or out of range.
    """
    origin = f"--option of {dataset}"
    if pairs and not fields(defaults):
        raise ConfigError(f"The preparation of {dataset} has no options; leave out --option {pairs[0]}.")
    values = asdict(defaults)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{origin} is key=value, got {pair!r}. Keys: {', '.join(values)}.")
        value = _json_or_text(text)
        if isinstance(values.get(key), bool) and not isinstance(value, bool):  # bool("no") is True
            raise ConfigError(f"{origin}: {key} is true or false, got {text!r}.")
        values[key] = text if isinstance(values.get(key), str) else value
    return from_dict(values, type(defaults), origin=origin)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
