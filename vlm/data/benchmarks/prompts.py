"""Prompt templates and class names of zero-shot classification. `{c}` is the place of the class name, as in CLIP_benchmark.

Sources: CLIP's `data/prompts.md` (openai/CLIP; 18 templates for CIFAR, 80 for ImageNet) as CLIP_benchmark 1.6.2 has them. ImageNet's names and templates are
those that the package open_clip ships; they are equal to CLIP_benchmark's.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, DataFormatError, MissingPackageError, UnknownNameError, listed

PLACE = "{c}"
_SHOTS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
_FORMS = (*((shot, "") for shot in _SHOTS), ("", "small "), ("", "big "))
CIFAR_TEMPLATES = tuple(f"a {shot}photo of {article} {size}{PLACE}." for article in ("a", "the") for shot, size in _FORMS)
GENERIC_TEMPLATES = (
    "a photo of a {c}.",
    "a photo of the {c}.",
    "a picture of a {c}.",
    "an image of a {c}.",
    "a close-up photo of a {c}.",
    "a cropped photo of a {c}.",
)
SINGLE_TEMPLATES = ("a photo of a {c}.",)  # CLIP (arXiv:2103.00020), section 3.1.4
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee
clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_NAMES = tuple(_CIFAR100.split())


@cache
def _open_clip() -> Any:
    """open_clip's file of names and templates alone: the package itself needs torchvision and half a minute."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise MissingPackageError("open_clip_torch", needed_for="The names and templates of ImageNet", extra="openclip")
    spec = importlib.util.spec_from_file_location("vlm_zero_shot_metadata", Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imagenet_names() -> tuple[str, ...]:
    """The 1,000 names in the order of the sorted wnids. Two of them name two classes each: missile and sunglasses.

    Raises:
        MissingPackageError: If open_clip is not installed.
    """
    return tuple(_open_clip().IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[str, ...]:
    """The 80 templates.

    Raises:
        MissingPackageError: If open_clip is not installed.
    """
    return tuple(template(PLACE) for template in _open_clip().OPENAI_IMAGENET_TEMPLATES)


TEMPLATES: dict[str, Callable[[], tuple[str, ...]]] = {
    "cifar": lambda: CIFAR_TEMPLATES,
    "imagenet": imagenet_templates,
    "generic": lambda: GENERIC_TEMPLATES,
    "single": lambda: SINGLE_TEMPLATES,
}
CLASS_NAMES: dict[str, Callable[[], tuple[str, ...]]] = {
    "cifar10": lambda: CIFAR10_NAMES,
    "cifar100": lambda: CIFAR100_NAMES,
    "imagenet1k": imagenet_names,
}


def templates_of(name: str) -> tuple[str, ...]:
    """A prompt set.

    Args:
        name: A name of `TEMPLATES`, or a file with a template a line.

    Raises:
        UnknownNameError: If it is neither.
        DataFormatError: If a line has no `{c}`, or there is no line.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]()
    if not Path(name).is_file():
        raise UnknownNameError("prompt set or file", name, TEMPLATES)
    templates = tuple(line for line in _lines(Path(name)) if line)
    for template in templates:
        if PLACE not in template:
            raise DataFormatError(f"{name}: the template {template!r} has no {PLACE}, the place of the class name.")
    if not templates:
        raise DataFormatError(f"{name} has no template; expected one a line, such as {SINGLE_TEMPLATES[0]!r}.")
    return templates


def prompts_of(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Each class in each template."""
    return [[template.replace(PLACE, name) for template in templates] for name in class_names]


def read_names(path: Path, keys: Sequence[str]) -> tuple[str, ...]:
    """The names of classes out of a file.

    Args:
        path: A `.txt` file with a name a line, in the order of `keys`, or with `key<TAB>name`; or a `.json` file with a list or an object of the same.
        keys: What the data calls its classes: the sorted names of folders.

    Raises:
        DataFormatError: If the file cannot be read, has another number of names, names a class that the data lacks, or lacks one.
    """
    found = _json_names(path) if path.suffix.lower() == ".json" else _text_names(path)
    if isinstance(found, dict):
        unknown, unnamed = [key for key in found if key not in keys], [key for key in keys if key not in found]
        if unknown:
            raise DataFormatError(f"{path}: {unknown[0]!r} is no class of the data, whose classes are {listed(keys)}.")
        if unnamed:
            raise DataFormatError(f"{path} has no name for {len(unnamed)} of {len(keys)} classes: {listed(unnamed)}.")
        return tuple(found[key] for key in keys)
    if len(found) != len(keys):
        raise DataFormatError(
            f"{path} has {len(found)} names, the data has {len(keys)} classes: {listed(keys)}. Give one name for each, in this order."
        )
    return tuple(found)


def refuse_equal_names(class_names: Sequence[str], *, where: Path) -> None:
    """Make sure that every class has a name of its own, and that none is empty: prompts of two classes with one name are the same.

    Raises:
        DataFormatError: If that is not so.
    """
    if not all(name.strip() for name in class_names):
        raise DataFormatError(f"{where}: class {list(map(str.strip, class_names)).index('') + 1} has an empty name.")
    equal = [name for name, count in Counter(class_names).items() if count > 1]
    if equal:
        raise DataFormatError(
            f"{where}: {len(equal)} name(s) stand for several classes, which no prompt can tell apart: {listed(equal)}. "
            "Merge the classes, or give each a name of its own with --names."
        )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path} is not UTF-8: {error.reason}. Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


def _text_names(path: Path) -> list[str] | dict[str, str]:
    lines = [line for line in _lines(path) if line]
    if lines and all("\t" in line for line in lines):
        pairs = [line.split("\t", 1) for line in lines]
        return {key.strip(): name.strip() for key, name in pairs}
    return lines


def _json_names(path: Path) -> list[str] | dict[str, str]:
    try:
        value = json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise DataFormatError(f"{path} is not JSON: {error}.") from None
    names = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataFormatError(f"{path} is neither a list of names nor an object of classes and their names.")
    return value
