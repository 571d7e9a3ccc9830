"""A server of a tiny model on a free port, and what its clients send."""

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from PIL import Image

from vlm.infer.server.limits import Limits
from vlm.infer.server.pictures import Fetch, fetch_from
from vlm.models.sampling import Sampling
from vlm.models.vision_language import VisionLanguageModel


def picture(seed: int, side: int = 32) -> Image.Image:
    noise = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.numpy())


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def content(text: str, *images: Image.Image) -> list[dict]:
    return [*({"type": "image_url", "image_url": {"url": data_url(image)}} for image in images), {"type": "text", "text": text}]


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextmanager
def running(
    model: VisionLanguageModel,
    *,
    api_key: str = "",
    names: frozenset[str] | None = None,
    fetch: Fetch | None = None,
    default: Sampling | None = None,
    **limits,
) -> Iterator[SimpleNamespace]:
    """A server in a thread: its `url`, its `service`."""
    import uvicorn

    from vlm.infer.server.app import create_app
    from vlm.infer.server.service import Service

    service = Service(model, "tiny", limits=Limits(**limits), default=default or Sampling(), fetch=fetch or fetch_from(()))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(service, api_key=api_key, names=names), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{listening.getsockname()[1]}", service=service, server=server)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
