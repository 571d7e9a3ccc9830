"""LLaVA's two training sets (Liu et al. 2023, arXiv:2310.03744): captions to align with, and the mix of instructions to finetune with."""

from vlm.data.datasets.base import Archive
from vlm.data.datasets.llava_lists import llava_list
from vlm.data.datasets.pictures import PicturePlace
from vlm.data.datasets.shared_archives import LLAVA_INSTRUCT_PICTURES, LLAVA_PRETRAIN

CITATION = "Haotian Liu, Chunyuan Li, Yuheng Li, Yong Jae Lee. Improved Baselines with Visual Instruction Tuning. CVPR 2024. arXiv:2310.03744"

CAPTIONS = Archive(
    file="blip_laion_cc_sbu_558k.json",
    url="https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain/resolve/main/blip_laion_cc_sbu_558k.json",
)
INSTRUCTIONS = Archive(
    file="llava_v1_5_mix665k.json",
    url="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json",
)

_about_the_mix = {
    "license": "CC BY 4.0 and OpenAI's terms; pictures: each publisher's",
    "source": "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    "citation": CITATION,
}

SPECS = {
    "llava-laion-cc-sbu-558k": llava_list(
        CAPTIONS,
        [PicturePlace("", LLAVA_PRETRAIN)],  # 00000/000000010.jpg and so on, the same in list and archive
        num_samples=558_128,
        description="558k pictures of LAION, CC and SBU with captions by BLIP, to align a connector",
        license="terms of CC-3M, LAION, SBU and BLIP",
        source="https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
        citation=CITATION,
        aliases=("blip_laion_cc_sbu_558k",),
    ),
    "llava-v1.5-instruct": llava_list(
        INSTRUCTIONS,
        LLAVA_INSTRUCT_PICTURES,
        num_samples=665_298,
        description="665k conversations, 40k of them without a picture, to finetune with",
        aliases=("llava-v15", "llava_v1_5_mix665k"),
        **_about_the_mix,
    ),
    "llava-multimodal": llava_list(
        INSTRUCTIONS,
        LLAVA_INSTRUCT_PICTURES,
        pictured_only=True,
        num_samples=624_610,  # Prismatic's conf/datasets.py
        description="the conversations of llava-v1.5-instruct that have a picture",
        aliases=("llava_v1_5_stripped625k",),
        **_about_the_mix,
    ),
}
