"""`vlm data show DATASET --preset PRESET -n 8`: samples as the model of a preset gets them, as a page or in the terminal; loads no weights."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlm.conf.cli import Positional, parse
from vlm.conf.overview import presets_in_words
from vlm.conf.presets import PRESETS
from vlm.conf.schema import TrainConfig, VisionLanguageConfig
from vlm.errors import ConfigError

if TYPE_CHECKING:
    from vlm.data.page import Card, Encoder

PAGE = Path("runs/data.html")
SHORT = {"-n": "--num-samples"}


@dataclass(frozen=True)
class Arguments:
    """What to show. Defaults are the preset's."""

    dataset: Annotated[str, Positional]
    """Prepared dataset by name or folder, or a file, spelled like --stage.dataset of `vlm pretrain`."""
    preset: str
    """Preset whose model and template are meant (`vlm list presets`)."""
    model: VisionLanguageConfig
    """Changes of the preset's model, such as --model.language-source FOLDER for the tokenizer."""
    template: str = ""
    """Chat template (`vlm list templates`); empty: the model's."""
    max_length: int | None = None
    """Longest sequence in tokens, image tokens included; None: the language model's context."""
    reduced_jpeg: bool = False
    """Decode JPEG files as --stage.reduced-jpeg does."""
    split: str = ""
    """Split of the dataset; empty: train, or the only one."""
    num_samples: int = 8
    """How many samples, chosen at random; also `-n`."""
    seed: int = 7
    """Seed of the choice."""
    data_root: Path = Path("data")
    """Folder of the prepared datasets."""
    out: Path | None = None
    """HTML file to write; None: runs/data.html, or no file with --text."""
    text: bool = False
    """Print the samples in the terminal."""
    open: bool = False
    """Open the page in the browser."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.seed < 0:
            raise ConfigError(f"--num-samples is at least 1 and --seed at least 0; got {self.num_samples} and {self.seed}.")


def main(argv: Sequence[str]) -> None:
    """Write the page, or print the samples."""
    arguments = _parse(argv)
    from vlm.data.page import look
    from vlm.data.reader import open_dataset

    encoder = _encoder(arguments)
    samples = open_dataset(_spec(arguments), data_root=arguments.data_root, on_bad_row="skip")
    chosen = sorted(random.Random(arguments.seed).sample(range(len(samples)), min(arguments.num_samples, len(samples))))
    cards = [look(samples[i], encoder) for i in chosen]
    facts = _facts(arguments, encoder, len(samples))
    if arguments.text:
        _print(cards, facts)
    if arguments.out or not arguments.text:
        _write(arguments, cards, facts)


def _spec(arguments: Arguments) -> str:
    if not arguments.split:
        return arguments.dataset
    if "," in arguments.dataset:
        raise ConfigError(
            f"--split {arguments.split} is for one dataset; of several, write each with its own: a@{arguments.split},b@{arguments.split}."
        )
    return f"{arguments.dataset}@{arguments.split}"


def _print(cards: Sequence["Card"], facts: Mapping[str, str]) -> None:
    from vlm.commands.terminal import console
    from vlm.data.page import for_terminal, totals

    out = console()
    for card in cards:
        out.print(for_terminal(card), soft_wrap=True)
    print("\n".join([*(f"{label:10} {value}" for label, value in facts.items()), f"{'shown':10} {totals(cards)}"]))


def _write(arguments: Arguments, cards: Sequence["Card"], facts: Mapping[str, str]) -> None:
    from vlm.data.page import totals, write_page

    page = arguments.out or PAGE
    try:
        write_page(page, cards, title=f"{arguments.dataset} as {arguments.preset} gets it", facts=facts)
    except OSError as error:
        raise ConfigError(f"Cannot write {page} ({error.strerror}). Choose another file with --out.") from error
    print(f"{totals(cards)}; warnings: {sum(len(card.warnings) for card in cards)}\n{page}")
    if arguments.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _parse(argv: Sequence[str]) -> Arguments:
    argv = [SHORT.get(word, word) for word in argv]
    config = _preset(argv)
    stage = config.stage
    default = Arguments(stage.dataset, "tiny/align", config.model, stage.template, stage.max_length, stage.reduced_jpeg, data_root=config.data_root)
    return parse(Arguments, argv, prog="vlm data show", description="Show samples as a model gets them; loads no weights.", default=default)


def _preset(argv: Sequence[str]) -> TrainConfig:
    """The preset that the arguments name: its model gives the defaults of all others."""
    named = [after for word, after in itertools.pairwise(argv) if word == "--preset"]
    named += [word.removeprefix("--preset=") for word in argv if word.startswith("--preset=")]
    if named:
        return PRESETS[named[-1]]
    if {"-h", "--help"} & set(argv):
        return PRESETS["tiny/align"]
    raise ConfigError(f"Say for which model: `vlm data show DATASET --preset PRESET`. Presets: {presets_in_words()}.")


def _encoder(arguments: Arguments) -> "Encoder":
    """Template, tokenizer, image policy and token counts of the model, without its weights.

    Raises:
        VLMError: If a name is unknown, parts do not fit, or the tokenizer cannot be found.
    """
    import torch

    from vlm.backbones.language.chat_templates import fit_template
    from vlm.backbones.loading import Load
    from vlm.data.page import Encoder
    from vlm.messages import IMAGE_PLACEHOLDER
    from vlm.models.build import resolve

    model = replace(arguments.model, template=arguments.template or arguments.model.template)
    parts = resolve(model)
    template = parts.template or parts.language.template
    if template is None:
        raise ConfigError(f"No chat template is known for {model.language}. Name one with --template (`vlm list templates`).")
    tokenizer = parts.language.tokenizer(parts.language, model.language_source or parts.language.source)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]}, replace_extra_special_tokens=False)
    with torch.device("meta"):  # of a CNN, another feature layer has another number of patches
        vision: Any = parts.vision.build(parts.vision, Load(source=None, feature_layer=model.feature_layer))
    tokens_per_tile = parts.connector.num_tokens(vision.num_patches)
    return Encoder(
        template=fit_template(template, tokenizer),
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER),
        policy=replace(parts.image_policy, reduced_jpeg=arguments.reduced_jpeg),
        tokens_per_image=lambda layout: layout.num_tiles * tokens_per_tile,
        max_length=arguments.max_length or parts.language.max_length,
    )


def _facts(arguments: Arguments, encoder: "Encoder", num_samples: int) -> dict[str, str]:
    policy, tokenizer = encoder.policy, encoder.tokenizer
    return {
        "dataset": f"{arguments.dataset}{f', split {arguments.split}' if arguments.split else ''}: {num_samples:,} samples",
        "preset": f"{arguments.preset}: {arguments.model.vision} + {arguments.model.connector} + {arguments.model.language}",
        "template": encoder.template.name,
        "tokenizer": f"{arguments.model.language_source or arguments.model.language}, {len(tokenizer):,} tokens",
        "pictures": f"{policy.mode} to {policy.size} x {policy.size} pixels, {policy.resample}{', from JPEG at a fraction of its size' if policy.reduced_jpeg else ''}",
        "longest": f"{encoder.max_length:,} tokens",
    }
