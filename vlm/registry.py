"""Names to specs: a Registry reads `SPECS` from every module of one package. Knows no kind of part and imports no torch itself.

Adding a module with a `SPECS` dictionary to the package is all it takes to add its names; nothing is decorated and no table is edited. A script adds a part
of its own with `Registry.add`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from vlm.errors import ConfigError, UnknownNameError

Spec = TypeVar("Spec")


class Registry(Mapping[str, Spec], Generic[Spec]):
    """A mapping from names to the specs that the modules of a package declare.

    A module may declare `SPECS: dict[str, Spec]`, and `OPEN_SPECS: dict[str, Callable[[str], Spec]]` for families of names that are not listed:
    `{"timm:<name>": f}` answers `timm:resnet50` with `f("resnet50")`; what stands behind the colon is for readers. Other names for an entry stand in its
    spec's `aliases`, or in the module's `ALIASES: dict[str, str]`, other name to registered name, where specs have no such field.
    """

    def __init__(self, package: str, *, kind: str):
        """Remember where to look; modules are imported at the first look-up.

        Args:
            package: Dotted name of the package whose modules are read.
            kind: What an entry is, in the singular, for messages: "connector".
        """
        self.package, self.kind = package, kind

    def add(self, name: str, spec: Spec) -> None:
        """Add an entry for as long as this process runs: a part that a script of the user's own brings along. What calls the script again needs it again.

        Args:
            name: The name; the spec's `aliases` answer as well.
            spec: The entry.

        Raises:
            ConfigError: If the name or an alias of the spec is taken.
        """
        specs, aliases, _ = self._tables
        names = (name, *getattr(spec, "aliases", ()))
        if taken := [key for key in names if key in self]:
            raise ConfigError(f"There is a {self.kind} {taken[0]!r} already. Choose another name.")
        specs[name] = spec
        aliases.update(dict.fromkeys(names, name))

    @cached_property
    def _tables(self) -> tuple[dict[str, Spec], dict[str, str], dict[str, Callable[[str], Spec]]]:
        specs: dict[str, Spec] = {}
        owner: dict[str, str] = {}
        openers: dict[str, Callable[[str], Spec]] = {}
        aliases: dict[str, str] = {}
        for module in self._modules():
            own = getattr(module, "SPECS", {})
            others = [(key, name) for name, spec in own.items() for key in (name, *getattr(spec, "aliases", ()))]
            for key, name in [*others, *getattr(module, "ALIASES", {}).items()]:
                if key in owner:
                    raise ValueError(f"{self.kind} {key!r} is declared by both {owner[key]} and {module.__name__}.")
                if name not in own:
                    raise ValueError(f"{module.__name__} has an alias for the {self.kind} {name!r}, which it does not declare.")
                owner[key] = module.__name__
                aliases[key] = name
            specs |= own
            openers |= getattr(module, "OPEN_SPECS", {})
        return specs, aliases, openers

    @cached_property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Registered names of each module in the order of its `SPECS`, under the first line of its docstring."""
        declared = [(module, tuple(getattr(module, "SPECS", {}))) for module in self._modules()]
        return {(module.__doc__ or module.__name__).strip().splitlines()[0]: names for module, names in declared if names}

    def aliases_of(self, name: str) -> tuple[str, ...]:
        """Other names of a registered entry."""
        return tuple(alias for alias, registered in self._tables[1].items() if registered == name != alias)

    def _modules(self) -> Iterator[Any]:
        path = importlib.import_module(self.package).__path__
        for info in sorted(pkgutil.iter_modules(path), key=lambda info: info.name):
            yield importlib.import_module(f"{self.package}.{info.name}")

    def resolve(self, name: str) -> str:
        """The registered name behind a name or alias; open names stand for themselves.

        Raises:
            UnknownNameError: If nothing answers to the name; the nearest names are given.
        """
        _, aliases, openers = self._tables
        if name in aliases:
            return aliases[name]
        prefix, colon, rest = name.partition(":")
        if colon and rest and any(form.startswith(f"{prefix}:") for form in openers):
            return name
        raise UnknownNameError(self.kind, name, [*aliases, *openers])

    def __getitem__(self, name: str) -> Spec:
        """The spec of a name, an alias or an open name."""
        name = self.resolve(name)
        specs, _, openers = self._tables
        if name in specs:
            return specs[name]
        prefix, _, rest = name.partition(":")
        (opener,) = [opener for form, opener in openers.items() if form.startswith(f"{prefix}:")]
        return opener(rest)

    @property
    def open_names(self) -> tuple[str, ...]:
        """Forms of the names that are not listed, such as `timm:<name>`, sorted."""
        return tuple(sorted(self._tables[2]))

    def __contains__(self, name: object) -> bool:
        """True for whatever `[]` answers."""
        try:
            self.resolve(str(name))
        except UnknownNameError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """Registered names, without aliases, sorted."""
        return iter(sorted(self._tables[0]))

    def __len__(self) -> int:
        """Number of registered entries."""
        return len(self._tables[0])
