"""Pictures of distorted text whose file names are the text (Wilhelmy and Rosas 2013), as in Keras' example of reading CAPTCHAs.

One picture in ten is for testing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm.data.datasets.base import Archive, DatasetSpec, Source
from vlm.data.datasets.holdout import held_out
from vlm.data.datasets.pictures import SUFFIXES
from vlm.data.sample import Row, Sample
from vlm.messages import IMAGE_PLACEHOLDER, Message

PICTURES = Archive(file="captcha_images_v2.zip", url="https://github.com/AakashKumarNain/CaptchaCracker/raw/master/captcha_images_v2.zip")
TEST_SHARE = 0.1  # as in Keras' example


@dataclass(frozen=True)
class CaptchaOptions:
    """Settings of the preparation.

    Attributes:
        request: What the user asks.
    """

    request: str = "What is the text in the image?"


def _open(options: CaptchaOptions, places: Mapping[str, Path]) -> Source:
    folder = places[PICTURES.file]

    def rows(split: str) -> Iterator[Row]:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES and held_out(file.stem, TEST_SHARE) == (split == "test"):
                messages = (Message("user", f"{IMAGE_PLACEHOLDER}\n{options.request}"), Message("assistant", file.stem))
                yield Sample(file.stem, (file.relative_to(folder),), messages)

    return Source(rows=rows, locate=lambda name: folder / name)


SPECS = {
    "captcha-images": DatasetSpec(
        open=_open,
        options=CaptchaOptions(),
        archives=(PICTURES,),
        splits=("train", "test"),
        description="1,040 pictures of five distorted letters and digits, to read",
        license="not stated by the publisher",
        source="https://github.com/AakashKumarNain/CaptchaCracker, used by https://keras.io/examples/vision/captcha_ocr/",
        citation="Rodrigo Wilhelmy, Horacio Rosas. Captcha dataset. 2013",
    ),
}
