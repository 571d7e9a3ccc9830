"""Throughput of `vlm serve`: many requests at once against the same requests one by one, over HTTP on this machine.

    python benchmarks/serve.py [--preset demo/align] [--requests 64] [--max-batch 32] [--max-tokens 64] [--repetitions 3]

The model is a preset's, its connector untrained (the work does not depend on what it says), in fp32. Each request has a picture and a question of its own;
every answer that comes in a batch is compared with the one that came alone. Passes alternate, so that other work on the machine meets both alike.
The last line is JSON; `ratio` is the median over repetitions of requests a second at once by requests a second one by one.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlm.conf.presets import PRESETS
from vlm.infer.server.app import create_app
from vlm.infer.server.limits import Limits
from vlm.infer.server.pictures import fetch_from
from vlm.infer.server.service import Service
from vlm.models.build import build
from vlm.models.sampling import Sampling

QUESTIONS = ("Describe the picture.", "What color is the shape, and where in the picture is it?", "Write a short story about what you see.")


def main() -> None:
    """Serve a model, ask it in both ways, compare the answers, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo/align")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    model = build(PRESETS[settings.preset].model, precision="fp32").to(settings.device)
    limits = Limits(max_batch=settings.max_batch, max_queue=settings.requests, timeout=3600.0)
    service = Service(model, "model", limits=limits, default=Sampling(), fetch=fetch_from(()))
    bodies = [request(i, settings.max_tokens) for i in range(settings.requests)]
    with running(service) as url:
        asyncio.run(ask(url, bodies[: settings.max_batch], at_once=settings.max_batch))  # warm
        passes = [[measured(service, url, bodies, at_once=at_once) for at_once in (1, settings.requests)] for _ in range(settings.repetitions)]
    report(settings, service, passes)


def request(number: int, max_tokens: int) -> dict[str, Any]:
    """A question about a picture of its own."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((320, 240)).save(file, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}]
    return {"model": "model", "messages": [{"role": "user", "content": parts}], "max_tokens": max_tokens}


@contextmanager
def running(service: Service) -> Iterator[str]:
    """The server in a thread of its own: its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


async def ask(url: str, bodies: Sequence[dict[str, Any]], *, at_once: int) -> list[dict[str, Any]]:
    """The responses, with at most so many requests open."""
    places = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)) as client:

        async def one(body: dict[str, Any]) -> dict[str, Any]:
            async with places:
                response = await client.post("/v1/chat/completions", json=body)
                return response.raise_for_status().json()

        return await asyncio.gather(*map(one, bodies))


def measured(service: Service, url: str, bodies: Sequence[dict[str, Any]], *, at_once: int) -> dict[str, Any]:
    """One pass: texts, tokens, seconds by the clock and by the CPU."""
    wait_until_counted(service)  # the pass before this one
    before = service.metrics.num_batches
    start, cpu = time.perf_counter(), time.process_time()
    responses = asyncio.run(ask(url, bodies, at_once=at_once))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    wait_until_counted(service)
    return {
        "rows_per_batch": len(bodies) / (service.metrics.num_batches - before),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": sum(response["usage"]["completion_tokens"] for response in responses),
        "texts": [response["choices"][0]["message"]["content"] for response in responses],
    }


def wait_until_counted(service: Service) -> None:
    """Return once no batch is at work: one is counted a moment after its last answer has left."""
    while service.batcher.num_running:
        time.sleep(0.01)


def report(settings: argparse.Namespace, service: Service, passes: Sequence[Sequence[dict[str, Any]]]) -> None:
    """A table, then one line of JSON."""
    num = settings.requests
    different = sum(alone != together for one, many in passes for alone, together in zip(one["texts"], many["texts"], strict=True))
    table = Table("", "requests/s", "tokens/s", "CPU s/request", title=f"{settings.preset}, {num} requests, batches of {settings.max_batch}")
    found: dict[str, float] = {}
    for column, name in enumerate(("one_by_one", "at_once")):
        rates = [num / both[column]["seconds"] for both in passes]
        cpu = statistics.median(both[column]["cpu_seconds"] / num for both in passes)
        tokens = statistics.median(both[column]["tokens"] / both[column]["seconds"] for both in passes)
        table.add_row(name, f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})", f"{tokens:.1f}", f"{cpu:.3f}")
        found |= {f"{name}_requests_per_second": round(statistics.median(rates), 3), f"{name}_cpu_seconds_per_request": round(cpu, 4)}
    Console(highlight=False, width=120).print(table)
    ratios = [one["seconds"] / many["seconds"] for one, many in passes]
    result = {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_cpu": round(found["one_by_one_cpu_seconds_per_request"] / found["at_once_cpu_seconds_per_request"], 2),
        "rows_per_batch_at_once": round(statistics.mean(many["rows_per_batch"] for _, many in passes), 1),
        "different_answers": different,
        "answers": num * len(passes),
        **found,
        "threads": settings.threads,
        "device": str(service.model.device),
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
