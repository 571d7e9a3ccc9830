"""The ridge-regression start of a connector: from pooled image features to the mean embedding of the answers, read once from the training data."""

import logging
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm.connectors.base import check_ridge, ridge_start
from vlm.errors import ConfigError
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import IGNORE_INDEX, ChatBatch

log = logging.getLogger(__name__)


@torch.no_grad()
def warm_start(model: VisionLanguageModel, batches: Iterable[ChatBatch]) -> float:
    """Fit the connector's last layer on the samples that show exactly one tile.

    Args:
        model: The model whose connector is fitted, in place.
        batches: Training data, one conversation a row.

    Returns:
        Share of the variance of the mean answer embeddings that the fit explains.

    Raises:
        ConfigError: If the data has no such sample, or the connector no last linear layer.
    """
    check_ridge(model.connector)
    features, targets = [], []
    special = torch.tensor(sorted(model.language.tokenizer.all_special_ids))
    for batch in batches:
        tiles = (batch.ids == model.language.image_token_id).sum(1) // model.tokens_per_tile  # [B]
        alone = tiles == 1
        if alone.any():
            pixels = batch.pixels[(tiles.cumsum(0) - tiles)[alone]]
            features.append(model.vision(pixels.to(model.device)).float().cpu())
            targets.append(mean_answer_embedding(model, batch, special)[alone])
    if not features:
        raise ConfigError("connector_init ridge found no sample with exactly one image tile. Use --model.connector-init random.")
    weight = next(model.connector.parameters())
    place = {"device": weight.device, "dtype": weight.dtype}
    explained = ridge_start(model.connector.cpu().float(), torch.cat(features), torch.cat(targets))
    model.connector.to(**place)
    log.info("connector: ridge start on %d samples explains %.0f %% of the answers' mean embedding", sum(map(len, features)), 100 * explained)
    return explained


def mean_answer_embedding(model: VisionLanguageModel, batch: ChatBatch, special: Int[Tensor, " specials"]) -> Float[Tensor, "B E"]:
    """Mean input embedding of each row's labelled tokens, special tokens left out."""
    answer = (batch.labels != IGNORE_INDEX) & ~torch.isin(batch.labels, special)
    embeds = model.language.embed(batch.ids.to(model.device)).float().cpu()
    weight = answer.float().unsqueeze(-1)
    return (embeds * weight).sum(1) / weight.sum(1).clamp_min(1)
