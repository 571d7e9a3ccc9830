from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_data import metrics
from torch.utils.flop_counter import FlopCounterMode

import vlm
from vlm.conf.presets import PRESETS
from vlm.models.build import build, skeleton
from vlm.models.flops import FlopModel
from vlm.training.meter import COMMUNICATION, OPTIMIZER, Meter, make_meter
from vlm.training.peak import Peak
from vlm.types import IGNORE_INDEX, ChatBatch, Documents, World

SHARES = {"optimizer_share", "communication_share"}


def ticking(*seconds: float) -> Iterator[float]:
    yield from seconds


def batch_of(model: vlm.VisionLanguageModel, *, rows: int = 2, text: int = 24, padding: int = 0) -> ChatBatch:
    tiles = model.tokens_per_tile
    length = tiles + text
    ids = torch.full((rows, length), 5)
    ids[:, :tiles] = model.language.image_token_id
    labels = torch.where(torch.arange(length) >= tiles, ids, IGNORE_INDEX)
    pixels = torch.zeros(rows, 3, model.image_policy.size, model.image_policy.size, dtype=torch.uint8)
    return ChatBatch(ids=ids, labels=labels, documents=Documents.one_per_row(rows, length), pixels=pixels, num_samples=rows, num_padding=padding)


def tiny_flops(**settings) -> FlopModel:
    return FlopModel.of(skeleton(PRESETS["tiny/align"].model, precision="fp32", trained=("connector",)), **settings)


def tiny_model() -> vlm.VisionLanguageModel:
    return build(PRESETS["tiny/align"].model, precision="fp32", trained=("connector",))


def test_flops_of_a_step_are_those_that_torch_counts_in_it():
    model = tiny_model().train()
    batches = [batch_of(model), batch_of(model, rows=3, text=30)]
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            model(batch).sum.backward()
    meter = Meter(tiny_flops(), peak=Peak(1e9, "for this test"), world=World.single())
    assert list(meter.watch(batches)) == batches
    seen = meter.step(seconds=2.0)
    flops = seen["flops_per_second"] * 2.0
    counted = counter.get_flop_counts()["Global"]
    attention = sum(count for op, count in counted.items() if "attention" in str(op))
    products = counter.get_total_flops() - attention
    # of causal attention torch counts both halves, and the scores a third time where the backward pass of a flash kernel computes them again
    assert 0.35 * attention < flops - products < 0.65 * attention
    assert seen["mfu"] == pytest.approx(flops / 2.0 / 1e9)
    assert seen["recompute_share"] == 0


def test_padding_and_recomputation_are_no_achievement():
    model = tiny_model()
    plain, padded, recomputed = (Meter(tiny_flops(recomputed=parts), peak=None, world=World.single()) for parts in ((), (), ("language",)))
    list(plain.watch([batch_of(model)])), list(padded.watch([batch_of(model, padding=16)])), list(recomputed.watch([batch_of(model)]))
    achieved = plain.step(1.0)["flops_per_second"]
    assert padded.step(1.0)["flops_per_second"] < 0.9 * achieved
    again = recomputed.step(1.0)
    assert again["flops_per_second"] == pytest.approx(achieved)
    assert 0.1 < again["recompute_share"] < 0.34


def test_spans_are_shares_of_the_step_and_start_anew():
    times = ticking(10.0, 10.5, 11.0, 11.25, 12.0, 12.25)
    meter = Meter(None, peak=None, world=World.single(), clock=lambda: next(times))
    with meter.span(OPTIMIZER):
        pass
    with meter.span(COMMUNICATION):
        pass
    with meter.span(COMMUNICATION):
        pass
    meter.add(COMMUNICATION, 0.5)
    assert meter.step(2.0) == {"optimizer_share": 0.25, "communication_share": 0.5}
    assert meter.step(2.0) == dict.fromkeys(SHARES, 0.0)


@pytest.mark.gpu
def test_spans_on_a_gpu_are_read_when_the_device_has_passed_them():
    meter = Meter(None, peak=None, world=World.single("cuda"))
    matrix = torch.ones(4096, 4096, device="cuda")
    with meter.span(OPTIMIZER):
        for _ in range(50):
            matrix @ matrix
    first = meter.step(1.0)["optimizer_share"]
    torch.cuda.synchronize()
    assert first + meter.step(1.0)["optimizer_share"] > 0.001


def test_a_run_writes_what_it_achieved(tiny):
    first = metrics(vlm.train(tiny("finetune")))[0]
    assert first["flops_per_second"] > 0
    assert first["mfu"] > 0
    assert {"tokens_per_second", "padding_share", "data_wait_share", "recompute_share"} | SHARES <= set(first)
    assert 0 < first["optimizer_share"] < 1
    assert first["communication_share"] < 0.1


def test_a_meter_knows_what_a_stage_computes_twice():
    config = replace(PRESETS["tiny/align"], stage=replace(PRESETS["tiny/align"].stage, gradient_checkpointing=("language",)))
    meter = make_meter(config, precision="fp32", world=World.single())
    list(meter.watch([batch_of(tiny_model())]))
    assert meter.step(1.0)["recompute_share"] > 0.1
