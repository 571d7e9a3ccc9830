from pathlib import Path

import pytest

from vlm.data.preparation.swap import put_in_place, recover, unfinished


def write(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "file").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("before", [True, False])
def test_finished_folder_replaces_what_was_there(tmp_path: Path, before: bool):
    folder = tmp_path / "a"
    if before:
        write(folder, "old")
    write(unfinished(folder), "new")
    put_in_place(folder)
    assert [(path.name, (path / "file").read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("a", "new")]


def test_half_written_folder_of_a_killed_process_is_deleted(tmp_path: Path):
    write(tmp_path / "a", "old")
    write(unfinished(tmp_path / "a"), "half")
    write(tmp_path / ".a.b.tmp", "of another folder")
    recover(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.b.tmp", "a"]


def test_folder_that_was_put_aside_by_a_killed_process_comes_back(tmp_path: Path):
    write(tmp_path / ".a.old", "old")
    write(unfinished(tmp_path / "a"), "new")
    recover(tmp_path / "a")
    assert [(path.name, (path / "file").read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("a", "old")]
