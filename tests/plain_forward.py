"""Conversations through a model as training runs them: one document, right to the last token, no cache, no padding. What generation is compared with."""

from dataclasses import replace

import torch
from torch import Tensor

from vlm.data.chat import encode_chat
from vlm.data.image import to_tiles
from vlm.messages import Message
from vlm.models.generate import Prompt
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import IGNORE_INDEX, ChatBatch, Documents


def batch_of(model: VisionLanguageModel, prompt: Prompt, messages: tuple[Message, ...]) -> ChatBatch:
    """One conversation as training would see it."""
    encoded = encode_chat(
        messages,
        template=model.template,
        tokenizer=model.language.tokenizer,
        image_token_id=model.language.image_token_id,
        tokens_per_image=[model.tokens_per_tile] * len(prompt.images),
    )
    size = model.image_policy.size
    tiles = [to_tiles(image, model.image_policy)[0] for image in prompt.images]
    pixels = torch.cat([torch.zeros(0, 3, size, size, dtype=torch.uint8), *tiles])
    documents = Documents.one_per_row(1, len(encoded.ids))
    return ChatBatch(ids=encoded.ids[None], labels=encoded.labels[None], documents=documents, pixels=pixels, num_samples=1)


@torch.no_grad()
def plain_logits(model: VisionLanguageModel, prompt: Prompt, tokens: list[int]) -> Tensor:
    """Scores of what comes behind the prompt and behind each of these tokens, of one full forward pass; [tokens + 1, V]."""
    batch = batch_of(model, prompt, prompt.messages)
    ids = torch.cat([batch.ids, torch.tensor([tokens], dtype=torch.long)], dim=1)
    grown = replace(batch, ids=ids, labels=torch.full_like(ids, IGNORE_INDEX), documents=Documents.one_per_row(*ids.shape))
    return model.language.logits(model.hidden(grown)[0, batch.ids.shape[1] - 1 :])


@torch.no_grad()
def plain_log_probs(model: VisionLanguageModel, prompt: Prompt, answer: str) -> Tensor:
    """The log-softmax at the answer's tokens, of one full forward pass of this answer alone."""
    batch = batch_of(model, prompt, (*prompt.messages, Message("assistant", answer)))
    scores = model.language.logits(model.hidden(batch)[0, :-1]).log_softmax(-1)
    labels = batch.labels[0, 1:]
    labelled = (labels != IGNORE_INDEX).nonzero().flatten()
    return scores[labelled, labels[labelled]]


def greedy(model: VisionLanguageModel, prompt: Prompt, *, count: int) -> str:
    """The most likely token each time, everything computed anew for each."""
    tokens: list[int] = []
    ends = {model.language.tokenizer.convert_tokens_to_ids(token) for token in (model.language.tokenizer.eos_token, *model.template.stop)}
    while len(tokens) < count and not ends & set(tokens):
        tokens.append(int(plain_logits(model, prompt, tokens)[-1].argmax()))
    return model.language.tokenizer.decode([token for token in tokens if token not in ends], skip_special_tokens=True).strip()
