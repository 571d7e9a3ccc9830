"""`vlm import FORMAT PATH OUT`: a checkpoint of Prismatic, LLaVA, transformers or xtuner as one of ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from vlm.conf.cli import Positional, parse
from vlm.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    """What to import, and where to."""

    format: Annotated[Literal["prismatic", "llava", "hf", "xtuner"], Positional]
    """prismatic: a run folder; llava: LLaVA's own layout; hf: transformers' LLaVA; xtuner: any of its three layouts."""
    path: Annotated[Path, Positional]
    """The folder of the checkpoint; of prismatic also one of its .pt files."""
    out: Annotated[Path, Positional]
    """Folder to write; must not exist."""
    vision_source: str = ""
    """Folder or hub id of the vision backbone that the checkpoint does not hold; empty: the one that it names."""
    language_source: str = ""
    """Folder or hub id of the base language model, of which a checkpoint that holds the weights needs config and tokenizer alone; empty: the one it names."""
    tokenizer_source: str = ""
    """Folder or hub id of the tokenizer, where it does not lie beside the language model."""
    template: str = ""
    """Chat template (`vlm list templates`); empty: the one that the checkpoint was trained with, as far as it says."""
    prompt: Literal["trained", "original"] = "trained"
    """prismatic: prompts as the model was trained, or as the original code writes them at inference; they differ for Phi."""
    lora_alpha: float | None = None
    """prismatic: the adapter's alpha, which no checkpoint says; None: the fork's."""


def main(argv: Sequence[str]) -> None:
    """Import, and print what was written and the lines to use it."""
    arguments = parse(Arguments, argv, prog="vlm import", description="Write a checkpoint of another trainer as one of ours.")
    if arguments.format != "prismatic" and (arguments.prompt != "trained" or arguments.lora_alpha is not None):
        raise ConfigError("--prompt and --lora-alpha are for prismatic. Leave them out; --template names another prompt.")
    done = _importer(arguments)()
    for note in done.notes:
        print(note)
    config = done.config
    print(f"{done.folder}: {config.vision} + {config.connector} + {config.language}, template {config.template}")
    print(f'Talk to it: vlm chat {done.folder} --image PICTURE "What is this?"')


def _importer(arguments: Arguments) -> Callable[[], Any]:
    from functools import partial

    from vlm.models.foreign import huggingface, llava, prismatic, xtuner
    from vlm.models.foreign.assemble import Sources

    sources = Sources(arguments.vision_source, arguments.language_source, arguments.tokenizer_source, arguments.template)
    if arguments.format == "prismatic":
        asked = arguments.prompt == "original"
        return partial(prismatic.import_prismatic, arguments.path, arguments.out, sources, asked=asked, lora_alpha=arguments.lora_alpha)
    importers = {"llava": llava.import_llava, "hf": huggingface.import_huggingface, "xtuner": xtuner.import_xtuner}
    return partial(importers[arguments.format], arguments.path, arguments.out, sources)
