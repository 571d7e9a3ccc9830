"""Command line to config: a preset or a JSON file, then overrides such as `--model.lora.language.rank 64`. Resolves no part's name."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from vlm.conf.overview import families, presets_in_words
from vlm.conf.presets import PRESETS
from vlm.conf.schema import TrainConfig
from vlm.conf.serialize import read_config
from vlm.errors import ConfigError

T = TypeVar("T")

Positional = tyro.conf.Positional  # marks a field of a command's arguments that is given without a flag
Repeated = tyro.conf.UseAppendAction  # marks a tuple whose flag takes one value each time it is given, so that it swallows nothing behind it


def parse_train(argv: Sequence[str], *, prog: str) -> TrainConfig:
    """The config of a training run.

    Args:
        argv: A preset (`demo/align`) or a stored config (`runs/.../config.json`), then overrides.
        prog: How the command is called, for the help text.

    Raises:
        ConfigError: If neither a preset nor a file comes first.
        UnknownNameError: If the preset does not exist.
    """
    if not argv or argv[0].startswith("-"):
        if {"-h", "--help"} & set(argv):
            _print_preset_help(prog)
            sys.exit(0)
        raise ConfigError(f"Say which run: `{prog} PRESET [overrides]`. Presets: {presets_in_words()}.")
    base, *overrides = argv
    default = read_config(Path(base), TrainConfig) if base.endswith(".json") else PRESETS[base]
    description = f"Settings of {base}; each can be overridden. A composition of your own: start from any preset and name other parts."
    config = tyro.cli(TrainConfig, default=default, args=overrides, prog=f"{prog} {base}", description=description)
    return _rename_if_recomposed(config, default)


def _rename_if_recomposed(config: TrainConfig, default: TrainConfig) -> TrainConfig:
    """Drop the preset's name from a composition that is no longer the preset's."""
    parts = ("vision", "connector", "language")
    same = all(getattr(config.model, part) == getattr(default.model, part) for part in parts)
    if same or config.model.name != default.model.name:
        return config
    return replace(config, model=replace(config.model, name=""))


def _print_preset_help(prog: str) -> None:
    print(f"usage: {prog} PRESET [overrides]\n       {prog} runs/<run>/config.json [overrides]\n\npresets:")
    for heading, models in families().items():
        print(f"\n{heading}")
        for model in models:
            parts = model.configs[0].model
            print(f"  {model.name:48} {parts.vision} + {parts.connector} + {parts.language}")
    print(f"\nAll settings of a preset: {prog} PRESET --help")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, description: str, **options: Any) -> T:
    """The arguments of a small command, from a dataclass."""
    return tyro.cli(kind, args=argv, prog=prog, description=description, **options)
