"""Command line to config: a preset or a JSON file, then overrides such as `--model.lora.language.rank 64`. Resolves no part's name."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from vlm.conf.contrastive import ContrastiveConfig
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.conf.overview import CONTRASTIVE, families, presets_in_words
from vlm.conf.presets import PRESETS
from vlm.conf.schema import RunConfig, Schedule, TrainConfig
from vlm.conf.serialize import kind_of, read_config
from vlm.errors import ConfigError, UnknownNameError

T = TypeVar("T")

Positional = tyro.conf.Positional  # marks a field of a command's arguments that is given without a flag
Repeated = tyro.conf.UseAppendAction  # marks a tuple whose flag takes one value each time it is given, so that it swallows nothing behind it


def parse_train(argv: Sequence[str], *, prog: str) -> RunConfig:
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
    default = _stored(Path(base)) if base.endswith(".json") else find_preset(base)
    description = f"Settings of {base}; each can be overridden. A composition of your own: start from any preset and name other parts."
    config = tyro.cli(type(default), default=default, args=overrides, prog=f"{prog} {base}", description=description)
    return _without_replaced_epochs(_rename_if_recomposed(config, default), default)


def find_preset(name: str) -> RunConfig:
    """A preset of either kind of model.

    Raises:
        UnknownNameError: If it does not exist; the nearest names are given.
    """
    for registry in (PRESETS, CONTRASTIVE_PRESETS):
        try:
            return registry[name]
        except UnknownNameError:
            continue
    raise UnknownNameError("preset", name, {**PRESETS, **CONTRASTIVE_PRESETS})


def _stored(path: Path) -> RunConfig:
    """A stored config of either kind of model."""
    return read_config(path, kind_of(path, {"vision": TrainConfig, "image": ContrastiveConfig}))


def _rename_if_recomposed(config: RunConfig, default: RunConfig) -> RunConfig:
    """Drop the preset's name from a composition that is no longer the preset's."""
    parts = [part for part in ("vision", "connector", "language", "image", "text", "text_head", "image_head") if hasattr(default.model, part)]
    same = all(getattr(config.model, part) == getattr(default.model, part) for part in parts)
    if same or config.model.name != default.model.name:
        return config
    return replace(config, model=replace(config.model, name=""))


def _without_replaced_epochs(config: RunConfig, default: RunConfig) -> RunConfig:
    """Drop the preset's epochs where a number of steps was given in their place: nobody asked for them."""
    replaced = config.stage.max_steps is not None and default.stage.max_steps is None and config.stage.epochs == default.stage.epochs
    return replace(config, stage=replace(config.stage, epochs=Schedule.epochs)) if replaced else config


def _print_preset_help(prog: str) -> None:
    print(f"usage: {prog} PRESET [overrides]\n       {prog} runs/<run>/config.json [overrides]\n\npresets:")
    for heading, models in families().items():
        print(f"\n{heading}")
        for model in models:
            parts = model.configs[0].model
            print(f"  {model.name:48} {parts.vision} + {parts.connector} + {parts.language}")
    print(f"\n{CONTRASTIVE}")
    for name, config in CONTRASTIVE_PRESETS.items():
        print(f"  {name:48} {config.model.image} + {config.model.text_head.kind} + {config.model.text}")
    print(f"\nAll settings of a preset: {prog} PRESET --help")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, description: str, **options: Any) -> T:
    """The arguments of a small command, from a dataclass."""
    return tyro.cli(kind, args=argv, prog=prog, description=description, **options)
