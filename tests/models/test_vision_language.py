"""The assembled model: documents in rows, the use of pictures, what is frozen, and where the head runs."""

from dataclasses import replace

import pytest
import torch

from vlm.errors import DataFormatError
from vlm.models import losses
from vlm.types import IGNORE_INDEX, ChatBatch, Documents

ONE = ["<image>\nWhat color is the circle?", "blue", "And the shape?", "A red square."]
TWO = ["What shape is <image> in the image?", "Yes"]
TEXT = ["Is there a red square?", "No"]


def packed(first, second) -> ChatBatch:
    """Two conversations in one row, and some padding behind them."""
    padding = 3
    lengths = [len(first.ids), len(second.ids)]
    return ChatBatch(
        ids=torch.cat([first.ids, second.ids, torch.zeros(padding, dtype=torch.long)])[None],
        labels=torch.cat([first.labels, second.labels, torch.full((padding,), IGNORE_INDEX)])[None],
        documents=Documents(
            starts=torch.tensor([0, lengths[0], sum(lengths) + padding]),
            positions=torch.cat([torch.arange(lengths[0]), torch.arange(lengths[1] + padding)])[None],
        ),
        pixels=torch.cat([first.pixels, second.pixels]),
        num_samples=2,
    )


@torch.no_grad()
def test_two_conversations_in_one_row_have_the_loss_of_two_rows(compose, example, chat_batch, language):
    model = compose(language=language)
    together = model(packed(example(model, ONE, seed=0), example(model, TWO, seed=1)))
    apart = model(chat_batch(model, [ONE, TWO]))
    assert int(together.count) == int(apart.count) > 4
    torch.testing.assert_close(together.sum / together.count, apart.sum / apart.count, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_loss_is_the_mean_over_labels_of_plain_cross_entropy(compose, chat_batch, language):
    model = compose(language=language)
    batch = chat_batch(model, [ONE, TEXT, TWO])
    logits = model.language.logits(model.hidden(batch)[:, :-1].flatten(0, 1))
    expected = torch.nn.functional.cross_entropy(logits, batch.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
    loss = model(batch)
    assert int(loss.count) == batch.num_labels
    torch.testing.assert_close(loss.sum / loss.count, expected)


def test_logits_in_chunks_give_the_same_loss_and_gradients(compose, chat_batch, monkeypatch):
    results = []
    for whole in (2**28, 0):
        monkeypatch.setattr(losses, "WHOLE", whole)
        monkeypatch.setattr(losses, "CHUNK", 3 * 384)
        model = compose(trained=("connector", "language")).train()
        loss = model(chat_batch(model, [ONE, TEXT, TWO]))
        loss.sum.backward()
        results.append((loss.sum, loss.count, [weight.grad for weight in model.parameters() if weight.requires_grad]))
    torch.testing.assert_close(*results)


@torch.no_grad()
def test_black_and_white_pictures_give_different_logits(compose, chat_batch, language):
    model = compose(language=language)
    batch = chat_batch(model, [["What color is <image>", "blue"]])  # close to the answer: tiny-mistral sees ten tokens back
    black, white = (replace(batch, pixels=torch.full_like(batch.pixels, value)) for value in (0, 255))
    answer = int((batch.labels[0] != IGNORE_INDEX).nonzero()[0]) - 1
    first, second = (model.language.logits(model.hidden(picture)[:, answer]) for picture in (black, white))
    assert (first - second).abs().max() > 1e-2


@torch.no_grad()
def test_exchanging_two_pictures_changes_the_loss(compose, chat_batch):
    model = compose()
    batch = chat_batch(model, [["<image> or <image>", "Yes"]])
    assert model(batch).sum != model(replace(batch, pixels=batch.pixels.flip(0))).sum


def test_a_batch_without_images_gives_the_connector_gradients_of_zero_and_not_none(compose, chat_batch):
    model = compose(trained=("connector",)).train()
    batch = chat_batch(model, [TEXT])
    assert len(batch.pixels) == 0
    model(batch).sum.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.connector.parameters())


def test_a_batch_without_images_touches_a_trained_vision_tower(compose, chat_batch):
    model = compose(trained=("vision", "connector", "language")).train()
    model(chat_batch(model, [TEXT])).sum.backward()
    grads = {name: weight.grad for name, weight in model.vision.named_parameters()}
    used = {name: grad for name, grad in grads.items() if "layers.2" not in name and "post_layernorm" not in name and ".head" not in name}
    assert used
    assert all(grad is not None and not grad.any() for grad in used.values())


@torch.no_grad()
def test_the_dummy_tile_leaves_the_loss_alone(compose, chat_batch):
    model = compose(trained=("connector",))
    batch = chat_batch(model, [TEXT])
    assert model.train()(batch).sum == model.eval()(batch).sum


def test_a_frozen_tower_keeps_no_graph_and_stays_in_evaluation_mode(compose, chat_batch):
    model = compose(trained=("connector",)).train()
    seen = []
    model.vision.register_forward_hook(lambda module, inputs, features: seen.append(features))
    loss = model(chat_batch(model, [ONE])).sum
    assert not seen[0].requires_grad
    assert loss.requires_grad
    assert (model.training, model.vision.training, model.connector.training, model.language.training) == (True, False, True, False)


def test_a_trained_tower_gets_gradients(compose, chat_batch):
    model = compose(trained=("vision", "connector")).train()
    model(chat_batch(model, [ONE])).sum.backward()
    assert model.vision.training
    assert model.vision.blocks()[0].mlp.fc1.weight.grad.any()


def test_training_the_connector_leaves_no_gradient_in_frozen_parts(compose, chat_batch):
    model = compose(trained=("connector",)).train()
    model(chat_batch(model, [ONE])).sum.backward()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None} == {"connector"}


def test_an_adapter_alone_is_trained_in_the_language_model(compose, chat_batch):
    model = compose(rank=2, trained=("connector", "language")).train()
    model(chat_batch(model, [ONE])).sum.backward()
    trained = [name for name, weight in model.language.named_parameters() if weight.grad is not None]
    assert trained
    assert all(".lora_" in name for name in trained)


@torch.no_grad()
def test_the_head_runs_on_labelled_positions_only(compose, chat_batch):
    model = compose()
    batch = chat_batch(model, [ONE, TEXT])
    seen = []
    head = model.language.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model(batch)
    assert seen == [(batch.num_labels, model.language.width)]
    assert batch.num_labels < batch.ids.numel() / 4


def test_placeholders_without_their_pictures_are_refused_with_both_counts(compose, chat_batch):
    model = compose()
    batch = chat_batch(model, [ONE, TWO])
    with pytest.raises(DataFormatError, match=r"32 image tokens, but its 1 tiles give 16 image embeddings \(16 each\)"):
        model(replace(batch, pixels=batch.pixels[:1]))


def test_image_tokens_without_any_picture_are_refused(compose, chat_batch):
    model = compose()
    batch = chat_batch(model, [ONE])
    with pytest.raises(DataFormatError, match="16 image tokens"):
        model(replace(batch, pixels=batch.pixels[:0]))


def test_pictures_without_image_tokens_are_refused(compose, chat_batch):
    model = compose()
    batch = chat_batch(model, [TEXT])
    with pytest.raises(DataFormatError, match="0 image tokens"):
        model(replace(batch, pixels=torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))


def test_mixed_precision_holds_frozen_weights_in_bf16_and_trained_ones_in_fp32(compose, chat_batch):
    model = compose(rank=2, trained=("connector", "language"), precision="bf16-mixed").train()
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(chat_batch(model, [ONE]))
    loss.sum.backward()
    assert loss.sum.dtype == torch.float32
