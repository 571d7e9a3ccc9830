from pathlib import Path

import pytest

from vlm.data.manifest import Manifest
from vlm.data.preparation.existing import manifest_before
from vlm.errors import ConfigError


def before(folder: Path, *sources: Path, overwrite: bool = True) -> Manifest | None:
    return manifest_before(folder, overwrite=overwrite, sources=sources, elsewhere="--root-dir or --name")


def ours(folder: Path) -> Manifest:
    folder.mkdir()
    manifest = Manifest(folder.name, {}, ["here"], "", "", {}, {})
    manifest.write(folder)
    return manifest


def foreign(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    return folder


def test_nothing_and_an_empty_folder_may_be_made(tmp_path: Path):
    assert before(tmp_path / "new", overwrite=False) is None
    (tmp_path / "empty").mkdir()
    assert before(tmp_path / "empty", overwrite=False) is None


def test_what_vlm_wrote_may_be_replaced_even_if_it_is_damaged(tmp_path: Path):
    manifest = ours(tmp_path / "mine")
    assert before(tmp_path / "mine", overwrite=False) == manifest
    assert before(tmp_path / "mine") is None
    (tmp_path / "mine/manifest.json").write_text("{", encoding="utf-8")
    (tmp_path / "mine/samples-train.parquet").touch()
    assert before(tmp_path / "mine") is None
    with pytest.raises(ConfigError, match="not usable"):
        before(tmp_path / "mine", overwrite=False)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("manifest", ["", '{"manifest_version": 3, "name": "a browser extension"}'])
def test_a_folder_that_vlm_did_not_write_is_never_replaced(tmp_path: Path, manifest: str, overwrite: bool):
    folder = foreign(tmp_path / "mine")
    if manifest:
        (folder / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not written by vlm .* choose another --root-dir or --name\.$") as caught:
        before(folder, overwrite=overwrite)
    assert "--overwrite" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not written by vlm"):
        before(tmp_path / "file", overwrite=overwrite)


def test_what_is_read_is_never_replaced_whatever_it_is_called(tmp_path: Path):
    ours(tmp_path / "mine")
    source = foreign(tmp_path / "mine/raw")
    foreign(tmp_path / ".other.tmp")
    (tmp_path / "link").symlink_to(source)
    for folder, read in (("mine", "mine"), ("mine", "mine/raw"), ("mine", "mine/raw/a.jpg"), ("mine", "link"), ("other", ".other.tmp")):
        with pytest.raises(ConfigError, match="is read and would be deleted"):
            before(tmp_path / folder, tmp_path / read)
    with pytest.raises(ConfigError, match="is read and would be deleted"):
        before(tmp_path / "link", source)


def test_a_link_is_used_and_not_replaced(tmp_path: Path):
    manifest = ours(tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert before(tmp_path / "link", overwrite=False) == manifest
    with pytest.raises(ConfigError, match=r"link is a link to .*mine, which is not replaced"):
        before(tmp_path / "link")
