"""LVIS-Instruct4V (Wang et al. 2023, arXiv:2311.07574): conversations that GPT-4V wrote about the pictures of LVIS, which are COCO's."""

from vlm.data.datasets.base import Archive
from vlm.data.datasets.llava_lists import llava_list
from vlm.data.datasets.shared_archives import COCO_2017_TRAIN_PICTURES, COCO_2017_VAL_PICTURES

CONVERSATIONS = Archive(
    file="lvis_instruct4v_220k.json",
    url="https://huggingface.co/datasets/X2FD/LVIS-Instruct4V/resolve/main/lvis_instruct4v_220k.json",
)

SPECS = {
    "lvis-instruct-4v": llava_list(
        CONVERSATIONS,
        [COCO_2017_TRAIN_PICTURES, COCO_2017_VAL_PICTURES],
        description="220k conversations about COCO pictures by GPT-4V",
        license="see the source, and OpenAI's terms; pictures: COCO's",
        source="https://huggingface.co/datasets/X2FD/LVIS-Instruct4V",
        citation="Junke Wang et al. To See is to Believe: Prompting GPT-4V for Better Visual Instruction Tuning. 2023. arXiv:2311.07574",
        aliases=("lvis-instruct4v",),
    ),
}
