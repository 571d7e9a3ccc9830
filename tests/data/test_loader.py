from collections import Counter
from pathlib import Path

import pytest
import torch

from vlm.conf.schema import BatchPlan
from vlm.data.loader import ChatExamples, OrderedBatches, make_loader
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import ChatTemplate, Message
from vlm.types import ImageLayout, ImagePolicy

TEMPLATE = ChatTemplate(name="t", user="<|im_start|>{content}<|im_end|>", assistant_start="<|im_start|>", assistant="{content}<|im_end|>")


def batches(samples: int = 10, size: int = 8, *, per_device: int = 2, rank: int = 0, world: int = 1, seed: int = 3, start: int = 0, steps: int = 5):
    return OrderedBatches(samples, size, per_device, rank, world, seed, start, steps)


def flat(ordered: OrderedBatches) -> list[int]:
    return [index for batch in ordered for index in batch]


def test_stream_is_one_permutation_after_another_and_drops_nothing():
    stream = flat(batches(steps=5))
    assert len(stream) == 40
    for epoch in range(4):
        assert sorted(stream[epoch * 10 : (epoch + 1) * 10]) == list(range(10))
    assert stream[:10] != stream[10:20]


@pytest.mark.parametrize(("world", "per_device"), [(1, 8), (1, 1), (2, 2), (4, 1), (4, 2)])
def test_steps_hold_the_same_samples_whatever_the_world_and_micro_batches(world: int, per_device: int):
    reference = flat(batches(per_device=8))
    ranks = [list(batches(per_device=per_device, rank=rank, world=world)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(batches(per_device=per_device, world=world))}
    accumulation = 8 // (world * per_device)
    for step in range(5):
        seen = [index for rank in ranks for batch in rank[step * accumulation : (step + 1) * accumulation] for index in batch]
        assert seen == reference[step * 8 : (step + 1) * 8]


def test_a_later_start_continues_the_same_stream():
    assert list(batches(start=3)) == list(batches())[3 * 4 :]
    assert len(batches(start=3)) == 2 * 4
    assert len(batches(start=6)) == 0


def test_order_follows_the_seed():
    assert flat(batches(seed=1)) == flat(batches(seed=1)) != flat(batches(seed=2))


def test_fewer_samples_than_a_batch_are_repeated():
    assert Counter(flat(batches(samples=3, steps=3))) == {0: 8, 1: 8, 2: 8}


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="that 6 divides; got 10 and 8"):
        batches(per_device=3, world=2)


def examples(tokenizer, picture: Path, *, count: int = 6, max_length: int = 200, bad: int | None = None) -> ChatExamples:
    samples = []
    for i in range(count):
        path = Path("/nowhere.png") if i == bad else picture
        with_image = i % 2 == 0 or i == bad
        messages = (Message("user", "<image>" * with_image + f" {i}"), Message("assistant", "x" * (i + 1)))
        samples.append(Sample(str(i), (path,) * with_image, messages))
    return ChatExamples(
        samples,
        template=TEMPLATE,
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        policy=ImagePolicy(size=8),
        tokens_per_image=lambda layout: layout.num_tiles * 4,
        max_length=max_length,
    )


def test_example_has_tiles_and_as_many_image_tokens_as_the_layout_says(tokenizer, picture: Path):
    data = examples(tokenizer, picture)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert int((data[0].ids == image).sum()) == 4
    assert data[0].pixels.shape == (1, 3, 8, 8)
    assert data[1].pixels.shape == (0, 3, 8, 8)
    assert len(data) == 6


def test_tokens_are_counted_from_the_layout_of_the_picture(tokenizer, picture: Path):
    data = examples(tokenizer, picture)
    seen: list[ImageLayout] = []
    data.tokens_per_image = lambda layout: seen.append(layout) or 1
    _ = data[0]
    assert seen == [ImageLayout(grid=(1, 1), size=(10, 20))]


def test_too_long_conversation_names_sample_lengths_and_remedy(tokenizer, picture: Path):
    data = examples(tokenizer, picture)
    length = len(data[4].ids)
    data.max_length = length
    _ = data[4]
    data.max_length = length - 1
    with pytest.raises(DataFormatError, match=rf"'4' has {length} tokens, the longest allowed is {length - 1}.*--stage\.max-length"):
        _ = data[4]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_yields_the_batches_in_order_with_and_without_workers(tokenizer, picture: Path, num_workers: int):
    data = examples(tokenizer, picture)
    loader = make_loader(data, plan=BatchPlan(world=1, per_device=2, accumulation=2), seed=5, num_steps=2, num_workers=num_workers)
    got = list(loader)
    assert len(loader) == len(got) == 4
    for batch, indices in zip(got, batches(samples=6, size=4, seed=5, steps=2), strict=True):
        for row, index in zip(batch.ids, indices, strict=True):
            assert torch.equal(row[: len(data[index].ids)], data[index].ids)
    assert sum(len(batch.pixels) for batch in got[:3]) == 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_sample_arrives_on_one_line(tokenizer, picture: Path, num_workers: int):
    data = examples(tokenizer, picture, bad=2)
    with pytest.raises(DataFormatError) as caught:
        list(make_loader(data, plan=BatchPlan(world=1, per_device=3, accumulation=1), seed=0, num_steps=2, num_workers=num_workers))
    assert str(caught.value) == "There is no image file /nowhere.png."


@pytest.mark.gpu
def test_pinned_batches_are_pinned(tokenizer, picture: Path):
    plan = BatchPlan(world=1, per_device=2, accumulation=1)
    batch = next(iter(make_loader(examples(tokenizer, picture), plan=plan, seed=0, num_steps=1, pin_memory=True)))
    assert batch.ids.is_pinned() and batch.labels.is_pinned() and batch.pixels.is_pinned()
