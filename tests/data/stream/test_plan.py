"""From settings to rows: units, trees, mixtures, and the files of lengths that they rest on."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.conf.schema import LearningRates, StageConfig
from vlm.data.reader import SampleSet, open_dataset
from vlm.data.stream import lengths as lengths_module
from vlm.data.stream.examples import ChatExamples
from vlm.data.stream.lengths import Lengths, measure
from vlm.data.stream.order import RowOrder
from vlm.data.stream.plan import describe, plan_order, trees_of
from vlm.errors import DataFormatError
from vlm.messages import ChatTemplate
from vlm.types import ImagePolicy

TEMPLATE = ChatTemplate(name="t", user="<|im_start|>{content}<|im_end|>", assistant_start="<|im_start|>", assistant="{content}<|im_end|>")
STAGE = StageConfig(name="s", dataset="x", lr=LearningRates(connector=1.0), global_batch_size=4, per_device_batch_size=4, num_workers=0)


def write(path: Path, conversations: list[tuple[str | None, str]]) -> Path:
    """LLaVA rows of a picture (or none) and a question."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (image, question) in enumerate(conversations):
        if image:
            Image.new("RGB", (12, 9)).save(path.parent / image)
        turns = [{"from": "human", "value": "<image>" * bool(image) + question}, {"from": "gpt", "value": "yes"}]
        rows.append({"id": f"{path.stem}{i}", "conversations": turns} | ({"image": image} if image else {}))
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def examples(tokenizer, samples: SampleSet, *, max_length: int = 100) -> ChatExamples:
    return ChatExamples(
        samples,
        template=TEMPLATE,
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        policy=ImagePolicy(size=8),
        tokens_per_image=lambda layout: 4,
        max_length=max_length,
        source_of=samples.source_of,
        num_sources=len(samples.entries),
    )


def epoch(order: RowOrder) -> list[tuple[tuple[int, ...], ...]]:
    return [row for row, _ in islice(order.stream(), order.count_rows(1)[0])]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Five questions about a.png, one about b.png, two without a picture."""
    return write(
        tmp_path / "data/mine.json", [("a.png", f"question {i}" * (i + 1)) for i in range(5)] + [("b.png", "what"), (None, "hi"), (None, "ho")]
    )


def test_lengths_are_those_of_the_examples_and_stay_beside_the_data(tokenizer, mine: Path, monkeypatch: pytest.MonkeyPatch):
    samples = open_dataset(str(mine), data_root=mine.parent)
    data = examples(tokenizer, samples)
    counted = measure(samples, data)
    assert counted.total.tolist() == [len(data[i].ids) for i in range(8)]
    assert counted.total.dtype == np.int32
    assert counted.group.tolist() == [0, 0, 0, 0, 0, 5, 6, 7]
    assert counted.images.tolist() == [4] * 6 + [0, 0]
    (stored,) = samples.parts[0].home.glob("lengths-*.npy")
    assert np.load(stored).tolist() == [counted.total.tolist(), counted.shared.tolist(), counted.images.tolist(), counted.group.tolist()]

    def refuse(*_):
        raise AssertionError("counted again")

    monkeypatch.setattr(lengths_module, "_count", refuse)
    assert measure(samples, data).total.tolist() == counted.total.tolist()
    with pytest.raises(AssertionError, match="counted again"):
        measure(samples, examples(tokenizer, samples, max_length=50))
    data.policy = replace(data.policy, mode="pad")
    with pytest.raises(AssertionError, match="counted again"):
        measure(samples, data)


def test_lengths_are_the_same_with_workers(tokenizer, mine: Path, monkeypatch: pytest.MonkeyPatch):
    samples = open_dataset(str(mine), data_root=mine.parent)
    alone = lengths_module._count(range(8), examples(tokenizer, samples), False, 0, lambda blocks, _: blocks)
    monkeypatch.setattr(lengths_module, "BLOCK", 3)
    assert np.array_equal(lengths_module._count(range(8), examples(tokenizer, samples), False, 2, lambda blocks, _: blocks), alone)


def test_a_sample_that_cannot_be_counted_is_named(tokenizer, mine: Path):
    samples = open_dataset(str(mine), data_root=mine.parent)
    (mine.parent / "b.png").unlink()
    with pytest.raises(DataFormatError, match=r"There is no image file .*b\.png"):
        measure(samples, examples(tokenizer, samples))


def test_a_folder_that_cannot_be_written_moves_the_lengths_into_the_cache(tokenizer, mine: Path, tmp_path: Path):
    samples = open_dataset(str(mine), data_root=mine.parent)
    (tmp_path / "file").write_text("", encoding="utf-8")
    samples.parts = (replace(samples.parts[0], home=tmp_path / "file" / "home"),)
    measure(samples, examples(tokenizer, samples))
    assert len(list((tmp_path / "cache").glob("lengths-*.npy"))) == 1


def test_lengths_of_several_files_have_groups_of_their_own(tokenizer, mine: Path):
    other = write(mine.parent / "other.json", [("a.png", "one"), ("a.png", "two")])
    samples = open_dataset(f"{mine},{other}", data_root=mine.parent)
    counted = measure(samples, examples(tokenizer, samples))
    assert counted.group.tolist() == [0, 0, 0, 0, 0, 5, 6, 7, 8, 8]


def test_conversations_about_the_same_pictures_become_one_tree(tokenizer, mine: Path):
    samples = open_dataset(str(mine), data_root=mine.parent)
    data = examples(tokenizer, samples, max_length=1000)
    order = plan_order(replace(STAGE, share_images=True), samples, data, seed=1)
    assert sorted(epoch(order)) == [((0, 1, 2, 3, 4),), ((5,),), ((6,),), ((7,),)]
    counted = measure(samples, data)
    tree = int(counted.shared[0] + (counted.total - counted.shared)[:5].sum())
    assert order.units.lengths is not None
    assert sorted(order.units.lengths.tolist()) == sorted([tree, *counted.total[5:].tolist()])


def test_trees_are_cut_where_they_fill_a_row():
    lengths = Lengths(
        total=np.array([10, 14, 12, 9, 30]), shared=np.array([8, 8, 8, 8, 0]), images=np.array([8, 8, 8, 8, 0]), group=np.array([0, 0, 0, 0, 4])
    )
    units = trees_of(lengths, capacity=16)
    assert [units.tree(i) for i in range(units.count)] == [(0, 1), (2, 3), (4,)]
    assert units.lengths is not None and units.with_images is not None
    assert units.lengths.tolist() == [16, 13, 30]
    assert units.with_images.tolist() == [True, True, False]


def test_packed_rows_hold_everything_once_and_never_more_than_they_can(tokenizer, mine: Path):
    samples = open_dataset(str(mine), data_root=mine.parent)
    data = examples(tokenizer, samples)
    stage = replace(STAGE, pack_length=100)
    order = plan_order(stage, samples, data, seed=1)
    rows = epoch(order)
    assert sorted(sample for row in rows for tree in row for sample in tree) == list(range(8))
    assert max(sum(len(data[sample].ids) for tree in row for sample in tree) for row in rows) <= 100
    assert len(rows) < 8
    (said,) = describe(order, stage, samples)
    assert f"{8 / len(rows):.1f} conversations in a row of 100 tokens" in said


def test_packed_trees_share_rows_with_others(tokenizer, mine: Path):
    samples = open_dataset(str(mine), data_root=mine.parent)
    order = plan_order(replace(STAGE, pack_length=200, share_images=True), samples, examples(tokenizer, samples), seed=1)
    assert max(len(tree) for row in epoch(order) for tree in row) > 1
    assert max(len(row) for row in epoch(order)) > 1


def test_shares_of_samples_and_of_tokens(tokenizer, mine: Path):
    long = write(mine.parent / "long.json", [(None, "word " * 15)] * 10)
    short = write(mine.parent / "short.json", [(None, "hi")] * 10)
    samples = open_dataset(f"{long}:1,{short}:1", data_root=mine.parent)
    data = examples(tokenizer, samples)
    by_samples = plan_order(STAGE, samples, data, seed=1)
    assert by_samples.draws.counts == (10, 10)
    by_tokens = plan_order(replace(STAGE, mixture_by="tokens"), samples, data, seed=1)
    drawn = np.array(by_tokens.draws.counts) * [len(data[0].ids), len(data[10].ids)]
    assert drawn[0] == pytest.approx(drawn[1], rel=0.35)  # 20 draws cannot say it better
    assert by_tokens.draws.counts[0] < by_tokens.draws.counts[1]
    assert any("long.json" in line and "50.0%" in line and "1.00 passes" in line for line in describe(by_samples, STAGE, samples))


def test_trees_never_cross_sources(tokenizer, mine: Path):
    other = write(mine.parent / "other.json", [("a.png", "one"), ("a.png", "two")])
    samples = open_dataset(f"{mine},{other}", data_root=mine.parent)
    order = plan_order(replace(STAGE, share_images=True), samples, examples(tokenizer, samples, max_length=1000), seed=1)
    assert order.draws.sizes == (4, 1)
    assert sorted(epoch(order))[-1] == ((8, 9),)


def test_samples_that_cannot_be_used_are_an_error_or_left_out_and_counted(tokenizer, mine: Path, caplog: pytest.LogCaptureFixture):
    long = write(mine.parent / "long.json", [(None, "hi"), (None, "word " * 100), ("c.png", "what")])
    (mine.parent / "c.png").unlink()
    samples = open_dataset(str(long), data_root=mine.parent)
    data = examples(tokenizer, samples)
    for _ in range(2):  # counted, and found in the file
        with pytest.raises(DataFormatError, match=r"Sample 'long1': The first exchange .* 100 are allowed"):
            plan_order(replace(STAGE, pack_length=100), samples, data, seed=1)
    for stage in (replace(STAGE, on_bad_row="skip"), replace(STAGE, on_bad_row="skip", share_images=True)):
        caplog.clear()
        order = plan_order(stage, samples, data, seed=1)
        assert epoch(order) == [((0,),)]
        assert "2 sample(s) cannot be used and are left out; the first: Sample 'long1'" in caplog.text
    both = open_dataset(f"{long},{mine}", data_root=mine.parent)
    assert plan_order(replace(STAGE, on_bad_row="skip"), both, examples(tokenizer, both), seed=1).draws.sizes == (1, 8)


def test_a_source_without_a_usable_sample_is_named(tokenizer, mine: Path):
    long = write(mine.parent / "long.json", [(None, "word " * 100)])
    samples = open_dataset(str(long), data_root=mine.parent)
    with pytest.raises(DataFormatError, match=r"No sample of '.*long\.json' can be used"):
        plan_order(replace(STAGE, on_bad_row="skip"), samples, examples(tokenizer, samples), seed=1)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None], ids=["empty", "cut short", "half"])
def test_a_damaged_file_of_lengths_is_counted_anew(tokenizer, mine: Path, damage: bytes | None):
    samples = open_dataset(str(mine), data_root=mine.parent)
    data = examples(tokenizer, samples)
    wanted = measure(samples, data).total.tolist()
    (stored,) = samples.parts[0].home.glob("lengths-*.npy")
    stored.write_bytes(stored.read_bytes()[:100] if damage is None else damage)
    assert measure(samples, data).total.tolist() == wanted


def test_pictures_cut_short_are_found_before_training_where_such_samples_are_skipped(tokenizer, mine: Path, caplog: pytest.LogCaptureFixture):
    picture = mine.parent / "b.png"
    Image.effect_noise((60, 60), 50).save(picture)
    picture.write_bytes(picture.read_bytes()[:-900])
    samples = open_dataset(str(mine), data_root=mine.parent)
    order = plan_order(replace(STAGE, on_bad_row="skip"), samples, examples(tokenizer, samples, max_length=1000), seed=1)
    assert order.units.num_samples == 7
    assert "1 sample(s) cannot be used and are left out; the first: The image file" in caplog.text
