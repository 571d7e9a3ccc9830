from pathlib import Path

from tiny_archives import opened

from vlm.data.sample import Sample
from vlm.messages import Message


def test_the_answer_is_the_name_of_the_file(tmp_path: Path):
    source = opened("captcha-images", tmp_path)
    (row,) = source.rows("test")
    assert isinstance(row, Sample)
    assert row.messages == (Message("user", "<image>\nWhat is the text in the image?"), Message("assistant", "nnn5p"))
    assert source.locate(row.images[0]) == tmp_path / "captcha_images_v2.zip.files/captcha_images_v2/nnn5p.png"


def test_every_picture_is_in_one_split_and_the_request_is_a_setting(tmp_path: Path):
    source = opened("captcha-images", tmp_path, request="Read it.")
    train, test = ({row.id for row in source.rows(split)} for split in ("train", "test"))
    assert train | test == {"226md", "22d5n", "2356g", "b84xc", "e72cd", "nnn5p"}
    assert not train & test
    assert all(row.messages[0].text == "<image>\nRead it." for row in source.rows("train") if isinstance(row, Sample))
