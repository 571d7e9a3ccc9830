r"""ShareGPT4V's conversation files (InternLM/InternLM-XComposer, projects/ShareGPT4V, docs/Data.md): LLaVA's format.

    {"id": "1", "image": "sam/images/sa_1.jpg", "conversations": [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "A dog."}]}

What differs are the names of the pictures: they lie below one folder `data` that joins `coco/`, `sam/images/`, `llava/llava_pretrain/images/`,
`web-celebrity/images/` and others, so the file has to lie in that folder. A file by path is called `llava`: its rows look the same.
"""

from vlm.data.formats.base import Format, read_by_row
from vlm.data.formats.llava import parse_row

SPECS = {
    "sharegpt4v": Format(
        read=read_by_row(parse_row),
        recognizes=lambda row: False,
        description="ShareGPT4V: as llava; pictures of several collections below one folder",
    )
}
