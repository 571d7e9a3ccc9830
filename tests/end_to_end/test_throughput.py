"""Requests at once against the same requests one by one, over HTTP: the quick form of `benchmarks/serve.py`, on a random model of 27 million weights."""

import asyncio

import pytest

from benchmarks.serve import ask, measured, request, running
from vlm.backbones.language import LANGUAGE
from vlm.conf.schema import VisionLanguageConfig
from vlm.infer.server.limits import Limits
from vlm.infer.server.pictures import fetch_from
from vlm.infer.server.service import Service
from vlm.models.build import build
from vlm.models.sampling import Sampling

NUM = 24
ATTEMPTS = 3  # other work on the machine can only hide what batches save, and seldom hides it three times


@pytest.fixture
def middling(tmp_path):
    """A model whose weights, and not the server's own work, cost the time of a token."""
    import transformers

    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 384}
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=512)
    transformers.LlamaForCausalLM(config).save_pretrained(str(tmp_path / "base"))
    LANGUAGE["tiny-llama"].tokenizer(LANGUAGE["tiny-llama"], None).save_pretrained(str(tmp_path / "base"))
    parts = VisionLanguageConfig(vision="tiny-clip", language=f"hf:{tmp_path / 'base'}", template="pure")
    return build(parts, precision="fp32")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_requests_at_once_take_less_than_a_third_of_the_time_of_one_by_one(middling):
    limits = Limits(max_batch=NUM, max_queue=NUM, timeout=600.0)
    service = Service(middling, "model", limits=limits, default=Sampling(), fetch=fetch_from(()))
    bodies = [request(i, 32) for i in range(NUM)]
    with running(service) as url:
        asyncio.run(ask(url, bodies[:4], at_once=4))  # warm
        for left in reversed(range(ATTEMPTS)):
            one, many = (measured(service, url, bodies, at_once=at_once) for at_once in (1, NUM))
            assert many["texts"] == one["texts"] and many["tokens"] == one["tokens"] > 20 * NUM
            assert one["rows_per_batch"] == 1
            if many["rows_per_batch"] > NUM / 3 and many["cpu_seconds"] < one["cpu_seconds"] / 3 and many["seconds"] < one["seconds"] / 2:
                return  # a third and less of the seconds on an idle machine; other work may begin between the two
            assert left, (one, many)
