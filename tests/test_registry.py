"""One dropped file adds names; typos and duplicates are caught."""

import sys

import pytest

from vlm.errors import UnknownNameError
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
