"""Two hundred requests at once, a tenth of them malformed: every good one gets the answer it would get alone, every bad one a 4xx."""

import asyncio
import base64
import json
import random

import httpx
import psutil
from PIL import Image
from tiny_server import content, data_url, picture, wait_until

from vlm.models.generate import ask, generate
from vlm.models.sampling import Sampling

NUM, BAD = 200, 20
QUESTIONS = ("What color?", "What shape is in the picture?", "Is there a red square or a blue circle?")


def good(number: int) -> dict:
    """A request of its own: text, pictures, length and streaming."""
    images = [picture(number + i, side=64) for i in range(number % 3)]
    messages = [{"role": "user", "content": content(QUESTIONS[number % len(QUESTIONS)], *images)}]
    return {"model": "tiny", "messages": messages, "max_tokens": 2 + number % 5, "stream": number % 2 == 0}


def bad(number: int) -> bytes:
    """One of several kinds of malformed request."""
    cut = data_url(picture(number, side=64))[:2000]
    broken = base64.b64encode(b"\x89PNG\r\n\x1a\n" + random.Random(number).randbytes(3000)).decode()
    faults = [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": cut}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{broken}"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}]}]},
        {"messages": [{"role": "user", "content": "word " * 2000}]},
        {"messages": []},
        {"temperature": -1},
        {"max_tokens": 10**9},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"model": "another"},
    ]
    if number % 10 == 9:
        return json.dumps(good(number)).encode()[: 100 + number % 50]
    return json.dumps(good(number) | {"stream": number % 2 == 0} | faults[number % 10]).encode()


def text_of(response: httpx.Response, *, stream: bool) -> str:
    if not stream:
        return response.json()["choices"][0]["message"]["content"]
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])


async def send_all(url: str, bodies: list[bytes]) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        head = {"content-type": "application/json"}
        return await asyncio.gather(*(client.post("/v1/chat/completions", content=body, headers=head) for body in bodies))


async def watched(url: str, bodies: list[bytes]) -> tuple[list[httpx.Response], int]:
    """The responses, and by how many bytes this process grew at most while it waited for them."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    sending = asyncio.ensure_future(send_all(url, bodies))
    while not sending.done():
        peak = max(peak, process.memory_info().rss)
        await asyncio.sleep(0.01)
    return sending.result(), peak - before


def test_two_hundred_at_once_with_twenty_malformed_ones(serve, model):
    server = serve(max_new_tokens=20)
    wrong = set(random.Random(0).sample(range(NUM), BAD))
    bodies = [bad(i) if i in wrong else json.dumps(good(i)).encode() for i in range(NUM)]
    alone = {i: ask([picture(i + j, side=64) for j in range(i % 3)], QUESTIONS[i % len(QUESTIONS)]) for i in range(NUM) if i not in wrong}
    responses, grown = asyncio.run(watched(server.url, bodies))
    assert {i: responses[i].text for i in wrong if not 400 <= responses[i].status_code < 500} == {}
    assert all("message" in responses[i].json()["error"] for i in wrong)
    assert {responses[i].status_code for i in alone} == {200}
    for i, prompt in alone.items():
        expected = generate(model, [prompt], Sampling(max_new_tokens=2 + i % 5))[0]
        assert text_of(responses[i], stream=i % 2 == 0) == expected, i
    wait_until(lambda: server.service.num_open == server.service.batcher.num_running == 0)  # the last of it comes behind the last answer
    told = dict(line.rsplit(" ", 1) for line in server.service.metrics.text({}).splitlines() if not line.startswith("#"))
    assert int(told["vlm_batch_rows_total"]) == NUM - BAD
    assert int(told["vlm_batches_total"]) < (NUM - BAD) / 5  # they were answered together
    assert server.service.budget.held == 0
    assert grown < 250 * 2**20  # at its peak; all together have 4.3 MB of tiles


def test_pictures_of_full_size_are_few_at_a_time_and_gone_before_the_queue(serve, slow, monkeypatch):
    """16 pictures of 24 megapixels are 1.1 GB decoded; what waits in the queue is the tiles."""
    server = serve(max_batch=1, max_queue=64)
    large = data_url(Image.new("RGB", (6000, 4000), "teal"), "JPEG")
    body = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": large}}]}], "max_tokens": 1}
    )
    responses, grown = asyncio.run(watched(server.url, [body.encode()] * 16))
    assert {response.status_code for response in responses} == {200}
    assert grown < 500 * 2**20


def test_what_waits_holds_its_tiles_and_not_its_request(serve, pace):
    """20 requests of 12 MB each; every one is read before the next one comes."""
    server = serve(max_batch=1)
    large = data_url(Image.new("RGB", (2000, 1500), "teal"), "BMP")
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": large}}]}
    body = json.dumps({"model": "tiny", "messages": [message], "max_tokens": 400}).encode()

    async def grown() -> int:
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
            asking, before = [], psutil.Process().memory_info().rss
            for number in range(1, 21):
                head = {"content-type": "application/json"}
                asking.append(asyncio.ensure_future(client.post("/v1/chat/completions", content=body, headers=head)))
                while server.service.batcher.num_waiting + server.service.batcher.num_running < number:
                    await asyncio.sleep(0.01)
            after = psutil.Process().memory_info().rss
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            return after - before

    assert asyncio.run(grown()) < 150 * 2**20
