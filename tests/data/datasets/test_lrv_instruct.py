from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_archives import opened

from vlm.data.datasets.lrv_instruct import parse_question
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import Message

GOOD = {"image_id": 5, "question": " What color?\n", "answer": "Red."}
parse = partial(parse_question, name="a/1", folder="photos", suffix=".jpg")


def test_a_question_becomes_prismatics_conversation():
    """As `build_lrv_instruct` of Prismatic's lrv_instruct.py writes it, but for the id, which a picture's questions share there."""
    row = parse(GOOD)
    assert row == Sample("a/1", (Path("photos/5.jpg"),), (Message("user", "<image>\nWhat color?"), Message("assistant", "Red.")), {"image_id": "5"})


@pytest.mark.parametrize("value", [None, [], {}, 1.5])
def test_a_faulty_row_is_refused(value: Any):
    with pytest.raises(DataFormatError):
        parse(value)
    for key in GOOD:
        with pytest.raises(DataFormatError):
            parse(GOOD | {key: value})
    with pytest.raises(DataFormatError, match="an answer is empty"):
        parse(GOOD | {"answer": ""})


def test_photos_and_charts_have_their_own_archives(tmp_path: Path):
    source = opened("lrv-instruct", tmp_path)
    names = [row.images[0] for row in source.rows("train") if isinstance(row, Sample)]
    assert names[0] == Path("lrv/lrv-vg/2407890.jpg") and names[-1] == Path("lrv/lrv-chart/63.png")
    assert source.locate(names[-1]) == tmp_path / "chart_image.zip.files/chart_image/63.png"
