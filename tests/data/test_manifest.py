import json
from pathlib import Path

import pytest

from vlm.data.manifest import Manifest, SplitFile, UsedArchive, files_below, tree_sha256
from vlm.errors import DataFormatError


def test_what_was_written_is_read_again(tmp_path: Path):
    manifest = Manifest(
        name="shapes",
        splits={"train": SplitFile("samples-train.parquet", 2, "ab", images=1, duplicate_ids=1)},
        sources=["here"],
        license="MIT",
        citation="nobody",
        options={"seed": 1},
        dropped={"train": {"no answer": [{"id": "c", "detail": "Turn 2 says nothing."}]}},
        archives=[UsedArchive("a.zip", "https://example.org/a.zip", 3, "md5:00")],
        images_sha256="cd",
        verified="decode",
    )
    (tmp_path / "samples-train.parquet").touch()
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["format_version"] == 2


def test_manifest_of_version_1_is_read(tmp_path: Path):
    split = {"file": "samples-train.parquet", "rows": 2, "sha256": "ab"}
    old = {"name": "shapes", "splits": {"train": split}, "sources": ["here"], "license": "MIT", "citation": "", "options": {}}
    old |= {"dropped": {"train": {"no answer": ["c", "d"]}}, "format_version": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(old), encoding="utf-8")
    (tmp_path / "samples-train.parquet").touch()
    manifest = Manifest.read(tmp_path)
    assert manifest.dropped == {"train": {"no answer": [{"id": "c", "detail": ""}, {"id": "d", "detail": ""}]}}
    assert (manifest.format_version, manifest.parts, manifest.archives) == (1, [], [])


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"format_version": 99}', '{"format_version": 1, "splits": 3}', '{"format_version": "2"}'])
def test_damaged_manifest_is_named(tmp_path: Path, text: str):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_file_that_the_manifest_names_must_be_there(tmp_path: Path):
    Manifest("shapes", {"train": SplitFile("samples-train.parquet", 2, "ab")}, [], "", "", {}, {}).write(tmp_path)
    with pytest.raises(DataFormatError, match=r"samples-train\.parquet is missing.*--overwrite"):
        Manifest.read(tmp_path)


def test_hash_of_a_folder_is_of_names_and_sizes(tmp_path: Path):
    assert tree_sha256(tmp_path / "nowhere") == ""
    hashes = set()
    for name, content in (("a/b", "xy"), ("a/b", "xyz"), ("a/c", "xyz")):
        folder = tmp_path / f"{name[-1]}{len(content)}"
        (folder / "a").mkdir(parents=True)
        (folder / name).write_text(content, encoding="utf-8")
        hashes.add(tree_sha256(folder))
        assert list(files_below(folder)) == [(name, len(content))]
    assert len(hashes) == 3
