"""Whether an exported model answers as the one that it was made from: prompts, token ids, logits and greedy tokens of both, in fp32.

Also what the foreign image processor makes of the picture. Knows no format.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vlm.data.image import to_pixels
from vlm.errors import VLMError
from vlm.export.chat_jinja import written
from vlm.export.parity import picture
from vlm.messages import Message
from vlm.models.generate import Prompt, check_room, embed_prompts, encode_prompt
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import Documents

TOLERANCE = 1e-4  # of the largest logit, at least of 1: fp32's rounding through the layers (vlm.models.merge)
NUM_TOKENS = 32  # greedy tokens that are compared


@dataclass(frozen=True)
class Answer:
    """What a model makes of one prompt.

    Attributes:
        text: The prompt as one string.
        ids: Its token ids, pictures expanded.
        logits: Logits of every position.
        tokens: The greedy answer, end tokens forbidden, so that all are compared.
    """

    text: str
    ids: list[int]
    logits: Float[Tensor, "T V"]
    tokens: list[int]


@dataclass(frozen=True)
class Foreign:
    """An exported model as transformers loads it.

    Attributes:
        model: A model with `generate`.
        processor: Its processor, with the chat template.
        pixels: From our tiles to its `pixel_values`: the same picture, whatever its image processor does.
        processors: Its image processors by the name of their backend: a picture to `pixel_values`.
        separator: What its chat template writes between pieces that are tokenized by themselves.
    """

    model: Any
    processor: Any
    pixels: Callable[[UInt8[Tensor, "N 3 H W"]], Tensor]
    processors: Mapping[str, Callable[[Image.Image], Tensor]]
    separator: str = ""


@dataclass(frozen=True)
class AnswerParity:
    """How far an export is from the model, over all prompts.

    Attributes:
        prompts: True if every prompt is the same string there.
        ids: True if its token ids are the same.
        logits: Largest difference of a logit, from the same ids and the same pixels.
        largest: Largest absolute logit.
        tokens: Greedy tokens that are equal, up to the first that is not, of the worst prompt.
        num_prompts: Prompts that were compared.
        pixels: Largest difference between our pixels and those of each of its image processors, in its units.
        picture: Largest difference of a logit that comes of it.
    """

    prompts: bool
    ids: bool
    logits: float
    largest: float
    tokens: int
    num_prompts: int
    pixels: Mapping[str, float]
    picture: Mapping[str, float]

    @property
    def is_equal(self) -> bool:
        """True if prompts and all tokens are equal, and no logit differs by more than TOLERANCE x max(1, largest logit); a NaN does.

        fp32 rounds relative to the size of a value, so logits of 40 may differ by 4e-3, and those below 1 by 1e-4.
        """
        return self.prompts and self.ids and self.logits <= TOLERANCE * max(1.0, self.largest) and self.tokens == NUM_TOKENS

    def lines(self) -> list[str]:
        """The comparison in words."""
        same = {True: "equal", False: "different"}
        said = [
            f"{self.num_prompts} prompts: text {same[self.prompts]}, token ids {same[self.ids]}; in fp32, logits differ by up to {self.logits:.2g} "
            f"(largest {self.largest:.3g}), {self.tokens} of {NUM_TOKENS} greedy tokens are equal"
        ]
        for name, difference in self.pixels.items():
            said.append(f"image processor {name}: pixel values differ by up to {difference:.2g}, logits by {self.picture[name]:.2g}")
        return said


def prompts_of(model: VisionLanguageModel) -> list[Prompt]:
    """One turn with a picture; two turns with one each, if there may be several, the second inside a sentence; those that the context has room for."""
    image = picture()
    single = model.template.image_place == "first-token"
    other = image.transpose(Image.Transpose.ROTATE_90)
    short = Prompt((Message("user", "<image>\nDescribe the image."),), (image,))
    last = "What is left of it?" if single else "And in <image>, what is left of it?"
    turns = Message("user", "<image>\nWhat color is it?"), Message("assistant", "blue"), Message("user", last)
    kept = []
    for prompt in (short, Prompt(turns, (image,) if single else (image, other))):
        try:
            check_room(_ids(model, prompt).shape[1], NUM_TOKENS, model)
            kept.append(prompt)
        except VLMError:
            if prompt is short:
                raise
    return kept


def _ids(model: VisionLanguageModel, prompt: Prompt) -> Tensor:
    return encode_prompt(model, prompt.messages, [model.tokens_per_tile] * len(prompt.images))


@torch.inference_mode()
def own_answers(model: VisionLanguageModel, prompts: Sequence[Prompt], *, separator: str = "") -> list[Answer]:
    """What our model makes of prompts."""
    return [_own_answer(model, prompt, separator) for prompt in prompts]


def _own_answer(model: VisionLanguageModel, prompt: Prompt, separator: str) -> Answer:
    (embeds,) = embed_prompts(model, [prompt], NUM_TOKENS)
    hidden = model.language(embeds, Documents.one_per_row(1, embeds.shape[1]))
    tokens = model.language.generate(embeds, torch.ones(embeds.shape[:2], dtype=torch.long), **_greedy())
    text = written(model.template, prompt.messages, separator=separator)
    return Answer(text, _ids(model, prompt)[0].tolist(), model.language.logits(hidden[0]), tokens[0].tolist())


def _greedy() -> dict[str, Any]:
    return {"max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS, "do_sample": False}


@torch.inference_mode()
def compare(model: VisionLanguageModel, foreign: Foreign) -> AnswerParity:
    """Ask both.

    Args:
        model: The model that was exported, in fp32 on the CPU.
        foreign: What was loaded from the folder.
    """
    prompts = prompts_of(model)
    ours = own_answers(model, prompts, separator=foreign.separator)
    theirs = [_their_answer(model, foreign, prompt, own) for prompt, own in zip(prompts, ours, strict=True)]
    pairs = list(zip(ours, theirs, strict=True))
    (image,), own, same = prompts[0].images[:1], ours[0], theirs[0]
    tiles = foreign.pixels(to_pixels([image], model.image_policy)).float()
    seen = {name: process(image) for name, process in foreign.processors.items()}
    return AnswerParity(
        prompts=all(a.text == b.text for a, b in pairs),
        ids=all(a.ids == b.ids for a, b in pairs),
        logits=max(_difference(a.logits, b.logits) for a, b in pairs),
        largest=max(float(a.logits.abs().max()) for a in ours),
        tokens=min(_equal(a.tokens, b.tokens) for a, b in pairs),
        num_prompts=len(prompts),
        pixels={name: _difference(tiles, values.float()) for name, values in seen.items()},
        picture={name: _difference(same.logits, _logits(foreign, own, values)) for name, values in seen.items()},
    )


def _their_answer(model: VisionLanguageModel, foreign: Foreign, prompt: Prompt, own: Answer) -> Answer:
    pixels = foreign.pixels(to_pixels(prompt.images, model.image_policy))
    text = foreign.processor.apply_chat_template([_conversation(prompt)], add_generation_prompt=True, tokenize=False)[0]
    text = text.removesuffix(foreign.separator)  # nothing follows it
    ids = _their_ids(foreign, prompt, text) if text == own.text else []  # another prompt may have another number of <image>
    row = torch.tensor([own.ids])
    answer = foreign.model.generate(input_ids=row, attention_mask=torch.ones_like(row), pixel_values=pixels, **_greedy())
    return Answer(text, ids, _logits(foreign, own, pixels), answer[0, len(own.ids) :].tolist())


def _their_ids(foreign: Foreign, prompt: Prompt, text: str) -> list[int]:
    return foreign.processor(text=[text], images=[list(prompt.images)], return_tensors="pt")["input_ids"][0].tolist()


def _conversation(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in prompt.messages]


def _logits(foreign: Foreign, own: Answer, pixels: Tensor) -> Float[Tensor, "T V"]:
    row = torch.tensor([own.ids])
    said = foreign.model(input_ids=row, attention_mask=torch.ones_like(row), pixel_values=pixels)
    return said.logits[0, :, : own.logits.shape[1]]


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")


def _equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
