"""COCO's captions (cocodataset.org, captions_*.json) and the split of Karpathy and Fei-Fei (arXiv:1412.2306, dataset_coco.json). Opens no picture.

    {"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": [{"id": 7, "image_id": 9, "caption": "A dog."}]}
    {"images": [{"cocoid": 9, "filepath": "val2014", "filename": "9.jpg", "split": "test", "sentences": [{"sentid": 7, "raw": "A dog."}]}]}

One sample a caption, named `<image id>/<caption id>`, and a request before it. Such a file is one object and is held in memory: 1 GB for Karpathy's.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vlm.data.formats.base import CAPTION_REQUEST, Format, faulty, fields_of, finished, first_item, image_of, list_of, shown, text_of
from vlm.data.formats.json_rows import load_json
from vlm.data.sample import Row, Sample
from vlm.errors import DataFormatError, UnknownNameError
from vlm.messages import IMAGE_PLACEHOLDER, Message

KARPATHY_SPLITS = ("train", "val", "test", "restval")


def read_coco_captions(annotations: Path, *, request: str = CAPTION_REQUEST, pictures: Path | None = None) -> Iterator[Row]:
    """One sample a caption, in the order of the file; image paths are COCO's `file_name`, and `extra` has `image_id`.

    Args:
        annotations: captions_train2014.json, captions_val2017.json and so on.
        request: What the user says, after the picture.
        pictures: Not used: no picture lies inside such a file.

    Raises:
        DataFormatError: If the file is not JSON, or has no such lists.
    """
    content = _lists_of(annotations, "images", "annotations")
    names = {image["id"]: image.get("file_name") for image in content["images"] if isinstance(image, dict) and isinstance(image.get("id"), int | str)}
    for number, caption in enumerate(content["annotations"], start=1):
        try:
            caption = fields_of(caption)
            image_id = _key_of(caption, "image_id")
            if image_id not in names:
                raise DataFormatError(f"a caption is about no image of the file: 'image_id' is {image_id!r}.")
            yield _captioned(image_id, _key_of(caption, "id"), image_of(names[image_id]), caption.get("caption"), request)
        except DataFormatError as error:
            yield faulty(error, id=str(number), where=f"{annotations}, row {number}")


def read_karpathy(path: Path, split: str, *, request: str = CAPTION_REQUEST, pictures: Path | None = None) -> Iterator[Row]:
    """One sample a caption of a split; image paths are `<filepath>/<filename>`, such as val2014/COCO_val2014_000000000042.jpg, and `extra` has `image_id`.

    Args:
        path: dataset_coco.json (or dataset_flickr30k.json, which has neither `filepath` nor `cocoid`: `imgid` takes its place).
        split: train, val, test, or restval: the rest of val2014, which is mostly trained with `train`.
        request: What the user says, after the picture.
        pictures: Not used: no picture lies inside such a file.

    Raises:
        DataFormatError: If the file is not JSON, or has no such list.
        UnknownNameError: If there is no such split.
    """
    if split not in KARPATHY_SPLITS:
        raise UnknownNameError("Karpathy split", split, KARPATHY_SPLITS)
    for number, image in enumerate(_lists_of(path, "images")["images"], start=1):
        if isinstance(image, dict) and image.get("split") in KARPATHY_SPLITS and image["split"] != split:
            continue
        try:
            yield from _sentences(fields_of(image), request)
        except DataFormatError as error:
            yield faulty(error, id=str(number), where=f"{path}, row {number}")


def _sentences(image: Mapping[str, Any], request: str) -> list[Sample]:
    if image.get("split") not in KARPATHY_SPLITS:
        raise DataFormatError(f"the split is unknown: found {shown(image.get('split'))}; expected {', '.join(KARPATHY_SPLITS)}.")
    image_id = _key_of(image, "cocoid" if "cocoid" in image else "imgid")
    file = image_of(image.get("filename"))
    if "filepath" in image:
        file = image_of(image["filepath"]) / file
    sentences = [fields_of(sentence) for sentence in list_of(image, "sentences")]
    return [_captioned(image_id, _key_of(sentence, "sentid"), file, sentence.get("raw"), request) for sentence in sentences]


def _captioned(image_id: int | str, caption_id: int | str, image: Path, caption: Any, request: str) -> Sample:
    messages = (Message("user", f"{IMAGE_PLACEHOLDER}\n{request}"), Message("assistant", text_of(caption, "a caption")))
    return finished({"id": f"{image_id}/{caption_id}"}, "", (image,), messages, {"image_id": str(image_id)})


def _key_of(row: Mapping[str, Any], key: str) -> int | str:
    value = row.get(key)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise DataFormatError(f"{key!r} is not a number or name: found {shown(value)}.")
    return value if isinstance(value, int) else text_of(value, f"{key!r}")


def _lists_of(path: Path, *keys: str) -> Mapping[str, Any]:
    content = load_json(path)
    try:
        row = fields_of(content)
        for key in keys:
            list_of(row, key)
    except DataFormatError as error:
        raise DataFormatError(f"{path} is not as its format says: {error}") from None
    return row


def _is_coco(row: Mapping[str, Any]) -> bool:
    image, caption = first_item(row, "images"), first_item(row, "annotations")
    return (isinstance(caption, dict) and "caption" in caption) or (isinstance(image, dict) and {"id", "file_name"} <= image.keys())


def _is_karpathy(row: Mapping[str, Any]) -> bool:
    image = first_item(row, "images")
    return isinstance(image, dict) and "sentences" in image


SPECS = {
    "coco-captions": Format(
        read=read_coco_captions,
        recognizes=_is_coco,
        description="COCO: captions_*.json, one sample a caption",
    ),
    "karpathy": Format(
        read=partial(read_karpathy, split="train"),
        recognizes=_is_karpathy,
        description="Karpathy's dataset_*.json; by path its split `train`, without `restval`",
    ),
}
