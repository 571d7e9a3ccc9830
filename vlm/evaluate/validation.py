"""Looks at a model during training: the loss on held-out data, and what it says about held-out pictures. Knows no training loop."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from vlm.data.image import load_image
from vlm.data.sample import Sample
from vlm.messages import count_placeholders
from vlm.models.generate import Prompt, Sampling, generate
from vlm.models.vision_language import VisionLanguageModel
from vlm.tracking import Shown
from vlm.types import ChatBatch


@contextmanager
def evaluating(model: VisionLanguageModel) -> Iterator[None]:
    """Evaluation mode for a while: no dropout; the mode of before comes back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.inference_mode()
def validation_loss(model: VisionLanguageModel, batches: Iterable[ChatBatch]) -> float:
    """Mean loss over all labelled tokens of the batches."""
    with evaluating(model):
        sums = [model(batch.to(model.device)) for batch in batches]
    return sum(loss.sum.item() for loss in sums) / max(1, sum(int(loss.count) for loss in sums))


def first_question(sample: Sample) -> tuple[Prompt, str]:
    """A sample's conversation up to its first answer, as a prompt, and that answer."""
    end = next(i for i, message in enumerate(sample.messages) if message.role == "assistant")
    messages = sample.messages[:end]
    return Prompt(messages, tuple(load_image(path) for path in sample.images[: count_placeholders(messages)])), sample.messages[end].text


def look(model: VisionLanguageModel, samples: Sequence[Sample], *, max_new_tokens: int = 32) -> list[Shown]:
    """Ask the model the first question of each sample."""
    asked = [first_question(sample) for sample in samples]
    with evaluating(model):
        answers = generate(model, [prompt for prompt, _ in asked], Sampling(max_new_tokens=max_new_tokens))
    return [
        Shown(image=sample.images[0] if sample.images else None, question=prompt.messages[-1].text, reference=reference, generated=answer)
        for sample, (prompt, reference), answer in zip(samples, asked, answers, strict=True)
    ]
