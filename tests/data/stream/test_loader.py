"""Batches in a fixed order, whatever the world, the micro-batches, the workers, and where a run was interrupted."""

import pickle
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm.conf.schema import BatchPlan
from vlm.data.sample import Sample
from vlm.data.stream.examples import ChatExamples
from vlm.data.stream.loader import MicroBatches, make_loader
from vlm.data.stream.mixture import Draws
from vlm.data.stream.order import START, Position, RowOrder, Units, packed, shuffled
from vlm.errors import DataFormatError
from vlm.messages import ChatTemplate, Message
from vlm.types import ChatBatch, ImagePolicy, TokensPerTile

TEMPLATE = ChatTemplate(name="t", user="<|im_start|>{content}<|im_end|>", assistant_start="<|im_start|>", assistant="{content}<|im_end|>")
ONE = BatchPlan(world=1, per_device=8, accumulation=1)


def ranks(plan: BatchPlan, *, steps: int = 5, order: RowOrder | None = None) -> list[list[list[int]]]:
    """Samples of each micro-batch of each rank."""
    order = order or shuffled(10, 3)
    made = [list(MicroBatches(order, plan, rank, steps)) for rank in range(plan.world)]
    assert {len(rank) for rank in made} == {len(MicroBatches(order, plan, 0, steps))}
    return [[[sample for row in batch.rows for tree in row for sample in tree] for batch in rank] for rank in made]


@pytest.mark.parametrize(("world", "per_device"), [(1, 8), (1, 1), (2, 2), (4, 1), (4, 2), (2, 4)])
def test_steps_hold_the_same_samples_in_order_whatever_the_world_and_micro_batches(world: int, per_device: int):
    (reference,) = ranks(ONE)
    plan = BatchPlan(world=world, per_device=per_device, accumulation=8 // (world * per_device))
    cut = ranks(plan)
    for step in range(5):
        micro = range(step * plan.accumulation, (step + 1) * plan.accumulation)
        assert [sample for i in micro for rank in range(world) for sample in cut[rank][i]] == reference[step]


def test_fewer_samples_than_a_batch_are_repeated():
    (steps,) = ranks(ONE, steps=3, order=shuffled(3, 0))
    assert sorted(sample for step in steps for sample in step) == sorted([0, 1, 2] * 8)


def samples(picture: Path, *, count: int = 6, bad: int | None = None) -> list[Sample]:
    made = []
    for i in range(count):
        path = Path("/nowhere.png") if i == bad else picture
        with_image = i % 2 == 0 or i == bad
        messages = (Message("user", "<image>" * with_image + f" {i}"), Message("assistant", "x" * (i % 6 + 1)))
        made.append(Sample(str(i), (path,) * with_image, messages))
    return made


def examples(tokenizer, picture: Path, *, count: int = 6, bad: int | None = None) -> ChatExamples:
    return ChatExamples(
        samples(picture, count=count, bad=bad),
        template=TEMPLATE,
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        policy=ImagePolicy(size=8),
        tokens_per_image=lambda layout: layout.num_tiles * 4,
        max_length=200,
        source_of=lambda index: index % 2,
        num_sources=2,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_yields_the_batches_in_order_with_and_without_workers(tokenizer, picture: Path, num_workers: int):
    data, plan = examples(tokenizer, picture), BatchPlan(world=1, per_device=2, accumulation=2)
    loader = make_loader(data, shuffled(6, 5), plan=plan, num_steps=2, num_workers=num_workers)
    got = list(loader)
    assert len(loader) == len(got) == 4
    for batch, wanted in zip(got, MicroBatches(shuffled(6, 5), plan, 0, 2), strict=True):
        assert batch.position == wanted.position
        for row, ((sample,),) in zip(batch.ids, wanted.rows, strict=True):
            assert torch.equal(row[: len(data[sample].ids)], data[sample].ids)
    assert sum(len(batch.pixels) for batch in got[:3]) == 3


def packed_order(data: ChatExamples, *, window: int = 16) -> RowOrder:
    lengths = np.array([data.measure(i)[0] for i in range(len(data))])
    arrange = partial(packed, lengths=lengths, capacity=60)
    return RowOrder(Units(len(data), lengths=lengths), Draws((len(data),), (len(data),), 3), arrange, capacity=60, seed=3, window=window)


def equal(one: ChatBatch, other: ChatBatch) -> bool:
    """Bit for bit, all fields."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "documents":
            same = torch.equal(a.starts, b.starts) and torch.equal(a.positions, b.positions)
        else:
            same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        if not same:
            return False
    return True


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["packed", "one a row"])
def test_a_stream_stopped_at_any_step_goes_on_bit_for_bit(tokenizer, picture: Path, num_workers: int, kind: str):
    data, plan = examples(tokenizer, picture, count=50), BatchPlan(world=1, per_device=2, accumulation=2)
    order = packed_order(data) if kind == "packed" else shuffled(50, 3)
    whole = list(make_loader(data, order, plan=plan, num_steps=20))
    for stopped in (1, 4, 13) if num_workers else range(1, 19):
        start = Position(*whole[2 * stopped - 1].position)
        rest = list(make_loader(data, order, plan=plan, num_steps=min(3, 20 - stopped), start=start, num_workers=num_workers))
        assert all(equal(a, b) for a, b in zip(rest, whole[2 * stopped :], strict=False))
        assert len(rest) == 2 * min(3, 20 - stopped)


def test_another_world_goes_on_with_the_same_rows(tokenizer, picture: Path):
    order = packed_order(examples(tokenizer, picture, count=50))
    reference = [batch.rows for batch in MicroBatches(order, BatchPlan(world=1, per_device=4, accumulation=1), 0, 12)]
    start = list(MicroBatches(order, BatchPlan(world=1, per_device=4, accumulation=1), 0, 5))[-1].position
    two = BatchPlan(world=2, per_device=2, accumulation=1)
    cut = [list(MicroBatches(order, two, rank, 7, start)) for rank in range(2)]
    assert [one.rows + other.rows for one, other in zip(*cut, strict=True)] == reference[5:]


def test_batches_of_every_stage_know_where_the_stream_goes_on():
    batches = list(MicroBatches(shuffled(10, 3), replace(ONE, per_device=4, accumulation=2), 0, 2))
    assert [batch.position for batch in batches] == [Position(0, 0, 8)] * 2 + [Position(1, 0, 6)] * 2
    assert Position(0, 0, 0) == START


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_sample_arrives_on_one_line(tokenizer, picture: Path, num_workers: int):
    data = examples(tokenizer, picture, bad=2)
    plan = BatchPlan(world=1, per_device=3, accumulation=1)
    with pytest.raises(DataFormatError) as caught:
        list(make_loader(data, shuffled(6, 0), plan=plan, num_steps=2, num_workers=num_workers))
    assert str(caught.value) == "There is no image file /nowhere.png."


@pytest.mark.gpu
def test_pinned_batches_are_pinned(tokenizer, picture: Path):
    plan = BatchPlan(world=1, per_device=2, accumulation=1)
    batch = next(iter(make_loader(examples(tokenizer, picture), shuffled(6, 0), plan=plan, num_steps=1, pin_memory=True)))
    assert batch.ids.is_pinned() and batch.labels.is_pinned() and batch.pixels.is_pinned()


def test_rows_longer_than_planned_are_found(tokenizer, picture: Path):
    data = examples(tokenizer, picture, count=20)
    order = packed_order(data)
    data.tokens_per_image = TokensPerTile(40)
    plan = BatchPlan(world=1, per_device=2, accumulation=1)
    with pytest.raises(DataFormatError, match=r"planned were 60 at most: the data has changed.*Delete the lengths"):
        list(make_loader(data, order, plan=plan, num_steps=5))


def test_what_workers_are_sent_is_no_model(tokenizer, picture: Path):
    """Start methods other than fork pickle it for each worker."""
    data = examples(tokenizer, picture)
    data.tokens_per_image, data.source_of = TokensPerTile(4), None
    assert len(pickle.dumps(data)) < 200_000 + 2 * len(pickle.dumps(tokenizer))
