"""ShareGPT4V (Chen et al. 2023, arXiv:2311.12793): long captions to align with, and LLaVA's mix with 23k of them to finetune with.

Pictures of SA-1B (51 archives, about 11 GB each) and of the web cannot be downloaded without consent: get them by hand and name their folder with
--from-archives. The datasets that end with `-linked` do without: they leave out the conversations about these pictures, and count them.
"""

from functools import partial
from typing import Any

from vlm.data.datasets.base import Archive, DatasetSpec
from vlm.data.datasets.llava_lists import llava_list
from vlm.data.datasets.pictures import PicturePlace
from vlm.data.datasets.shared_archives import COCO_2017_TRAIN_PICTURES, LLAVA_INSTRUCT_PICTURES, LLAVA_PRETRAIN

HUB = "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V"
CAPTIONS_FILE = "share-captioner_coco_lcs_sam_1246k_1107.json"
CONVERSATIONS_FILE = "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json"

CAPTIONS = Archive(file=CAPTIONS_FILE, url=f"{HUB}/resolve/main/{CAPTIONS_FILE}")
CONVERSATIONS = Archive(file=CONVERSATIONS_FILE, url=f"{HUB}/resolve/main/{CONVERSATIONS_FILE}")
WEB = Archive(
    file="sharegpt4v-web.zip",
    url="",
    page="https://drive.google.com/drive/folders/1tCUQ-sq6vdshZVkF0ZeF3K4eztkXJgax (its pictures as one zip of this name)",
)
SA_1B = tuple(
    Archive(file=f"sa_{number:06}.tar", url="", page="https://ai.meta.com/datasets/segment-anything-downloads/")
    for number in range(51)  # 000000 to 000050, "for now" (the publisher's docs/Data.md)
)

LLAVA_PRETRAIN_PICTURES = PicturePlace("llava/llava_pretrain/images", LLAVA_PRETRAIN)
SAM_PICTURES = tuple(PicturePlace("sam/images", archive) for archive in SA_1B)
WEB_PICTURES = tuple(PicturePlace(f"{name}/images", WEB, f"{name}/images") for name in ("web-celebrity", "web-landmark", "wikiart", "share_textvqa"))


def _spec(annotations: Archive, *found_in: PicturePlace, **about: Any) -> DatasetSpec:
    return llava_list(
        annotations,
        found_in,
        license="CC BY-NC 4.0 and OpenAI's terms; pictures: each publisher's",
        source=HUB,
        citation="Lin Chen et al. ShareGPT4V: Improving Large Multi-Modal Models with Better Captions. ECCV 2024. arXiv:2311.12793",
        **about,
    )


_pretrain = partial(_spec, CAPTIONS, COCO_2017_TRAIN_PICTURES, LLAVA_PRETRAIN_PICTURES)
_instruct = partial(_spec, CONVERSATIONS, *LLAVA_INSTRUCT_PICTURES, LLAVA_PRETRAIN_PICTURES)

SPECS = {
    "sharegpt4v-pretrain": _pretrain(*SAM_PICTURES, description="1,246k long captions of COCO, LAION, CC, SBU and SA-1B; SA-1B by hand"),
    "sharegpt4v-pretrain-linked": _pretrain(description="sharegpt4v-pretrain without the captions of SA-1B"),
    "sharegpt4v-instruct": _instruct(
        *SAM_PICTURES, *WEB_PICTURES, description="665k conversations, 23k of them long captions; SA-1B and web pictures by hand"
    ),
    "sharegpt4v-instruct-linked": _instruct(description="sharegpt4v-instruct without the conversations about SA-1B and web pictures"),
}
