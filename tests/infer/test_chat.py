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
