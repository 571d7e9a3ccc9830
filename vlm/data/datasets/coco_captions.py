"""COCO Captions (Chen et al. 2015, arXiv:1504.00325): five captions a picture, one row a caption, in two splits.

`coco-captions` has the split of Karpathy and Fei-Fei (arXiv:1412.2306), in which nearly all retrieval and captioning results are stated;
`coco-captions-2017` that of 2017. They overlap: most of Karpathy's test pictures are training pictures of 2017. A model that has seen `train2017`, with
LLaVA's or any other texts, has seen them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vlm.data.datasets.base import Archive, DatasetSpec, Source
from vlm.data.datasets.pictures import PicturePlace, Pictures
from vlm.data.datasets.shared_archives import COCO_TRAIN_2014, COCO_TRAIN_2017, COCO_VAL_2014, COCO_VAL_2017
from vlm.data.sample import Row, Sample
from vlm.errors import DataFormatError

KARPATHY = Archive(
    file="caption_datasets.zip",
    url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    size=36745453,
    checksum="sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",  # as measured and published by users of the file
    unpacked=200_000_000,
)
CAPTIONS_2017 = Archive(
    file="annotations_trainval2017.zip",
    url="http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    checksum="md5:f4bbac642086de4f52a3fdda2de5fa2c",
    unpacked=850_000_000,
)
KARPATHY_PICTURES = (PicturePlace("train2014", COCO_TRAIN_2014, "train2014"), PicturePlace("val2014", COCO_VAL_2014, "val2014"))
PICTURES_2017 = (PicturePlace("train2017", COCO_TRAIN_2017, "train2017"), PicturePlace("val2017", COCO_VAL_2017, "val2017"))


@dataclass(frozen=True)
class CaptionOptions:
    """Settings of the preparation.

    Attributes:
        request: What the user asks.
    """

    request: str = "Describe the image."


@dataclass(frozen=True)
class KarpathyOptions(CaptionOptions):
    """Settings of the preparation.

    Attributes:
        request: What the user asks.
        restval: Whether `train` takes in the pictures of val2014 that are neither in `val` nor in `test`, as most published results do.
    """

    restval: bool = True


def _open_karpathy(options: KarpathyOptions, places: Mapping[str, Path]) -> Source:
    pictures = Pictures(KARPATHY_PICTURES, places)

    def rows(split: str) -> Iterator[Row]:
        from vlm.data.formats.coco import read_karpathy

        path = _member(places[KARPATHY.file], "dataset_coco.json")
        for part in ("train", "restval") if split == "train" and options.restval else (split,):
            yield from _numbered(read_karpathy(path, part, request=options.request))

    return Source(rows=rows, locate=pictures.locate)


def _open_2017(options: CaptionOptions, places: Mapping[str, Path]) -> Source:
    pictures = Pictures(PICTURES_2017, places)

    def rows(split: str) -> Iterator[Row]:
        from vlm.data.formats.coco import read_coco_captions

        path = _member(places[CAPTIONS_2017.file], f"captions_{split}2017.json")
        for row in _numbered(read_coco_captions(path, request=options.request)):
            yield replace(row, images=tuple(Path(f"{split}2017") / name for name in row.images)) if isinstance(row, Sample) else row

    return Source(rows=rows, locate=pictures.locate)


def _member(folder: Path, name: str) -> Path:
    """A file of an extracted archive, wherever it lies in it."""
    found = sorted(folder.rglob(name))
    if not found:
        raise DataFormatError(f"{folder} has no file {name}: its archive is not the published one. Delete the archive, and prepare again.")
    return found[0]


def _numbered(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows with the number of their caption among those of its picture, from 0 in the order of the file."""
    seen: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Sample):
            picture = row.extra["image_id"]
            number = seen.get(picture, 0)
            seen[picture] = number + 1
            row = replace(row, extra={**row.extra, "caption": str(number)})
        yield row


_LICENSE = "CC BY 4.0; pictures: Flickr's terms"
_CITATION = "Xinlei Chen et al. Microsoft COCO Captions: Data Collection and Evaluation Server. 2015. arXiv:1504.00325"

SPECS = {
    "coco-captions": DatasetSpec(
        open=_open_karpathy,
        options=KarpathyOptions(),
        archives=(KARPATHY, COCO_TRAIN_2014, COCO_VAL_2014),
        splits=("train", "val", "test"),
        num_samples=566_747,  # with restval: 414,113 captions of 82,783 pictures of train2014, 152,634 of 30,504 of val2014
        num_images=113_287,
        description="COCO's captions in Karpathy's split: 113k, 5k and 5k pictures with five captions each",
        license=_LICENSE,
        source="https://cocodataset.org, split: https://cs.stanford.edu/people/karpathy/deepimagesent/",
        citation=f"{_CITATION}; split: Andrej Karpathy, Li Fei-Fei. CVPR 2015. arXiv:1412.2306",
        aliases=("coco-karpathy",),
    ),
    "coco-captions-2017": DatasetSpec(
        open=_open_2017,
        options=CaptionOptions(),
        archives=(CAPTIONS_2017, COCO_TRAIN_2017, COCO_VAL_2017),
        splits=("train", "val"),
        num_samples=591_753,
        num_images=118_287,
        description="COCO's captions in the split of 2017: 118k and 5k pictures with five captions each",
        license=_LICENSE,
        source="https://cocodataset.org",
        citation=_CITATION,
    ),
}
