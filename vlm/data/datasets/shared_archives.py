"""Archives of pictures that several datasets use, as their publishers have them. Under the same `file` name they are downloaded and extracted once."""

from vlm.data.datasets.base import Archive
from vlm.data.datasets.pictures import PicturePlace

# Sizes and MD5 sums of COCO's files: cocodataset.org serves them without, many public projects state the same.
COCO_TRAIN_2017 = Archive(
    file="train2017.zip",
    url="http://images.cocodataset.org/zips/train2017.zip",
    size=19336861798,
    checksum="md5:cced6f7f71b7629ddf16f17bbcfab6b2",
)
COCO_VAL_2017 = Archive(
    file="val2017.zip",
    url="http://images.cocodataset.org/zips/val2017.zip",
    size=815585330,
    checksum="md5:442b8da7639aecaf257c1dceb8ba8c80",
)
COCO_TRAIN_2014 = Archive(
    file="train2014.zip",
    url="http://images.cocodataset.org/zips/train2014.zip",
    size=13510573713,
    checksum="md5:0da8c0bd3d6becc4dcb32757491aca88",
)
COCO_VAL_2014 = Archive(
    file="val2014.zip",
    url="http://images.cocodataset.org/zips/val2014.zip",
    size=6645013297,
    checksum="md5:a3d79f5ed8d289b7a7554ce06a5782b3",
)
GQA = Archive(file="gqa-images.zip", url="https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", unpacked=22 * 10**9)
OCR_VQA = Archive(file="ocr_vqa.zip", url="https://huggingface.co/datasets/qnguyen3/ocr_vqa/resolve/main/ocr_vqa.zip")
TEXT_VQA = Archive(
    file="textvqa-train_val_images.zip",
    url="https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
    size=7072297970,
)
VISUAL_GENOME_1 = Archive(file="vg-images.zip", url="https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip", unpacked=10 * 10**9)
VISUAL_GENOME_2 = Archive(file="vg-images2.zip", url="https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", unpacked=6 * 10**9)
LLAVA_PRETRAIN = Archive(
    file="llava-pretrain-images.zip",
    url="https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain/resolve/main/images.zip",
    unpacked=27 * 10**9,
)

# The names under which LLaVA's lists, and those made after them, know these pictures.
COCO_2017_TRAIN_PICTURES = PicturePlace("coco/train2017", COCO_TRAIN_2017, "train2017")
COCO_2017_VAL_PICTURES = PicturePlace("coco/val2017", COCO_VAL_2017, "val2017")
LLAVA_INSTRUCT_PICTURES = (
    COCO_2017_TRAIN_PICTURES,
    PicturePlace("gqa/images", GQA, "images"),
    PicturePlace("ocr_vqa/images", OCR_VQA, "images"),
    PicturePlace("textvqa/train_images", TEXT_VQA, "train_images"),
    PicturePlace("vg/VG_100K", VISUAL_GENOME_1, "VG_100K"),
    PicturePlace("vg/VG_100K_2", VISUAL_GENOME_2, "VG_100K_2"),
)
