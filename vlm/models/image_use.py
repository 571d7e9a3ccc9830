"""Whether a picture reaches the answer: the next word after a black and after a white picture. Finds images that get lost without an error."""

from dataclasses import dataclass

import torch
from PIL import Image

from vlm.errors import CheckpointError
from vlm.models.generate import ask, embed_prompts, left_padded
from vlm.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class ImageUse:
    """How far a black and a white picture lead to different answers.

    Attributes:
        logits: Largest difference of the next token's scores.
        noise: The same between two rows with the same picture: what rounding alone does.
        probabilities: Share of the next token's probability that is elsewhere (total variation): 0 the same distribution, 1 nothing in common.
    """

    logits: float
    noise: float
    probabilities: float

    def __str__(self) -> str:
        return (
            f"A white picture instead of a black one moves {self.probabilities:.1%} of the next token's probability; "
            f"its scores differ by up to {self.logits:.3g} (rounding: {self.noise:.1g})."
        )


@torch.inference_mode()
def image_use(model: VisionLanguageModel, question: str) -> ImageUse:
    """Compare the scores of the answer's first token after a black and a white picture.

    Raises:
        CheckpointError: If they differ by no more than rounding: the pictures do not reach the language model.
    """
    prompts = [ask([Image.new("RGB", (64, 64), color)], question) for color in ("black", "white", "black")]
    embeds, mask = left_padded(embed_prompts(model, prompts, 1))
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    states = model.language.decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state[:, -1]
    black, white, again = model.language.logits(states).float()
    use = ImageUse(
        logits=float((black - white).abs().max()),
        noise=float((black - again).abs().max()),
        probabilities=float((black.softmax(-1) - white.softmax(-1)).abs().sum() / 2),
    )
    if not use.logits > 2 * use.noise:
        raise CheckpointError(
            f"Pictures do not reach the answer: after a black and a white one the scores of the next token differ by {use.logits:.3g}, and rounding "
            f"alone makes {use.noise:.3g}. The connector was never trained, or its weights are damaged; use another checkpoint."
        )
    return use
