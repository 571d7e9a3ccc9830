"""Mantis's rows of several pictures (TIGER-AI-Lab/Mantis, data/README.md), in both spellings. Opens no picture.

    {"id": "1", "images": ["a.jpg", {"path": "b.jpg"}], "conversation": [{"role": "user", "content": "<image> <image> Same?"}, {"role": "assistant", "content": "No."}]}

The other spelling is LLaVA's `conversations` of `from` and `value`. A picture may also be written `(image 1: <Image><image></Image>)`, as Mantis's prompts do:
the text stays as it is, and its `<image>` is the placeholder. Mantis adds missing placeholders and drops surplus ones; here such rows are faulty.
"""

from vlm.data.formats.base import Format, read_by_row
from vlm.data.formats.llava import is_multi_image, parse_row

SPECS = {
    "mantis": Format(
        read=read_by_row(parse_row),
        recognizes=is_multi_image,
        description="Mantis: `images` and `conversation` of `role` and `content`, or `conversations` of `from` and `value`",
    )
}
