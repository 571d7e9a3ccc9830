from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from vlm.data.archives.store import ArchiveStore
from vlm.data.datasets.base import Archive
from vlm.errors import ConfigError, DataFormatError


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with `rows.parquet` and `pictures.zip`."""
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "rows.parquet").write_bytes(b"PAR1 and so on PAR1")
    with ZipFile(folder / "pictures.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    return folder


def archives(folder: Path) -> tuple[Archive, ...]:
    return tuple(
        Archive(file=name, url=f"https://example.org/{name}", size=(folder / name).stat().st_size) for name in ("rows.parquet", "pictures.zip")
    )


def names(store: ArchiveStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()} if store.folder.exists() else set()


def test_archives_are_folders_and_other_files_themselves(tmp_path: Path, given: Path):
    store = ArchiveStore(tmp_path / "data", mirror=str(given))
    places = store.open(archives(given))
    assert places.opened == {"rows.parquet": store.folder / "rows.parquet", "pictures.zip": store.folder / "pictures.zip.files"}
    assert (places.opened["pictures.zip"] / "a.txt").read_text(encoding="utf-8") == "a"
    assert store.needs(archives(given)).disk_bytes == 0 and not store.needs(archives(given))


def test_everything_made_for_a_preparation_goes_with_it(tmp_path: Path, given: Path):
    store = ArchiveStore(tmp_path / "data", mirror=str(given))
    store.open(archives(given))
    (store.folder / "pictures.zip.preparing").touch()
    store.clean(archives(given))
    assert not store.folder.exists()


def test_what_another_dataset_has_there_stays(tmp_path: Path, given: Path):
    store = ArchiveStore(tmp_path / "data", mirror=str(given))
    store.open(archives(given))
    for name in ("other.zip", "rows.parquet2", "pictures.zip2.files"):
        (store.folder / name).touch()
    store.clean(archives(given))
    assert names(store) == {"other.zip", "rows.parquet2", "pictures.zip2.files"}


def test_an_archive_that_was_there_stays_and_what_was_made_of_it_goes(tmp_path: Path, given: Path):
    store = ArchiveStore(tmp_path)
    given.rename(store.folder)
    wanted = archives(store.folder)
    store.open(wanted)
    assert "pictures.zip.files" in names(store)
    store.clean(wanted)
    assert {"rows.parquet", "pictures.zip"} <= names(store)
    assert not any(name.startswith("pictures.zip.files") for name in names(store))


def test_kept_archives_stay_also_after_a_later_run_that_keeps_none(tmp_path: Path, given: Path):
    keeping = ArchiveStore(tmp_path / "data", mirror=str(given), keep=True)
    keeping.open(archives(given))
    keeping.clean(archives(given))
    later = ArchiveStore(tmp_path / "data", mirror=str(given))
    later.open(archives(given))
    later.clean(archives(given))
    assert {"rows.parquet", "pictures.zip", "pictures.zip.files"} <= names(later)
    assert [path.name for path in later.kept(archives(given))] == ["rows.parquet", "pictures.zip", "pictures.zip.files"]


def test_a_download_goes_also_if_another_one_failed_before(tmp_path: Path, given: Path):
    good, bad = archives(given)
    store = ArchiveStore(tmp_path / "data", mirror=str(given))
    store.open((good,))  # one after the other: together, the failure might stop the good one
    with pytest.raises(DataFormatError, match="wanted 1"):
        store.open((replace(bad, size=1),))
    assert (store.folder / "rows.parquet").is_file()
    store.open((good, bad))
    store.clean((good, bad))
    assert not store.folder.exists()


def test_given_archives_are_extracted_elsewhere_and_not_touched(tmp_path: Path, given: Path):
    store = ArchiveStore(tmp_path / "data", from_archives=given)
    assert store.needs(archives(given)).downloads == ()
    places = store.open(archives(given))
    assert places.opened["rows.parquet"] == given / "rows.parquet"
    store.clean(archives(given))
    assert sorted(path.name for path in given.iterdir()) == ["pictures.zip", "rows.parquet"]
    assert not store.folder.exists()


def test_an_archive_that_is_not_given_is_named(tmp_path: Path, given: Path):
    wanted = archives(given)
    (given / "pictures.zip").unlink()
    with pytest.raises(ConfigError, match=r"lacks pictures\.zip \(.*https://example\.org/pictures\.zip\)"):
        ArchiveStore(tmp_path / "data", from_archives=given).open(wanted)
