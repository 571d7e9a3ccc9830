"""The server over HTTP, by the official client of OpenAI where it can send such a request, and against the model itself."""

import base64
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import openai
import pytest
from tiny_server import content, data_url, picture, wait_until

from vlm.infer.server.pictures import fetch_from
from vlm.messages import Message
from vlm.models.generate import Prompt, generate
from vlm.models.sampling import Sampling

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "What color?"}], "max_tokens": 3}


@pytest.fixture
def client():
    """`client(server)`: OpenAI's, closed with the test."""
    with ExitStack() as clients:

        def connect(server, key: str = "any", *, max_retries: int = 0) -> openai.OpenAI:
            return clients.enter_context(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=max_retries, timeout=120))

        yield connect


def post(server, **options) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", timeout=120, **options)


def test_answers_whole_and_streamed_are_those_of_the_model(serve, client, model):
    chat = client(serve()).chat.completions
    asked = {"model": "tiny", "messages": [{"role": "user", "content": content("What color?", picture(1), picture(2))}], "max_completion_tokens": 30}
    whole = chat.create(**asked)
    expected = model.chat([picture(1), picture(2)], "What color?", max_new_tokens=30)
    assert whole.choices[0].message.content == expected != ""
    assert whole.choices[0].finish_reason == "length"
    *chunks, last = chat.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert last.choices == [] and last.usage == whole.usage
    assert len(chunks) > 5
    assert whole.usage.completion_tokens == 30 and whole.usage.prompt_tokens > 2 * model.tokens_per_tile


def test_a_conversation_with_a_system_text_is_the_models(serve, client, model):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Why?")]
    asked = [{"role": role, "content": text} for role, text in turns]
    answer = client(serve()).chat.completions.create(model="tiny", messages=asked, max_tokens=8)
    prompt = Prompt(tuple(Message(role, text) for role, text in turns))
    assert answer.choices[0].message.content == generate(model, [prompt], Sampling(max_new_tokens=8))[0]


def test_stop_strings_and_seeds_are_the_models(serve, client, model):
    chat = client(serve()).chat.completions
    whole = model.chat([], "What color?", max_new_tokens=30)
    stop = whole[10:13]  # crosses tokens
    for streamed in (False, True):
        answer = chat.create(**ASKED | {"max_tokens": 30, "stop": [stop, "never said"]}, stream=streamed)
        chunks = list(answer) if streamed else []
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks) if streamed else answer.choices[0].message.content
        assert text == whole[: whole.find(stop)].strip()
        assert (chunks[-1] if streamed else answer).choices[0].finish_reason == "stop"
    drawn = {"temperature": 1.5, "top_p": 0.9, "extra_body": {"top_k": 50}}
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(chat.create, **ASKED | {"max_tokens": 9, "seed": seed}, **drawn) for seed in (1, 2, 1, 3)]
        texts = [answer.result().choices[0].message.content for answer in answers]
    assert texts == [model.chat([], "What color?", max_new_tokens=9, temperature=1.5, top_p=0.9, top_k=50, seed=seed) for seed in (1, 2, 1, 3)]
    assert texts[0] == texts[2] != texts[1]


def test_log_probabilities_are_those_of_the_models_own_scoring(serve, client, model):
    chat = client(serve()).chat.completions
    question = {"role": "user", "content": content("Is there a circle?", picture(1))}
    asked = {"model": "tiny", "messages": [question], "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    whole, plain = chat.create(**asked).choices[0], chat.create(**asked | {"logprobs": None, "top_logprobs": None}).choices[0]
    (scored,) = model.score(([picture(1)], "Is there a circle?"), [whole.message.content])
    told = whole.logprobs.content
    assert [one.logprob for one in told] == pytest.approx(scored.token_log_probs[:8], abs=1e-4)
    assert b"".join(bytes(one.bytes) for one in told).decode() == whole.message.content == plain.message.content
    assert all(one.top_logprobs[0].model_dump().items() <= one.model_dump().items() for one in told)  # greedy: the token is the likeliest
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in told)
    assert plain.logprobs is None
    chunks = [chunk.choices[0] for chunk in chat.create(**asked, stream=True)]
    assert [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content] == told
    assert sum(bool(chunk.logprobs) for chunk in chunks) > 3
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content


def test_without_a_stated_length_the_answer_has_what_is_left(serve, client, model):
    server = serve(max_new_tokens=1000)
    answer = client(server).chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 60}])
    assert answer.usage.total_tokens <= model.language.max_length
    assert answer.usage.total_tokens == model.language.max_length or answer.choices[0].finish_reason == "stop"


def test_models_health_and_counts(serve, client):
    server = serve()
    assert [model.id for model in client(server).models.list()] == ["tiny"]
    assert client(server).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="There is no model 'other/one' here; this server has 'tiny'"):
        client(server).models.retrieve("other/one")
    assert [httpx.head(server.url + path).status_code for path in ("/", "/health")] == [200, 200]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": "tiny"}
    post(server, json=ASKED)
    post(server, json={})
    wait_until(lambda: server.service.batcher.num_running == 0)  # a batch is counted a moment after its last answer has left
    told = dict(line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics").text.splitlines() if not line.startswith("#"))
    assert told['vlm_responses_total{status="400"}'] == told["vlm_batches_total"] == "1"
    assert int(told["vlm_answer_tokens_total"]) in (1, 2, 3)
    assert told["vlm_open"] == told["vlm_held_bytes"] == "0"


def test_errors_are_openais_for_its_client(serve, client):
    server = serve(max_new_tokens=50)
    chat = client(server).chat.completions
    with pytest.raises(openai.BadRequestError, match=r"The prompt has .* the language model reads 512") as caught:
        chat.create(model="tiny", messages=[{"role": "user", "content": "word " * 600}])
    assert (caught.value.type, caught.value.param, caught.value.code) == ("invalid_request_error", "messages", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match=r"has 1,000,000 characters; the language model reads 512 tokens") as caught:
        chat.create(model="tiny", messages=[{"role": "user", "content": "a" * 1_000_000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-x' here; this server has 'tiny'") as caught:
        chat.create(**ASKED | {"model": "gpt-x"})
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="There is nothing at /v1/embeddings"):
        client(server).embeddings.create(model="tiny", input="x")
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    assert post(server, content=json.dumps(ASKED), headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_errors_about_the_answers_length_name_the_field_that_was_sent(serve, client, field):
    chat = client(serve(max_new_tokens=500)).chat.completions
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"}
    for length, said, param in (
        (501, f"'{field}' is 501; this server gives answers of at most 500 tokens", field),
        (0, f"{field} is 0; an answer has at least 1 token", field),
        (500, f"Shorten the conversation, or lower {field}[.]", "messages"),
    ):
        with pytest.raises(openai.BadRequestError, match=said) as caught:
            chat.create(**asked, **{field: length})
        assert caught.value.param == param


def test_a_key_is_asked_for_below_v1(serve, client):
    server = serve(api_key="secret")
    for wrong in ("", "Bearer", "Bearer other", "secret", "Bearer sécret".encode()):
        assert post(server, json=ASKED, headers={"authorization": wrong}).status_code == 401
    with pytest.raises(openai.AuthenticationError, match="The API key is missing or wrong"):
        client(server, "other").models.list()
    with pytest.raises(openai.AuthenticationError):
        client(server, "other").models.retrieve("tiny")
    assert client(server, "secret").chat.completions.create(**ASKED).usage.completion_tokens >= 1
    assert httpx.get(f"{server.url}/health").status_code == httpx.get(server.url).status_code == 200


def test_a_request_may_be_as_large_as_allowed(serve):
    server = serve(max_body_bytes=2_000)
    assert post(server, json=ASKED | {"user": "x" * 500}).status_code == 200
    assert post(server, json=ASKED | {"user": "x" * 2_000}).status_code == 413
    unannounced = (b"x" * 500 for _ in range(5))  # chunked: no length in the head
    refused = post(server, content=unannounced, headers={"content-type": "application/json"})
    assert refused.status_code == 413
    assert refused.json()["error"]["message"].startswith("The request is larger than 2,000 bytes")


def test_more_bytes_than_the_server_holds_are_told_to_come_again(serve):
    server = serve(max_held_bytes=1_000)
    refused = post(server, json=ASKED | {"user": "x" * 2_000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert server.service.budget.held == 0
    assert post(server, json=ASKED).status_code == 200


def test_limits_of_pictures_and_of_the_prompt(serve, client):
    server = serve(max_pictures=2, max_pixels=5_000, max_prompt_tokens=60)
    chat = client(server).chat.completions
    for pictures, said in (([picture(1)] * 3, "has 3 pictures"), ([picture(1, side=80)], "6,400 pixels"), ([picture(1)] * 2, "this server takes 60")):
        with pytest.raises(openai.BadRequestError, match=said):
            chat.create(**ASKED | {"messages": [{"role": "user", "content": content("What?", *pictures)}]})


class OnePicture(BaseHTTPRequestHandler):
    """Gives one picture at any address, and remembers what it was asked for."""

    content = base64.b64decode(data_url(picture(1)).partition(",")[2])

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    with ThreadingHTTPServer(("127.0.0.1", 0), OnePicture) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=server.asked)
        server.shutdown()
        thread.join()


def test_pictures_of_the_web_come_from_allowed_hosts_alone(serve, client, web):
    def ask(server, address: str):
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}
        return client(server).chat.completions.create(**ASKED | {"messages": [message]})

    allowing = serve(fetch=fetch_from(["127.0.0.1"], allow_private=True))
    assert ask(allowing, f"{web.url}/a.png").choices == ask(allowing, data_url(picture(1))).choices
    assert web.asked == ["/a.png"]
    for server, address, said in (
        (allowing, web.url.replace("127.0.0.1", "localhost"), "the host 'localhost' are not fetched"),
        (allowing, web.url.replace("//", "//other@"), "without a user name"),
        (allowing, "file:///etc/passwd", "neither a data URL nor one of the web"),
        (allowing, "a.png", "neither a data URL nor one of the web"),
        (serve(fetch=fetch_from(["*"])), web.url, "no public address"),
        (serve(), web.url, "--allow-host 127.0.0.1"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            ask(server, address)
    assert web.asked == ["/a.png"]


def test_a_full_queue_is_told_to_come_again_and_the_client_does(serve, client, pace):
    server = serve(max_batch=1, max_queue=1)
    patient = client(server, max_retries=8)
    with ThreadPoolExecutor(4) as pool:
        open_ones = [pool.submit(post, server, json=ASKED) for _ in range(2)]
        wait_until(lambda: server.service.num_open == 2)
        refused = post(server, json=ASKED)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        answer = pool.submit(patient.chat.completions.create, **ASKED)
        wait_until(lambda: server.service.metrics._responses[429] >= 2)
        pace.allow()
        assert [answer.result().status_code for answer in open_ones] == [200, 200]
        assert answer.result().usage.completion_tokens == 3


def test_an_answer_that_takes_too_long_is_given_up(serve, pace):
    server = serve(timeout=1.0)
    late = post(server, json=ASKED)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    wait_until(lambda: server.service.num_open == 0)  # a moment after the client has heard of it
    pace.allow(1)
    wait_until(lambda: server.service.batcher.num_running == 0)


def test_a_stream_that_takes_too_long_ends_with_the_error(serve, pace):
    server = serve(timeout=4.0)
    pace.allow(30)
    body = ASKED | {"max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as streamed:
        events = [line.removeprefix("data: ") for line in streamed.iter_lines() if line]
    assert json.loads(events[-1])["error"]["code"] == "timeout"
    assert len(events) > 3
    wait_until(lambda: server.service.num_open == 0)  # a moment after the client has heard of it
    pace.allow(1)
    wait_until(lambda: server.service.batcher.num_running == 0)


def test_a_request_that_comes_too_slowly_is_given_up(serve, monkeypatch):
    monkeypatch.setattr("vlm.infer.server.service.SECONDS_TO_RECEIVE", 0.2)
    server = serve()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    wait_until(lambda: server.service.num_open == server.service.budget.held == 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_frees_its_place(serve, pace, streamed):
    server, before = serve(max_batch=1), 20 if streamed else 0
    body = json.dumps(ASKED | {"max_tokens": 400, "stream": streamed}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: server.service.batcher.num_running == 1)
        if streamed:
            pace.allow(before)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    wait_until(lambda: server.service.num_open == 0)
    pace.allow()
    wait_until(lambda: server.service.batcher.num_running == 0)
    assert pace.num_steps <= before + 1  # of 400


def test_a_server_that_is_told_to_end_finishes_what_is_open(serve, slow):
    server = serve()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(post(server, json=ASKED | {"max_tokens": 60})))
    asking.start()
    wait_until(lambda: server.service.batcher.num_running == 1)
    server.server.should_exit = True
    asking.join()
    assert answers[0].status_code == 200
    wait_until(lambda: not server.service.batcher._thread.is_alive())


def test_the_page_may_run_its_own_script_and_talk_to_its_server_alone(serve):
    page = httpx.get(serve().url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    outside = [word for word in ("http://", "https://", "//cdn") if word in page.text.replace("http://www.w3.org/2000/svg", "")]
    assert not outside
