"""Requests in OpenAI's form: what is read, what is refused by name, what is ignored."""

import json
import math

import pytest

from vlm.infer.server.problem import RequestError
from vlm.infer.server.protocol import Reply, parse, sampling_of
from vlm.messages import Message
from vlm.models.answer_rows import Piece
from vlm.models.sampling import Sampling
from vlm.models.token_scores import Candidate, Step

ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def read(**fields):
    return parse(json.dumps(ASKED | fields).encode())


def refused(**fields) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    return caught.value


def test_texts_and_pictures_keep_their_order_over_all_turns():
    picture = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in ("data:1", "data:2", "data:3")]
    asked = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [picture[0], {"type": "text", "text": "and"}, picture[1], {"type": "text", "text": "differ how?"}]},
            {"role": "assistant", "content": "By color.", "refusal": None, "tool_calls": None},
            {"role": "user", "content": [{"type": "text", "text": "And this?"}, picture[2]], "name": "me"},
        ]
    )
    assert asked.messages == (
        Message("system", "Be brief."),
        Message("user", "<image>\nand\n<image>\ndiffer how?"),
        Message("assistant", "By color."),
        Message("user", "And this?\n<image>"),
    )
    assert asked.pictures == ("data:1", "data:2", "data:3")


def test_what_changes_nothing_is_ignored():
    plain = read()
    assert plain == read(n=1, frequency_penalty=0.0, presence_penalty=0, logit_bias={}, logprobs=False, tools=[], response_format={"type": "text"})
    assert plain == read(user="me", metadata={"a": "b"}, store=True, service_tier="auto", seed=None, audio=None)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("n", 2, "'n' is 2; this server takes 1 alone"),
        ("frequency_penalty", 0.5, "this server takes 0 alone"),
        ("top_logprobs", 3, "'top_logprobs' is 3, and 'logprobs' is not true"),
        ("tools", [{"type": "function"}], "this server takes [] alone"),
        ("response_format", {"type": "json_object"}, 'this server takes {"type": "text"} alone'),
        ("temprature", 1, "Did you mean 'temperature'?"),
        ("guided_grammar", "x", "'guided_grammar' is no field that this server knows"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name, value, said):
    error = refused(**{name: value})
    assert said in str(error)
    assert (error.status, error.param) == (400, name)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "Hi"}, "messages", 'got "Hi"'),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "no content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system', 'developer', 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages", "end with a user's"),
        ({"messages": [{"role": "user", "content": "What is <image>?"}]}, "messages.0.content.0.text", "leave it out"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0", "input_audio"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content.0.image_url.url", "lacks"),
        ({"temperature": "hot"}, "temperature", 'got "hot"'),
        ({"max_tokens": 1.5}, "max_tokens", "got 1.5"),
        ({"stop": ["x"] * 17}, "stop", "at most 16 items"),
        ({"stop": "x" * 300}, "stop.0", "at most 256 characters"),
        ({"stop": 3}, "stop", "got 3"),
        ({"stream": "yes"}, "stream", 'got "yes"'),
        ({"logprobs": 3}, "logprobs", "got 3"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20; got 21"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused_with_its_place(fields, param, said):
    error = refused(**fields)
    assert error.param == param
    assert said in str(error)


def test_a_picture_of_the_assistant_is_refused():
    part = {"type": "image_url", "image_url": {"url": "data:1"}}
    error = refused(messages=[{"role": "assistant", "content": [part]}, ASKED["messages"][0]])
    assert "by 'assistant' has a picture" in str(error)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1]", b"null"])
def test_what_is_no_object_of_json_is_refused(body):
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert caught.value.status == 400


def test_sampling_is_the_requests_where_it_says_something():
    default = Sampling(temperature=0.5, top_p=0.9)
    assert sampling_of(read(), default, 7) == Sampling(7, temperature=0.5, top_p=0.9)
    assert sampling_of(read(temperature=0), default, 7) == Sampling(7, temperature=0.0, top_p=0.9)
    assert sampling_of(read(temperature=1.5, top_p=0.2), default, 7) == Sampling(7, temperature=1.5, top_p=0.2)
    drawn = sampling_of(read(top_k=5, repetition_penalty=1.2, seed=3, stop="."), Sampling(), 7)
    assert drawn == Sampling(7, top_k=5, repetition_penalty=1.2, seed=3, stop=".")
    with pytest.raises(RequestError, match=r"top_p is 2\.0; it must be") as caught:
        sampling_of(read(top_p=2.0), default, 7)
    assert caught.value.param == "top_p"


def test_the_newer_name_of_the_answers_length_goes_first():
    assert (read().max_new_tokens, read(max_tokens=3).max_new_tokens, read(max_tokens=3, max_completion_tokens=4).max_new_tokens) == (None, 3, 4)


def test_log_probabilities_are_told_if_they_are_asked_for():
    asked = [read(), read(logprobs=False, top_logprobs=0), read(logprobs=True), read(logprobs=True, top_logprobs=5)]
    assert [one.logprobs for one in asked] == [None, None, 0, 5]
    step = Step(Candidate("é".encode()[:1], -math.inf), (Candidate(b"a", -0.5),))
    told = Reply("m", prompt_tokens=5).whole(Piece("", "stop", 1, (step,)))["choices"][0]["logprobs"]
    likeliest = [{"token": "a", "logprob": -0.5, "bytes": [97]}]
    assert told == {"content": [{"token": "\ufffd", "logprob": -9999.0, "bytes": [195], "top_logprobs": likeliest}], "refusal": None}


def test_chunks_of_one_answer_share_their_head():
    reply = Reply("m", prompt_tokens=5)
    chunks = [
        json.loads(text.removeprefix("data: ")) for text in (reply.chunk({"content": "ä\n\n"}), reply.chunk({}, finish="stop"), reply.last_usage(2))
    ]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"content": "ä\n\n"}
    assert chunks[2]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
