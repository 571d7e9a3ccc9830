"""One dropped file adds names; typos and duplicates are caught."""

import sys

import pytest

from vlm.errors import ConfigError, UnknownNameError
from vlm.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "parts_for_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "one.py").write_text(
        "class Spec:\n    aliases = ('uno',)\nSPECS = {'one': Spec()}\nOPEN_SPECS = {'any:<thing>': lambda rest: rest.upper()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("parts_for_test")]:
        del sys.modules[name]


def test_a_dropped_file_makes_its_names_appear(package):
    (package / "two.py").write_text("SPECS = {'two': 2}\n")
    assert list(Registry("parts_for_test", kind="part")) == ["one", "two"]


def test_aliases_and_open_names_resolve(package):
    registry = Registry("parts_for_test", kind="part")
    assert registry.resolve("uno") == "one"
    assert registry["any:thing"] == "THING"
    assert registry.open_names == ("any:<thing>",)
    assert "uno" in registry
    assert "nope" not in registry


def test_two_files_with_one_name_are_refused(package):
    (package / "two.py").write_text("SPECS = {'uno': 2}\n")
    with pytest.raises(ValueError, match=r"part 'uno' is declared by both parts_for_test.one and parts_for_test.two"):
        list(Registry("parts_for_test", kind="part"))


def test_error_lists_no_names_where_there_are_none():
    assert str(UnknownNameError("run", "x", ())) == "No run named 'x'."


def test_typo_names_the_nearest_and_all_known(package):
    with pytest.raises(UnknownNameError, match=r"No part named 'oen'\. Did you mean .*'one'.* Known: any:<thing>, one, uno\."):
        Registry("parts_for_test", kind="part")["oen"]


def test_other_names_of_specs_without_such_a_field_stand_in_the_module(package):
    (package / "two.py").write_text("'''Numbers.\n\nMore.\n'''\nSPECS = {'zwei': 2, 'drei': 3}\nALIASES = {'two': 'zwei'}\n")
    registry = Registry("parts_for_test", kind="part")
    assert registry["two"] == 2
    assert "two" not in list(registry)
    assert registry.aliases_of("zwei") == ("two",)
    assert registry.aliases_of("one") == ("uno",)
    assert registry.families == {"parts_for_test.one": ("one",), "Numbers.": ("zwei", "drei")}


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"two": "tow"}, "parts_for_test.two has an alias for the part 'tow', which it does not declare"),
        ({"uno": "zwei"}, "part 'uno' is declared by both parts_for_test.one and parts_for_test.two"),
    ],
)
def test_alias_of_nothing_and_alias_that_is_taken_are_refused(package, aliases, message):
    (package / "two.py").write_text(f"SPECS = {{'zwei': 2}}\nALIASES = {aliases}\n")
    with pytest.raises(ValueError, match=message):
        list(Registry("parts_for_test", kind="part"))


def test_a_script_adds_entries_of_its_own(package):
    registry = Registry("parts_for_test", kind="part")
    registry.add("mine", 3)
    assert (registry["mine"], list(registry)) == (3, ["mine", "one"])
    assert list(Registry("parts_for_test", kind="part")) == ["one"]
    for taken in ("mine", "uno", "any:thing"):
        with pytest.raises(ConfigError, match=f"There is a part '{taken}' already"):
            registry.add(taken, 4)
    assert registry["mine"] == 3
