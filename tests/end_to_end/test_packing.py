"""Packed rows and message trees against separate rows, through the whole model: losses, gradients, and what is never built."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlm.conf.schema import VisionLanguageConfig
from vlm.data.sample import Sample
from vlm.data.stream.collate import collate
from vlm.data.stream.examples import ChatExamples
from vlm.messages import Message
from vlm.models.build import build
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import ChatBatch

FAMILIES = ["tiny-llama", "tiny-mistral", "tiny-phi", "tiny-phi3", "tiny-qwen2", "tiny-qwen3"]
families = pytest.mark.parametrize("family", FAMILIES)


def build_model(family: str, template: str = "") -> VisionLanguageModel:
    config = VisionLanguageConfig(vision="tiny-siglip", connector="mlp2x-gelu", language=family, template=template)
    return build(config, precision="fp32", trained=("vision", "connector", "language"), seed=0).train()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def conversation(name: str, images: list[Path], *texts: str) -> Sample:
    return Sample(name, tuple(images), tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)))


def mixed(pictures: list[Path]) -> list[Sample]:
    """One picture, none, several, one in a later turn."""
    a, b, c = pictures
    return [
        conversation("one", [a], "<image>\nWhat is it?", "A red circle."),
        conversation("none", [], "Say something long, please.", "Yes. " * 12),
        conversation("two", [b, c], "<image> and <image>, which?", "The first, I think."),
        conversation("later", [c], "Hello.", "Hi!", "And <image> this?", "Blue."),
        conversation("short", [], "Hi", "Ho"),
    ]


def examples_of(model: VisionLanguageModel, samples: list[Sample]) -> ChatExamples:
    return ChatExamples(
        samples,
        template=model.template,
        tokenizer=model.language.tokenizer,
        image_token_id=model.language.image_token_id,
        policy=model.image_policy,
        tokens_per_image=model.tokens_per_image,
        max_length=512,
    )


def batch_of(examples: ChatExamples, rows: list[list[tuple[int, ...]]]) -> ChatBatch:
    return collate([[examples.tree(tree) for tree in row] for row in rows], pad_id=examples.pad_id)


def loss_and_gradients(model: VisionLanguageModel, batch: ChatBatch) -> tuple[float, int, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(batch)
    (loss.sum / loss.count).backward()
    return (loss.sum / loss.count).item(), int(loss.count), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_training(model: VisionLanguageModel, one: ChatBatch, other: ChatBatch) -> None:
    loss, count, gradients = loss_and_gradients(model, one)
    other_loss, other_count, other_gradients = loss_and_gradients(model, other)
    assert count == other_count
    assert loss == pytest.approx(other_loss, abs=1e-5)
    assert gradients.keys() == other_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert float((gradient - other_gradients[name]).abs().max()) < 1e-5 * max(1.0, largest), name


@families
def test_packed_rows_train_as_separate_rows(family: str, pictures: list[Path]):
    model = build_model(family)
    examples = examples_of(model, mixed(pictures))
    separate = batch_of(examples, [[(i,)] for i in range(5)])
    packed = batch_of(examples, [[(3,), (0,)], [(1,), (4,), (2,)]])
    assert packed.ids.shape[0] == 2
    assert_equal_training(model, separate, packed)


@families
def test_changing_a_document_moves_no_other_by_anything(family: str, pictures: list[Path]):
    """Logits and gradients at the input, in the same row and in another; the change is in words and in the picture."""
    model = build_model(family).eval()
    original = batch_of(examples_of(model, mixed(pictures)), [[(0,), (2,), (4,)], [(1,), (3,)]])
    start, end = original.documents.starts[1:3].tolist()  # document "two", between "one" and "short"
    words = (original.ids == model.language.image_token_id) | (torch.arange(original.ids.numel()).view_as(original.ids) >= start)
    changed = replace(original, ids=original.ids.where(words, 77), pixels=torch.cat([255 - original.pixels[:1], original.pixels[1:]]))
    seen = []
    for batch in (original, changed):
        embeds = model.embed(batch).detach().requires_grad_()
        hidden = model.language(embeds, batch.documents)
        hidden.flatten(0, 1)[start:end].square().sum().backward()
        seen.append((hidden.flatten(0, 1).detach(), embeds.grad.flatten(0, 1)))
    (hidden, gradient), (other_hidden, other_gradient) = seen
    assert torch.equal(hidden[start:], other_hidden[start:])
    assert not torch.equal(hidden[:start], other_hidden[:start])
    assert torch.equal(gradient[start:], other_gradient[start:])
    assert gradient[:start].abs().max() == 0 and gradient[end:].abs().max() == 0


def about_the_same(pictures: list[Path]) -> list[Sample]:
    """Five texts about one pair of pictures, one about another, one without."""
    a, b, c = pictures
    questions = ["What color?", "Which shape?", "Is it red? Or is it a square, after all?", "Say all.", "Why?"]
    pair = [conversation(f"pair {i}", [a, b], f"<image><image>{text}", f"Answer number {i}.", "Sure?", "Yes.") for i, text in enumerate(questions)]
    return [*pair, conversation("single", [c], "<image>What color?", "Gray."), conversation("text", [], "Hi", "Ho")]


@families
@pytest.mark.parametrize("template", ["", "plain", "caption"], ids=["chat", "plain", "caption"])
def test_a_message_tree_trains_as_separate_rows(family: str, template: str, pictures: list[Path]):
    model = build_model(family, template)
    samples = about_the_same(pictures)
    if template in ("plain", "caption"):
        samples = [conversation(s.id, list(s.images), *[m.text for m in s.messages[:2]]) for s in samples if s.images]
    examples = examples_of(model, samples)
    others = list(range(5, len(samples)))
    separate = batch_of(examples, [[(i,)] for i in range(len(samples))])
    tree = batch_of(examples, [[(0, 1, 2, 3, 4)], *[[(i,)] for i in others]])
    mixed_row = batch_of(examples, [[*[(i,) for i in others], (4, 2, 0)], [(1, 3)]])
    assert len(tree.pixels) == len(separate.pixels) - 8
    assert tree.documents.prefix is not None
    assert_equal_training(model, separate, tree)
    assert_equal_training(model, separate, mixed_row)


@families
def test_branches_do_not_see_each_other(family: str, pictures: list[Path]):
    model = build_model(family).eval()
    samples = about_the_same(pictures)
    seen = []
    for third in (samples[2], conversation("x", list(samples[2].images), "<image><image>Quite another question!", "Indeed.", "Sure?", "No.")):
        examples = examples_of(model, [*samples[:2], third, *samples[3:5]])
        batch = batch_of(examples, [[(0, 1, 3, 4, 2)]])
        hidden = model.hidden(batch)[0].detach()
        seen.append(hidden[: int(batch.documents.starts[5])])  # the pictures and the four branches before the changed one
    assert torch.equal(*seen)


def count_masks(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[tuple[int, int]]:
    """Shapes of the masks that reach SDPA, and of every square boolean that transformers' mask functions would make."""
    import torch.nn.functional as F

    masks: list[tuple[int, int]] = []
    sdpa = F.scaled_dot_product_attention

    def counting(*args, attn_mask=None, **settings):
        if attn_mask is not None:
            masks.append(tuple(attn_mask.shape[-2:]))
        return sdpa(*args, attn_mask=attn_mask, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    work()
    return masks


@families
def test_no_mask_of_a_whole_row_is_built(family: str, pictures: list[Path], monkeypatch: pytest.MonkeyPatch):
    model = build_model(family)
    samples = [*mixed(pictures), *about_the_same(pictures)]
    examples = examples_of(model, samples)
    packed = batch_of(examples, [[(0,), (1,), (2,)], [(3,), (4,)]])
    tree = batch_of(examples, [[(5, 6, 7, 8, 9)]])
    longest = int(packed.documents.starts.diff().max())
    sliding = family in ("tiny-mistral", "tiny-phi3")  # a window inside a document needs a mask of that document
    masks = count_masks(monkeypatch, lambda: model(packed))
    assert packed.ids.shape[1] > longest
    assert all(max(shape) <= longest for shape in masks) if sliding else not masks
    masks = count_masks(monkeypatch, lambda: model(tree))
    assert all(queries < tree.ids.shape[1] / 2 for queries, _ in masks)
