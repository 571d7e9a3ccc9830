from pathlib import Path

from tiny_archives import opened, picture, places_of

from vlm.data.datasets import DATASETS
from vlm.data.sample import Sample


def test_pictures_keep_the_names_of_the_list_but_for_the_suffix_of_the_real_file(tmp_path: Path):
    source = opened("llava-v1.5-instruct", tmp_path)
    names = {row.id: row.images for row in source.rows("train") if isinstance(row, Sample)}
    assert names["coco"] == (Path("coco/train2017/000000000009.jpg"),)
    assert [names[id][0].as_posix() for id in ("jpg", "gif", "png")] == ["ocr_vqa/images/jpg.jpg", "ocr_vqa/images/gif.gif", "ocr_vqa/images/png.png"]
    assert names["lost"] == (Path("coco/train2017/000000000000.jpg"),) and source.locate(names["lost"][0]) is None


def test_pictures_of_one_name_in_two_archives_are_not_mixed_up(tmp_path: Path):
    """GQA's and Visual Genome's archives are both called images.zip; Prismatic's download takes one for the other."""
    source = opened("llava-v1.5-instruct", tmp_path)
    files = {folder: source.locate(Path(f"vg/{folder}/1.jpg")) for folder in ("VG_100K", "VG_100K_2")}
    for folder, file in files.items():
        assert file is not None and file.read_bytes() == picture(f"{folder}/1.jpg")


def test_another_top_folder_in_an_archive_is_found(tmp_path: Path):
    spec, places = DATASETS["llava-v1.5-instruct"], places_of("llava-v1.5-instruct", tmp_path)
    (places["gqa-images.zip"] / "images").rename(places["gqa-images.zip"] / "allImages")
    assert spec.open(spec.options, places).locate(Path("gqa/images/2354786.jpg")) == places["gqa-images.zip"] / "allImages/2354786.jpg"


def test_conversations_without_a_picture_can_be_passed_over(tmp_path: Path):
    rows = {name: [row.id for row in opened(name, tmp_path / name).rows("train")] for name in ("llava-v1.5-instruct", "llava-multimodal")}
    assert [id for id in rows["llava-v1.5-instruct"] if id not in rows["llava-multimodal"]] == ["text"]
