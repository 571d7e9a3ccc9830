"""The README.md of an exported model: what it is made of, what it was trained on, how it was checked, how to load it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.conf.schema import VisionLanguageConfig
from vlm.models.build import resolve
from vlm.models.checkpoint import read_manifest

LOAD = """\
```python
from PIL import Image
from transformers import {processor_class}, {model_class}

processor = {processor_class}.from_pretrained("{name}"{trust})
model = {model_class}.from_pretrained("{name}"{trust}, dtype="auto")
talk = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "Describe the image."}}]}}]
prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
inputs = processor(images=Image.open("picture.jpg"), text=prompt, return_tensors="pt").to(model.device)
answer = model.generate(**inputs, max_new_tokens=128)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""

CARD = """\
---
pipeline_tag: image-text-to-text
library_name: transformers
tags: [{tags}]
---
# {name}

A vision-language model: {vision} patch features through {connector} as image tokens of {language} ({tokens} for each picture).

| part | source | license |
| --- | --- | --- |
| vision backbone | {vision_source} | {vision_license} |
| language model | {language_source} | {language_license} |

Trained on: {data}.
Pictures: {pictures}. Prompts: the chat template `{template}`, in `chat_template.jinja`; it writes all special tokens, and the tokenizer adds none.

## Use

{load}

## Checked

{checked}
"""


def write_card(
    folder: Path, checkpoint: Path, config: VisionLanguageConfig, *, name: str, template: str, tokens: int, lines: Sequence[str], code: bool
) -> None:
    """Write the card.

    Args:
        folder: The exported model.
        checkpoint: The checkpoint that it was made from.
        config: Its composition.
        name: What the exported model is called.
        template: Name of the chat template.
        tokens: Image tokens of a picture.
        lines: What the comparison found.
        code: True for a folder with code of its own.
    """
    parts = resolve(config)
    load = LOAD.format(
        name=name,
        processor_class="AutoProcessor",
        model_class="AutoModelForImageTextToText",
        trust=", trust_remote_code=True" if code else "",
    )
    text = CARD.format(
        name=name,
        tags="vlm, custom_code" if code else "vlm, llava",
        vision=public(config.vision),
        connector=config.connector,
        language=public(config.language),
        tokens=tokens,
        vision_source=public(config.vision_source or parts.vision.source),
        vision_license=parts.vision.license,
        language_source=public(str(config.language_source or parts.language.source or "random weights")),
        language_license=parts.language.license,
        data=trained_on(checkpoint) or "not stated",
        pictures=f"{parts.image_policy.mode} to {parts.image_policy.size} pixels, {parts.image_policy.resample}",
        template=template,
        load=load,
        checked="\n".join(f"- {line}" for line in lines),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def trained_on(checkpoint: Path) -> str:
    """The datasets that a checkpoint, or the run that it is of, names; empty if neither does."""
    named = read_manifest(checkpoint).trained_on or _dataset_of_run(checkpoint.parent.parent / "config.json")
    return ", ".join(map(public, named))


def public(name: str) -> str:
    """A name as a published page shows it: of a path on this machine, the last word alone."""
    path = Path(name.removeprefix("hf:"))
    return f"{path.name} (a local path)" if path.is_absolute() or path.exists() else name


def _dataset_of_run(path: Path) -> tuple[str, ...]:
    try:
        stage: Any = json.loads(path.read_text(encoding="utf-8"))["stage"]
        return tuple(str(stage[key]) for key in ("dataset", "mixture") if stage.get(key))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
