"""The archives of registered datasets in small: of the published layout, under the published names, with a few rows of every kind. For tests."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm.data.datasets import DATASETS
from vlm.data.datasets.base import EMBEDDED, Source

FORMATS = {".jpg": "JPEG", ".gif": "GIF", ".png": "PNG"}
SHARE_CAPTIONS = "share-captioner_coco_lcs_sam_1246k_1107.json"
SHARE_MIX = "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json"


def build(dataset_id: str, folder: Path) -> None:
    """Write every archive of a dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive in DATASETS[dataset_id].archives:
        (folder / archive.file).write_bytes(content(archive.file))


def places_of(dataset_id: str, folder: Path) -> dict[str, Path]:
    """The archives of a dataset, extracted where they are archives, and a folder for pictures inside them: what its `open` gets."""
    build(dataset_id, folder)
    places = {EMBEDDED: folder / "embedded"}
    for archive in DATASETS[dataset_id].archives:
        file, target = folder / archive.file, folder / f"{archive.file}.files"
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as members:
                members.extractall(target)
        elif file.suffix in {".tar", ".gz"}:
            with tarfile.open(file) as members:
                members.extractall(target, filter="data")
        places[archive.file] = target if target.exists() else file
    return places


def opened(dataset_id: str, folder: Path, **options: Any) -> Source:
    """The source of a dataset, without a preparation."""
    spec = DATASETS[dataset_id]
    return spec.open(type(spec.options)(**options), places_of(dataset_id, folder))


def content(file: str) -> bytes:
    """The bytes of an archive."""
    if file.startswith("the-cauldron-"):
        table = cauldron_table(file)
        return table if file.endswith(".parquet") else tarred({"okvqa/0000.parquet": table, "okvqa/README.md": b"# okvqa"})
    if file in LISTS:
        return json.dumps(LISTS[file]).encode()
    if file in TARS or file.startswith("sa_"):
        return tarred(TARS.get(file, {"sa_0.json": b"{}"}), gz=file.endswith("gz"))
    return zipped(ZIPS[file])


def picture(name: str, size: tuple[int, int] = (12, 8)) -> bytes:
    """A picture of one color, another for every name; the suffix decides the format."""
    file = io.BytesIO()
    Image.new("RGB", size, tuple(hashlib.sha256(name.encode()).digest()[:3])).save(file, FORMATS[Path(name).suffix])
    return file.getvalue()


def pictures(*names: str) -> dict[str, bytes]:
    return {name: picture(name) for name in names}


def zipped(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(members: Mapping[str, bytes], *, gz: bool = False) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz" if gz else "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def chat(id: str, image: str | None, *texts: str) -> dict[str, Any]:
    """A row of LLaVA's kind."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": id, "conversations": turns} | ({"image": image} if image else {})


def asked(id: str, image: str) -> dict[str, Any]:
    return chat(id, image, "<image>\nWhat is it?", f"It is {id}.")


def cauldron_table(file: str) -> bytes:
    """A Parquet file of two rows: two questions about one picture, one question about two."""
    import pyarrow
    import pyarrow.parquet

    def row(names: Sequence[str], *pairs: tuple[str, str]) -> dict[str, Any]:
        images = [{"bytes": picture(f"{file}/{name}"), "path": None} for name in names]
        return {"images": images, "texts": [{"user": user, "assistant": assistant, "source": "Tiny"} for user, assistant in pairs]}

    rows = [row(["a.png"], ("What?", "A square."), ("Which color?", "One.")), row(["b.png", "c.png"], ("Which is larger?", "Neither."))]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def karpathy_image(number: int, split: str) -> dict[str, Any]:
    folder = "train2014" if split == "train" else "val2014"
    sentences = [{"sentid": 10 * number + i, "raw": f" Caption {i} of {number}."} for i in range(2)]
    return {"cocoid": number, "filepath": folder, "filename": f"COCO_{folder}_{number:012}.jpg", "split": split, "sentences": sentences}


def coco_annotations(*numbers: int) -> bytes:
    images = [{"id": number, "file_name": f"{number:012}.jpg"} for number in numbers]
    captions = [{"id": 10 * number + i, "image_id": number, "caption": f"Caption {i} of {number}."} for number in numbers for i in range(2)]
    return json.dumps({"images": images, "annotations": captions}).encode()


BROKEN = chat("broken", None, "A question without an answer")
LISTS: dict[str, Any] = {
    "blip_laion_cc_sbu_558k.json": [
        chat(
            "004539375",
            "00453/004539375.jpg",
            "Render a clear and concise summary of the photo.\n<image>",
            "select luxury furniture 3 - inch memory foam",
        ),
        chat("002239345", "00223/002239345.jpg", "<image>\nWrite a terse but informative summary of the picture.", "a grey watch"),
        chat("lost", "00000/000000000.jpg", "<image>\nWhat?", "A lost picture."),
        BROKEN,
    ],
    "llava_v1_5_mix665k.json": [
        asked("coco", "coco/train2017/000000000009.jpg"),
        asked("gqa", "gqa/images/2354786.jpg"),
        asked("jpg", "ocr_vqa/images/jpg.jpg"),
        asked("gif", "ocr_vqa/images/gif.jpg"),
        asked("png", "ocr_vqa/images/png.jpg"),
        asked("textvqa", "textvqa/train_images/011e7e629fb9ae7b.jpg"),
        asked("vg", "vg/VG_100K/1.jpg"),
        asked("vg2", "vg/VG_100K_2/1.jpg"),
        chat("text", None, "Say yes.", "Yes.", "And no?", "No."),
        asked("lost", "coco/train2017/000000000000.jpg"),
        BROKEN,
    ],
    "lvis_instruct4v_220k.json": [asked("train", "coco/train2017/000000000009.jpg"), asked("val", "coco/val2017/000000000139.jpg")],
    "filter_cap1.json": [
        {"image_id": "2407890", "question": "Is there a unicorn?", "answer": "No.", "task": "object"},
        {"image_id": "2407890", "question": "Is there a dog?", "answer": "Yes."},
        {"image_id": "2407890", "question": "Is there a cat?"},
    ],
    "filter_cap_more1.json": [{"image_id": 5, "question": "What color?", "answer": "Red."}],
    "chart_release_update.json": [{"image_id": "63.png", "question": "Which is highest?", "answer": "2019."}],
    SHARE_CAPTIONS: [
        asked("coco", "coco/train2017/000000000009.jpg"),
        asked("lcs", "llava/llava_pretrain/images/00453/004539375.jpg"),
        asked("sam", "sam/images/sa_545504.jpg"),
    ],
    SHARE_MIX: [
        asked("coco", "coco/train2017/000000000009.jpg"),
        asked("sam", "sam/images/sa_545504.jpg"),
        asked("web", "web-celebrity/images/someone.jpg"),
        asked("ocr", "ocr_vqa/images/png.jpg"),
        chat("text", None, "Say yes.", "Yes."),
    ],
}
TARS: dict[str, dict[str, bytes]] = {
    "image.tar.gz": pictures("image/2407890.jpg", "image/5.jpg"),
    "sa_000049.tar": {**pictures("sa_545504.jpg"), "sa_545504.json": b"{}"},
}
ZIPS: dict[str, dict[str, bytes]] = {
    "llava-pretrain-images.zip": pictures("00453/004539375.jpg", "00223/002239345.jpg"),
    "train2017.zip": pictures("train2017/000000000009.jpg", "train2017/000000000025.jpg"),
    "val2017.zip": pictures("val2017/000000000139.jpg"),
    "train2014.zip": pictures("train2014/COCO_train2014_000000000009.jpg"),
    "val2014.zip": pictures(*(f"val2014/COCO_val2014_{number:012}.jpg" for number in (42, 73, 74))),
    "gqa-images.zip": pictures("images/2354786.jpg"),
    "ocr_vqa.zip": pictures("images/jpg.jpg", "images/gif.gif", "images/png.png"),
    "textvqa-train_val_images.zip": pictures("train_images/011e7e629fb9ae7b.jpg"),
    "vg-images.zip": pictures("VG_100K/1.jpg"),
    "vg-images2.zip": pictures("VG_100K_2/1.jpg"),
    "chart_image.zip": {**pictures("chart_image/63.png"), "__MACOSX/chart_image/._63.png": b"\0"},
    "sharegpt4v-web.zip": pictures("web-celebrity/images/someone.jpg"),
    "captcha_images_v2.zip": pictures(*(f"captcha_images_v2/{text}.png" for text in ("226md", "22d5n", "2356g", "b84xc", "e72cd", "nnn5p"))),
    "caption_datasets.zip": {
        "dataset_flickr8k.json": b"{}",
        "dataset_coco.json": json.dumps(
            {"images": [karpathy_image(9, "train"), karpathy_image(42, "test"), karpathy_image(73, "val"), karpathy_image(74, "restval")]}
        ).encode(),
    },
    "annotations_trainval2017.zip": {
        "annotations/captions_train2017.json": coco_annotations(9, 25),
        "annotations/captions_val2017.json": coco_annotations(139),
        "annotations/instances_val2017.json": b"{}",
    },
}
