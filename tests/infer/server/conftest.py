"""One tiny model for all tests of the server, and servers of it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from tiny_server import running

from vlm.conf.schema import VisionLanguageConfig
from vlm.models.build import build
from vlm.models.vision_language import VisionLanguageModel


@pytest.fixture(scope="session")
def model() -> VisionLanguageModel:
    """Nothing trained, but another answer for another picture."""
    model = build(VisionLanguageConfig(vision="tiny-clip", language="tiny-qwen2", connector="mlp2x-gelu"), precision="fp32")
    torch.nn.init.normal_(model.connector.readout.weight, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def endless(model) -> Iterator[VisionLanguageModel]:
    """The same model, which never says an end token."""
    ends = torch.tensor(model.language.model.generation_config.eos_token_id)
    hook = model.language.model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, ends, -1e9))
    yield model
    hook.remove()


@pytest.fixture
def slow(endless) -> Iterator[VisionLanguageModel]:
    """The same model, never done, at 50 tokens a second."""
    hook = endless.language.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    yield endless
    hook.remove()


class Pace:
    """Lets a model go on step by step: what a test says happens before an answer ends does so on the slowest machine."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)
        self.num_steps = 0

    def allow(self, steps: int = 1_000_000) -> None:
        """So many steps more; without a number, all."""
        self._allowed.release(steps)

    def step(self, *_) -> None:
        """Wait until one is allowed."""
        self._allowed.acquire()
        self.num_steps += 1


@pytest.fixture
def pace(endless) -> Iterator[Pace]:
    """Of the same model, never done; no step is allowed yet."""
    pace = Pace()
    hook = endless.language.model.register_forward_pre_hook(pace.step)
    yield pace
    hook.remove()
    pace.allow()


@pytest.fixture
def serve(model) -> Iterator[Callable[..., SimpleNamespace]]:
    """`serve(max_queue=2)`: a server that ends with the test."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(running(options.pop("model", model), **options))
