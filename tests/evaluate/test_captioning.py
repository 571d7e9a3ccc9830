"""Ranking of captions against brute force over plain forward passes, and its arithmetic by hand."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm.conf.schema import VisionLanguageConfig
from vlm.data.chat import encode_chat
from vlm.data.image import to_tiles
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.evaluate import captioning
from vlm.evaluate.captioning import mean_elsewhere, rank_captions
from vlm.evaluate.validation import first_question, look, validation_loss
from vlm.messages import Message
from vlm.models.build import build
from vlm.types import IGNORE_INDEX, ChatBatch, Documents

CAPTIONS = ["a blue circle", "a red square", "a red circle, black and gray"]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for i in range(5):
        noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.png")
        messages = (Message("user", "<image>\nDescribe the image."), Message("assistant", CAPTIONS[i % 3]))
        made.append(Sample(id=str(i), images=(tmp_path / f"{i}.png",), messages=messages))
    return made


@pytest.fixture
def model():
    made = build(VisionLanguageConfig(vision="tiny-clip", connector="linear", language="tiny-qwen2"), precision="fp32")
    torch.nn.init.normal_(made.connector.readout.weight)
    return made


def batch_of(model, sample: Sample, caption: str) -> ChatBatch:
    encoded = encode_chat(
        (sample.messages[0], Message("assistant", caption)),
        template=model.template,
        tokenizer=model.language.tokenizer,
        image_token_id=model.language.image_token_id,
        tokens_per_image=[16],
    )
    pixels = to_tiles(Image.open(sample.images[0]), model.image_policy)[0]
    documents = Documents.one_per_row(1, len(encoded.ids))
    return ChatBatch(ids=encoded.ids[None], labels=encoded.labels[None], documents=documents, pixels=pixels, num_samples=1)


@torch.no_grad()
def negative_log_likelihood(model, sample: Sample, caption: str) -> float:
    batch = batch_of(model, sample, caption)
    logits = model.language.logits(model.hidden(batch)[0, :-1])
    return torch.nn.functional.cross_entropy(logits, batch.labels[0, 1:], ignore_index=IGNORE_INDEX, reduction="sum").item()


@pytest.mark.parametrize("batch_size", [2, 16])
def test_ranking_equals_brute_force(model, samples, batch_size):
    nll = torch.tensor([[negative_log_likelihood(model, sample, caption) for caption in CAPTIONS] for sample in samples])
    truth = [i % 3 for i in range(5)]
    others = [[nll[j, truth[i]].item() for j in range(5) if j != i] for i in range(5)]
    ranking = rank_captions(model, samples, CAPTIONS, batch_size=batch_size)
    assert ranking.nll_matched == pytest.approx(sum(nll[i, truth[i]].item() for i in range(5)) / 5, abs=1e-4)
    assert ranking.nll_shuffled == pytest.approx(sum(sum(row) / 4 for row in others) / 5, abs=1e-4)
    assert ranking.caption_accuracy == pytest.approx(sum(int(nll[i].argmin()) == truth[i] for i in range(5)) / 5)
    assert ranking.caption_chance == pytest.approx(1 / 3)


def test_ranking_by_hand(monkeypatch, model, samples):
    scores = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, -4.0]])
    monkeypatch.setattr(captioning, "answer_log_probs", lambda *_: scores)
    ranking = rank_captions(model, samples[:2], CAPTIONS)
    assert ranking.nll_matched == 1.5  # (1 + 2) / 2
    assert ranking.nll_shuffled == 1.5  # the first caption with the second picture: 1; the second with the first: 2
    assert ranking.caption_accuracy == 0.5


def test_mean_elsewhere_leaves_the_own_picture_out():
    scores = torch.tensor([[-1.0, 0.0], [-5.0, 0.0], [-7.0, 0.0]])
    assert mean_elsewhere(scores, torch.tensor([0, 0, 0]), 0) == -6.0


def test_a_caption_outside_of_the_candidates_is_refused(model, samples):
    with pytest.raises(DataFormatError, match=r"'2' has the caption 'a red circle, black and gray', which is not among the 2 candidates"):
        rank_captions(model, samples, CAPTIONS[:2])


def test_one_sample_has_no_other_picture(model, samples):
    with pytest.raises(DataFormatError, match="at least 2 samples"):
        rank_captions(model, samples[:1], CAPTIONS)


@torch.no_grad()
def test_validation_loss_is_the_mean_over_all_labels(model, samples):
    batches = [batch_of(model, sample, sample.messages[1].text) for sample in samples]
    total = sum(negative_log_likelihood(model, sample, sample.messages[1].text) for sample in samples)
    count = sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches)
    assert validation_loss(model, batches) == pytest.approx(total / count, rel=1e-5)


def test_first_question_is_the_conversation_up_to_the_first_answer(samples):
    prompt, answer = first_question(samples[1])
    assert prompt.messages == samples[1].messages[:1]
    assert [image.size for image in prompt.images] == [(32, 32)]
    assert answer == CAPTIONS[1]


def test_a_look_shows_question_reference_and_answer(model, samples):
    shown = look(model, samples[:2], max_new_tokens=3)
    assert [item.reference for item in shown] == CAPTIONS[:2]
    assert [item.image for item in shown] == [sample.images[0] for sample in samples[:2]]
    assert all(item.question == "<image>\nDescribe the image." for item in shown)


def test_looking_and_validating_keep_the_models_mode(model, samples):
    model.train()
    look(model, samples[:1], max_new_tokens=1)
    validation_loss(model, [batch_of(model, samples[0], "a red square")])
    rank_captions(model, samples[:2], CAPTIONS)
    assert model.training
