"""Samples to examples: tiles, image tokens, trees of conversations about the same pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlm.data.sample import Sample
from vlm.data.stream.examples import ChatExamples
from vlm.errors import DataFormatError
from vlm.messages import ChatTemplate, Message
from vlm.types import ImageLayout, ImagePolicy

TEMPLATE = ChatTemplate(name="t", user="<|im_start|>{content}<|im_end|>", assistant_start="<|im_start|>", assistant="{content}<|im_end|>")


def sample(name: str, images: list[Path], *texts: str) -> Sample:
    return Sample(name, tuple(images), tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)))


def examples(tokenizer, samples: list[Sample], *, max_length: int = 200, template: ChatTemplate = TEMPLATE) -> ChatExamples:
    return ChatExamples(
        samples,
        template=template,
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        policy=ImagePolicy(size=8),
        tokens_per_image=lambda layout: layout.num_tiles * 4,
        max_length=max_length,
    )


def test_example_has_tiles_and_as_many_image_tokens_as_the_layout_says(tokenizer, picture: Path):
    data = examples(tokenizer, [sample("a", [picture], "<image> 0", "x"), sample("b", [], "1", "xx")])
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert int((data[0].ids == image).sum()) == 4
    assert data[0].pixels.shape == (1, 3, 8, 8)
    assert data[1].pixels.shape == (0, 3, 8, 8)
    assert len(data) == 2


def test_tokens_are_counted_from_the_layout_of_the_picture(tokenizer, picture: Path):
    data = examples(tokenizer, [sample("a", [picture], "<image> 0", "x")])
    seen: list[ImageLayout] = []
    data.tokens_per_image = lambda layout: seen.append(layout) or 1
    _ = data[0]
    data.measure(0)
    assert seen == [ImageLayout(grid=(1, 1), size=(10, 20))] * 2


def test_too_long_conversation_loses_its_last_turns_and_their_pictures(tokenizer, picture: Path):
    turns = ("<image> 0", "x", "again <image> and more words", "y")
    data = examples(tokenizer, [sample("a", [picture, picture], *turns), sample("b", [picture], *turns[:2])])
    short = data[1]
    data.max_length = len(short.ids)
    assert torch.equal(data[0].ids, short.ids) and torch.equal(data[0].labels, short.labels)
    assert data[0].truncated and not short.truncated
    assert len(data[0].pixels) == 1
    assert data.measure(0)[0] == len(short.ids)


def test_conversation_that_cannot_be_made_short_enough_is_named(tokenizer, picture: Path):
    data = examples(tokenizer, [sample("much", [picture] * 3, "<image><image><image>", "x")], max_length=10)
    with pytest.raises(DataFormatError, match=r"^Sample 'much': .*--stage\.max-length"):
        _ = data[0]


def test_measures_are_those_of_the_example_and_open_no_picture(tokenizer, picture: Path):
    samples = [sample("a", [picture], "<image> 0", "x"), sample("b", [], "1", "xx"), sample("c", [picture], "what", "x", "<image>?", "y")]
    data = examples(tokenizer, samples)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for i in range(3):
        total, shared, images, _ = data.measure(i)
        ids = data[i].ids
        assert (total, images) == (len(ids), int((ids == image).sum()))
        assert shared == (int((ids == image).nonzero()[-1]) + 1 if i == 0 else 0)  # in c, an answer comes before the picture
    gone = replace(samples[0], images=(Path("/nowhere.png"),), sizes=((10, 20),))
    assert examples(tokenizer, [gone]).measure(0)[:3] == data.measure(0)[:3]


def test_measures_tell_pictures_and_first_tokens_apart(tokenizer, picture: Path, tmp_path: Path):
    other = tmp_path / "other.png"
    other.write_bytes(picture.read_bytes())
    asked = [
        sample("a", [picture], "<image> 0", "x"),
        sample("b", [picture], "<image> quite another question", "y"),
        sample("c", [other], "<image> 0", "x"),
        sample("d", [picture], "first <image> 0", "x"),
    ]
    keys = [examples(tokenizer, asked).measure(i)[3] for i in range(4)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_tree_opens_its_pictures_once(tokenizer, picture: Path, monkeypatch: pytest.MonkeyPatch):
    data = examples(tokenizer, [sample(str(i), [picture], f"<image> {i}", "x" * (i + 1)) for i in range(3)])
    alone = [data[i] for i in range(3)]
    opened: list[Path] = []
    from vlm.data.stream import examples as module

    load = module.load_tiles
    monkeypatch.setattr(module, "load_tiles", lambda path, policy: opened.append(path) or load(path, policy))
    tree = data.tree([2, 0, 1])
    assert opened == [picture]
    assert [example.id for example in tree.examples] == ["2", "0", "1"]
    for example, index in zip(tree.examples, (2, 0, 1), strict=True):
        assert torch.equal(example.ids, alone[index].ids) and torch.equal(example.labels, alone[index].labels)
    assert torch.equal(tree.pixels, alone[2].pixels)
    assert tree.shared == data.measure(0)[1]


def test_samples_that_share_nothing_make_no_tree(tokenizer, picture: Path):
    data = examples(tokenizer, [sample("a", [picture], "<image> 0", "x"), sample("b", [picture], "first <image> 0", "x")])
    with pytest.raises(DataFormatError, match=r"'a' and 'b' were planned to share .*Delete the lengths-\*\.npy"):
        data.tree([0, 1])


def test_a_tree_whose_turns_are_dropped_needs_the_pictures_that_are_left(tokenizer, picture: Path, tmp_path: Path):
    """One conversation loses its second picture with its second turn, the other never had it: they share what is left."""
    second = tmp_path / "second.png"
    second.write_bytes(picture.read_bytes())
    long = sample("long", [picture, second], "<image> 0", "x", "and <image> that, if you please?", "y")
    short = sample("short", [picture], "<image> 1", "z")
    data = examples(tokenizer, [long, short])
    data.max_length = len(data[0].ids) - 1
    assert data.measure(0)[3] == data.measure(1)[3]
    for order in ([0, 1], [1, 0]):
        tree = data.tree(order)
        assert len(tree.pixels) == 1
        assert all(torch.equal(example.ids, data[index].ids) for example, index in zip(tree.examples, order, strict=True))


def test_message_names_the_setting_that_limits(tokenizer, picture: Path):
    data = examples(tokenizer, [sample("a", [picture] * 3, "<image><image><image>", "x")], max_length=10)
    data.limit = "--stage.pack-length"
    with pytest.raises(DataFormatError, match=r"Raise --stage\.pack-length"):
        _ = data[0]
