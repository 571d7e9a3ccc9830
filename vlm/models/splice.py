"""Image features into the places of the image tokens, count for count. Knows neither towers nor tokenizers."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm.errors import DataFormatError


def splice(
    embeds: Float[Tensor, "B T E"], ids: Int[Tensor, "B T"], image_embeds: Float[Tensor, "N K E"], *, image_token_id: int
) -> Float[Tensor, "B T E"]:
    """Replace the embeddings of image tokens by image embeddings, in reading order.

    This is the rule of transformers' `LlavaForConditionalGeneration`: row by row, left to right, tile after tile.

    Args:
        embeds: Text embeddings; what stands at image tokens is discarded.
        ids: Token ids.
        image_embeds: K embeddings for each tile, tiles in reading order.
        image_token_id: The id that marks an image token.

    Raises:
        DataFormatError: If the number of image tokens is not the number of image embeddings.
    """
    is_image: Bool[Tensor, "B T"] = ids == image_token_id
    tokens, features = int(is_image.sum()), image_embeds.shape[0] * image_embeds.shape[1]
    if tokens != features:
        raise DataFormatError(
            f"The batch has {tokens} image tokens, but its {image_embeds.shape[0]} tiles give {features} image embeddings "
            f"({image_embeds.shape[1]} each). Every <image> placeholder needs exactly one image."
        )
    return embeds.masked_scatter(is_image.unsqueeze(-1), image_embeds.to(embeds.dtype))


def touch(embeds: Float[Tensor, "B T E"], unused: Float[Tensor, "..."]) -> Float[Tensor, "B T E"]:
    """Add nothing, yet connect `unused` to the graph: a rank without images must still take part in the gradient exchange of the others."""
    return embeds + torch.zeros((), dtype=embeds.dtype, device=embeds.device) * unused.sum().to(embeds.dtype)
