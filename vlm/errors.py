"""What a user can cause: errors that name the value seen, the value wanted and the remedy. Knows nothing else of the package."""

import difflib
from collections.abc import Iterable, Sequence

WEIGHTS_REMEDY = (  # with the flags of training; `vlm.__main__` names those that a command has
    "Name a local folder with --model.vision-source or --model.language-source (of contrastive models --model.image-source or --model.text-source; "
    "in Python vision_source and so on), or check the network and your login to the hub."
)
MOST_NAMES = 50  # that a message lists; there are more datasets than a line can hold


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Up to three known names that are most like one, whatever their case, the nearest first.

    Args:
        name: The name that was asked for.
        known: Every name that would have been accepted.
        cutoff: Least likeness, 0 to 1 (`difflib`).
    """
    names = {one.lower(): one for one in known}
    return [names[found] for found in difflib.get_close_matches(name.lower(), names, n=3, cutoff=cutoff)]


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def reason_of(error: BaseException) -> str:
    """What went wrong, on one line: in the system's words, which leave the path out, where it has some."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__


class VLMError(ValueError):
    """Base of every error that a user can cause; a command prints it on one line and exits with code 2."""


class UnknownNameError(VLMError):
    """A name that no registry, preset or dataset has."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        """Name the nearest known names first, then all of them, unless they are very many.

        Args:
            kind: What was looked up, in the singular: "connector", "preset".
            name: The name that was asked for.
            known: Every name that would have been accepted.
        """
        known = sorted(known)
        near = nearest(name, known, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        all_of_them = "" if not known else f" Known: {', '.join(known)}." if len(known) <= MOST_NAMES else f" {len(known)} are known: see `vlm list`."
        super().__init__(f"No {kind} named {name!r}.{hint}{all_of_them}")
        self.kind, self.name, self.known = kind, name, known


class ConfigError(VLMError):
    """Settings that contradict each other, the model or the machine."""


class DataFormatError(VLMError):
    """A data file, row or picture that cannot be read as what it claims to be."""


class CheckpointError(VLMError):
    """Weights that are missing, of other parts than stated, or of another shape."""


class Preempted(VLMError):
    """A run that was told to stop, and has saved where it stands."""


class MissingPackageError(VLMError):
    """An optional package that is not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str | None = None, install: str | None = None):
        """Give the install line.

        Args:
            package: Name to pip-install.
            needed_for: What asked for it, as a noun phrase.
            extra: The extra of `vlm` that contains it, if any.
            install: The whole install line, where neither the extra nor the plain name is right.
        """
        line = install or (f'pip install "vlm[{extra}]"' if extra else f"pip install {package}")
        super().__init__(f"{needed_for} needs the package {package!r}, which is not installed. Run: {line}")
