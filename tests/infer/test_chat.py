"""A conversation remembers turns and pictures, and nothing of a turn that failed."""

import pytest
import torch
from PIL import Image

from vlm.conf.schema import VisionLanguageConfig
from vlm.errors import DataFormatError
from vlm.infer.chat import Conversation
from vlm.messages import Message
from vlm.models.build import build
from vlm.models.generate import Prompt, Sampling, generate

SHORT = Sampling(max_new_tokens=4)


@pytest.fixture
def talk() -> Conversation:
    return Conversation(build(VisionLanguageConfig(vision="tiny-clip", language="tiny-qwen2"), precision="fp32"), sampling=SHORT)


def picture(seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.numpy())


def test_each_answer_is_that_of_the_whole_conversation_so_far(talk):
    first = "".join(talk.say("What color?", [picture(1)])).strip()
    second = "".join(talk.say("And this?", [picture(2)])).strip()
    third = "".join(talk.say("Why?")).strip()
    messages = (
        Message("user", "<image>\nWhat color?"),
        Message("assistant", first),
        Message("user", "<image>\nAnd this?"),
        Message("assistant", second),
        Message("user", "Why?"),
    )
    assert generate(talk.model, [Prompt(messages[:3], (picture(1), picture(2)))], SHORT) == [second]
    assert generate(talk.model, [Prompt(messages, (picture(1), picture(2)))], SHORT) == [third]
    assert talk.messages == (*messages, Message("assistant", third))
    assert talk.images == (picture(1), picture(2))


def test_a_refused_turn_is_forgotten(talk):
    with pytest.raises(DataFormatError, match="the language model reads 512"):
        list(talk.say("blue " * 1000, [picture(1)]))
    assert (talk.messages, talk.images) == ((), ())
    assert "".join(talk.say("What color?", [picture(1)])) is not None


def test_a_turn_that_is_broken_off_is_forgotten(talk):
    pieces = talk.say("What color?", [picture(1)])
    next(pieces)
    pieces.close()
    assert talk.messages == ()


def test_a_turn_that_is_undone_was_never_said(talk):
    first = "".join(talk.say("What color?", [picture(1)])).strip()
    so_far = talk.messages
    "".join(talk.say("<image> or <image>?", [picture(2), picture(3)]))
    assert len(talk.images) == 3
    assert talk.undo()
    assert (talk.messages, talk.images) == (so_far, (picture(1),))
    assert so_far[-1] == Message("assistant", first)
    assert talk.undo()
    assert (talk.messages, talk.images) == ((), ())
    assert not talk.undo()


def test_a_conversation_that_is_reset_begins_anew(talk):
    first = "".join(talk.say("What color?", [picture(1)]))
    "".join(talk.say("Why?"))
    talk.reset()
    assert "".join(talk.say("What color?", [picture(1)])) == first


def test_a_system_text_stands_before_every_turn_and_outlives_a_reset():
    model = build(VisionLanguageConfig(vision="tiny-clip", language="tiny-qwen2"), precision="fp32")
    talk = Conversation(model, sampling=SHORT, system="Be brief.")
    system = Message("system", "Be brief.")
    first = "".join(talk.say("What color?", [picture(1)])).strip()
    second = "".join(talk.say("Why?")).strip()
    messages = (system, Message("user", "<image>\nWhat color?"), Message("assistant", first), Message("user", "Why?"))
    assert generate(model, [Prompt(messages[:2], (picture(1),))], SHORT) == [first]
    assert generate(model, [Prompt(messages, (picture(1),))], SHORT) == [second]
    talk.undo()
    assert "".join(talk.say("Why?")).strip() == second
    talk.reset()
    assert "".join(talk.say("What color?", [picture(1)])).strip() == first


def test_a_system_text_without_a_place_is_refused_at_once():
    model = build(VisionLanguageConfig(vision="tiny-clip", language="tiny-phi"), precision="fp32")
    with pytest.raises(DataFormatError, match="Chat template 'phi-2' has no place for a system message"):
        Conversation(model, sampling=SHORT, system="Be brief.")
