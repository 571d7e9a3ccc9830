"""LRV-Instruction (Liu et al. 2023, arXiv:2306.14565): questions that can and that cannot be answered from the picture, against hallucination.

The publisher has the files on Google Drive, which gives no lasting links: get them by hand and name their folder with --from-archives. As in Prismatic's
`lrv_instruct.py`, the answers without coordinates are used, and the pictures are those of the publisher: their numbers are not Visual Genome's.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vlm.data.datasets.base import Archive, DatasetSpec, Source
from vlm.data.datasets.pictures import PicturePlace, Pictures
from vlm.data.sample import Row, Sample
from vlm.errors import DataFormatError

_by_hand = partial(Archive, url="")

QUESTIONS = (
    _by_hand(file="filter_cap1.json", page="https://drive.google.com/uc?id=1pWkxE2kqpys1VdwBi99ZXN6-XY5SqhwU"),
    _by_hand(file="filter_cap_more1.json", page="https://drive.google.com/uc?id=1NTxkuRPlvDn7aWaJpK_yb0p5r0cxPLNZ"),
)
CHART_QUESTIONS = _by_hand(file="chart_release_update.json", page="https://drive.google.com/uc?id=13j2U-ectsYGR92r6J5hPdhT8T5ezItHF")
PHOTOS = _by_hand(file="image.tar.gz", page="https://drive.google.com/uc?id=1k9MNV-ImEV9BYEOeLEIb4uGEUZjd3QbM")
CHARTS = _by_hand(file="chart_image.zip", page="https://drive.google.com/uc?id=1Dey-undzW2Nl21CYLFSkP_Y4RrfRJkYd")

FOUND_IN = (PicturePlace("lrv/lrv-vg", PHOTOS, "image"), PicturePlace("lrv/lrv-chart", CHARTS, "chart_image"))


def parse_question(value: Any, name: str, *, folder: str, suffix: str) -> Sample:
    """One row of a list of questions: `{"image_id", "question", "answer"}`; further keys are ignored.

    Args:
        value: The decoded row.
        name: Name of the row; a picture has several.
        folder: Where its picture is.
        suffix: What the number of a photo lacks; the names of charts are whole.

    Raises:
        DataFormatError: If a key is missing, or its value is no text.
    """
    from vlm.data.formats.base import fields_of, finished, pairs_of_turns, shown, text_of, with_placeholders

    row = fields_of(value)
    picture = row.get("image_id")
    if not isinstance(picture, str | int) or not str(picture):
        raise DataFormatError(f"'image_id' is no name of a picture: found {shown(picture)}.")
    turns = pairs_of_turns(
        with_placeholders([text_of(row.get("question"), "the question")], 1),
        [text_of(row.get("answer"), "the answer")],
    )
    return finished({}, name, [Path(folder, f"{picture}{suffix}")], turns, {"image_id": str(picture)})


def _open(options: Any, places: Mapping[str, Path]) -> Source:
    pictures = Pictures(FOUND_IN, places)

    def rows(split: str) -> Iterator[Row]:
        photos, charts = (place.prefix for place in FOUND_IN)
        for file in QUESTIONS:
            yield from _read(places[file.file], partial(parse_question, folder=photos, suffix=".jpg"))
        yield from _read(places[CHART_QUESTIONS.file], partial(parse_question, folder=charts, suffix=""))

    return Source(rows=lambda split: (pictures.with_real_suffixes(row) for row in rows(split)), locate=pictures.locate)


def _read(path: Path, parse: Any) -> Iterator[Row]:
    from vlm.data.formats.base import parse_rows

    return parse_rows(path, lambda value, name: parse(value, f"{path.stem}/{name}"))


SPECS = {
    "lrv-instruct": DatasetSpec(
        open=_open,
        archives=(*QUESTIONS, CHART_QUESTIONS, PHOTOS, CHARTS),
        description="343k questions about photos and charts, answerable or not; to be downloaded by hand",
        license="BSD 3-Clause; pictures: each publisher's",
        source="https://github.com/FuxiaoLiu/LRV-Instruction",
        citation="Fuxiao Liu et al. Mitigating Hallucination in Large Multi-Modal Models via Robust Instruction Tuning. ICLR 2024. arXiv:2306.14565",
        aliases=("lrv-instruction",),
    ),
}
