"""What holds for every registered dataset, and each of them from small archives of the published layout."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from archive_server import ArchiveServer, running_server  # noqa: F401  the fixture archive_server
from tiny_archives import build, content, opened

from vlm.data.datasets import DATASETS
from vlm.data.datasets.cauldron import SUBSETS
from vlm.data.preparation.prepare import prepare
from vlm.data.reader import open_dataset
from vlm.data.sample import Dropped, Sample
from vlm.errors import VLMError

KEPT = {  # ids of the rows whose pictures are there, by dataset; training split
    "llava-laion-cc-sbu-558k": ["004539375", "002239345"],
    "llava-v1.5-instruct": ["coco", "gqa", "jpg", "gif", "png", "textvqa", "vg", "vg2", "text"],
    "llava-multimodal": ["coco", "gqa", "jpg", "gif", "png", "textvqa", "vg", "vg2"],
    "lvis-instruct-4v": ["train", "val"],
    "lrv-instruct": ["filter_cap1/1", "filter_cap1/2", "filter_cap_more1/1", "chart_release_update/1"],
    "sharegpt4v-pretrain": ["coco", "lcs", "sam"],
    "sharegpt4v-pretrain-linked": ["coco", "lcs"],
    "sharegpt4v-instruct": ["coco", "sam", "web", "ocr", "text"],
    "sharegpt4v-instruct-linked": ["coco", "ocr", "text"],
    "coco-captions": ["9/90", "9/91", "74/740", "74/741"],
    "coco-captions-2017": ["9/90", "9/91", "25/250", "25/251"],
    "captcha-images": ["226md", "22d5n", "2356g", "b84xc", "e72cd"],
    "the-cauldron-ai2d": ["the-cauldron-ai2d-0000/1", "the-cauldron-ai2d-0000/2"],
    "the-cauldron-chart2text": [f"the-cauldron-chart2text-000{i}/{row}" for i in range(3) for row in (1, 2)],
    "the-cauldron-okvqa": ["0000/1", "0000/2"],
}
MIXES = [name for name in DATASETS if DATASETS[name].parts]
ARCHIVES = [archive for name in DATASETS for archive in DATASETS[name].archives]


@pytest.mark.parametrize("name", KEPT)
def test_rows_and_pictures_come_out_of_archives_of_the_published_layout(name: str, tmp_path: Path):
    source = opened(name, tmp_path)
    rows = [row for row in source.rows("train") if isinstance(row, Sample)]
    assert [row.id for row in rows if all(source.locate(image) for image in row.images)] == KEPT[name]
    for row in rows:
        assert not any(image.is_absolute() or ".." in image.parts for image in row.images)
        assert row.messages[-1].role == "assistant"


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("llava-laion-cc-sbu-558k", {"the answer is missing": 1}),
        ("llava-v1.5-instruct", {"the answer is missing": 1}),
        ("lrv-instruct", {"the answer is not a text": 1}),
    ],
)
def test_faulty_rows_are_dropped_with_file_and_row(name: str, reasons: dict[str, int], tmp_path: Path):
    dropped = [row for row in opened(name, tmp_path).rows("train") if isinstance(row, Dropped)]
    assert Counter(row.reason for row in dropped) == reasons
    assert all(re.search(r"\.json, row \d+$", row.where) for row in dropped)


def test_every_dataset_with_archives_of_its_own_is_tested_here_or_is_a_subset_like_those():
    own = {name for name in DATASETS if DATASETS[name].archives}
    assert own - KEPT.keys() == {f"the-cauldron-{subset}" for subset in SUBSETS} - KEPT.keys()


def test_one_file_name_stands_for_one_archive():
    by_file: dict[str, set] = {}
    for archive in ARCHIVES:
        by_file.setdefault(archive.file.lower(), set()).add(archive)
    assert {file for file, archives in by_file.items() if len(archives) > 1} == set()


def test_archives_have_a_link_or_a_page_and_a_checksum_of_the_right_length():
    for archive in ARCHIVES:
        assert archive.url.startswith(("https://", "http://images.cocodataset.org/")) or (not archive.url and archive.page.startswith("https://"))
        assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.checksum), archive
        assert re.fullmatch(r"[\w.-]+", archive.file), archive


def test_a_dataset_says_what_it_is_where_it_comes_from_and_what_is_allowed():
    for name in DATASETS:
        spec = DATASETS[name]
        assert all((spec.description, spec.license, spec.source, spec.citation, spec.splits)), name
        assert "\n" not in spec.description + spec.license + spec.source, name
        assert bool(spec.archives) + bool(spec.parts) + bool(spec.package) == 1, name


@pytest.mark.parametrize(
    ("prismatic", "parts"),
    [
        ("llava-lvis4v", ("llava-v1.5-instruct", "lvis-instruct-4v")),
        ("llava-lrv", ("llava-v1.5-instruct", "lrv-instruct")),
        ("llava-lvis4v-lrv", ("llava-v1.5-instruct", "lvis-instruct-4v", "lrv-instruct")),
    ],
)
def test_prismatics_merged_sets_are_mixes_of_their_parts(prismatic: str, parts: tuple[str, ...]):
    assert DATASETS[prismatic].parts == parts
    assert all(DATASETS[part].archives for part in parts)


def test_prismatics_other_names_are_known():
    assert DATASETS.resolve("llava-v15") == "llava-v1.5-instruct"
    assert DATASETS.resolve("llava_v1_5_lvis4v_lrv_mix1231k") == "llava-lvis4v-lrv"
    assert "llava-laion-cc-sbu-558k" in DATASETS


def test_coco_is_one_download_for_all_who_use_it():
    users = [name for name in DATASETS if any(archive.file == "train2017.zip" for archive in DATASETS[name].archives)]
    assert {"llava-v1.5-instruct", "lvis-instruct-4v", "sharegpt4v-pretrain", "coco-captions-2017"} <= set(users)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published sizes and checksums are not those of the small archives."""
    for name in DATASETS:
        spec = DATASETS[name]
        archives = tuple(replace(archive, size=0, checksum="", unpacked=0) for archive in spec.archives)
        monkeypatch.setitem(DATASETS._tables[0], name, replace(spec, archives=archives))


@pytest.mark.parametrize("name", [*KEPT, *MIXES])
def test_prepared_from_a_mirror_a_dataset_is_read_back(name: str, tmp_path: Path, archive_server: ArchiveServer, unchecked: None):
    parts = DATASETS[name].parts or (name,)
    for archive in {archive for part in parts for archive in DATASETS[part].archives}:
        archive_server.serve(archive.file, content(archive.file))
    prepare(name, tmp_path, mirror=archive_server.url, workers=1)
    samples = open_dataset(name, data_root=tmp_path)
    assert sorted(sample.id for sample in samples) == sorted(id for part in parts for id in KEPT[part])
    for sample in samples:
        assert all(image.is_file() for image in sample.images)
        assert sample.sizes == ((8, 12),) * len(sample.images)
    assert not (tmp_path / ".archives").exists()


def test_a_folder_of_archives_serves_as_well_and_is_left_as_it_was(tmp_path: Path, unchecked: None):
    given = tmp_path / "given"
    build("lrv-instruct", given)
    build("the-cauldron-okvqa", given)
    before = {path.name: path.read_bytes() for path in given.iterdir()}
    for name in ("lrv-instruct", "the-cauldron-okvqa"):
        prepare(name, tmp_path / "data", from_archives=given, workers=1)
        assert [sample.id for sample in open_dataset(name, data_root=tmp_path / "data")] == KEPT[name]
    assert {path.name: path.read_bytes() for path in given.iterdir()} == before


def test_files_to_be_had_by_hand_are_named_with_their_pages(tmp_path: Path, unchecked: None):
    with pytest.raises(VLMError, match=r"filter_cap1\.json.*https://drive\.google\.com/uc\?id=1pWkx.*--from-archives"):
        prepare("lrv-instruct", tmp_path)
