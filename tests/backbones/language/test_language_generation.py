"""Generation: transformers' own `generate` on embeddings, against decoding without a cache."""

import logging

import pytest
import torch
from torch import Tensor

from vlm.backbones.language.base import HFCausalLM
from vlm.types import Documents

NEW = 8


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(20, 380, (rows, length), generator=torch.Generator().manual_seed(length))


def greedy(lm: HFCausalLM, prompt: Tensor, ends: set[int]) -> list[int]:
    """One token after the other, everything computed anew for each."""
    embeds, tokens = lm.embed(prompt[None]), []
    while len(tokens) < NEW and not ends & set(tokens):
        hidden = lm(embeds, Documents.one_per_row(1, embeds.shape[1]))
        tokens.append(int(lm.logits(hidden[:, -1]).argmax()))
        embeds = torch.cat([embeds, lm.embed(torch.tensor([[tokens[-1]]]))], dim=1)
    return tokens


def left_padded(lm: HFCausalLM, prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    embeds = torch.stack([torch.cat([torch.full((length - len(p), lm.width), 7.0), lm.embed(p[None])[0]]) for p in prompts])
    mask = torch.stack([torch.cat([torch.zeros(length - len(p)), torch.ones(len(p))]) for p in prompts]).long()
    return embeds, mask


@torch.no_grad()
def test_greedy_with_a_cache_equals_greedy_without(tiny, name):
    lm = tiny(name)
    prompt = ids(1, 11)[0]
    new = lm.generate(lm.embed(prompt[None]), torch.ones(1, 11, dtype=torch.long), max_new_tokens=NEW, do_sample=False)
    assert new[0].tolist() == greedy(lm, prompt, set(lm.model.generation_config.eos_token_id))


@torch.no_grad()
def test_a_left_padded_batch_answers_as_each_prompt_alone(tiny, name):
    lm = tiny(name)
    prompts = [ids(1, 5)[0], ids(1, 12)[0]]
    embeds, mask = left_padded(lm, prompts)
    together = lm.generate(embeds, mask, max_new_tokens=NEW)
    for row, prompt in zip(together, prompts, strict=True):
        alone = lm.generate(lm.embed(prompt[None]), torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=NEW)[0]
        assert row[: len(alone)].tolist() == alone.tolist()


@torch.no_grad()
def test_only_new_tokens_come_back(tiny, name):
    lm = tiny(name)
    assert lm.generate(lm.embed(ids(2, 9)), torch.ones(2, 9, dtype=torch.long), max_new_tokens=3, min_new_tokens=3).shape == (2, 3)


@torch.no_grad()
def test_the_templates_end_token_ends_an_answer(tiny):
    lm = tiny("tiny-phi3")
    assert lm.tokenizer.eos_token == "<|endoftext|>"
    head = lm.model.lm_head
    end = lm.tokenizer.convert_tokens_to_ids("<|end|>")
    head.weight.zero_()
    head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(end), 384).float())
    new = lm.generate(lm.embed(ids(1, 6)), torch.ones(1, 6, dtype=torch.long), max_new_tokens=5)
    assert new.tolist() == [[end]]


@torch.no_grad()
def test_generation_logs_nothing(tiny, name, caplog):
    lm = tiny(name)
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        lm.generate(lm.embed(ids(1, 6)), torch.ones(1, 6, dtype=torch.long), max_new_tokens=2, do_sample=False)
        lm.generate(lm.embed(ids(1, 6)), torch.ones(1, 6, dtype=torch.long), max_new_tokens=2, do_sample=True, temperature=0.7, top_p=0.9)
    finally:
        library.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records] == []


@torch.no_grad()
def test_steps_behind_a_cache_equal_one_forward_pass(tiny, name):
    lm = tiny(name)
    embeds, mask = lm.embed(ids(1, 12)), torch.ones(1, 12, dtype=torch.long)
    whole = lm(embeds, Documents.one_per_row(1, 12))
    first, cache = lm.step(embeds[:, :9], mask[:, :9], None)
    second, _ = lm.step(embeds[:, 9:], mask, cache)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generation_with_an_adapter_uses_it(tiny):
    from vlm.backbones.language.lora import LoRAOptions

    lm = tiny("tiny-llama", lora=LoRAOptions(rank=4, alpha=8.0, dropout=0.0, targets="all-linear"))
    prompt, mask = lm.embed(ids(1, 11)), torch.ones(1, 11, dtype=torch.long)
    before = lm.generate(prompt, mask, max_new_tokens=NEW)
    for path, parameter in lm.named_parameters():
        if "lora_B" in path:
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    after = lm.generate(prompt, mask, max_new_tokens=NEW)
    assert not torch.equal(before, after)
    assert after[0].tolist() == greedy(lm, ids(1, 11)[0], {1})


@pytest.mark.parametrize("rows", [1, 2])
def test_two_threads_may_train_and_generate_on_one_model(tiny, rows):
    """Nothing is switched between the two, so neither sees the other's attention."""
    from concurrent.futures import ThreadPoolExecutor

    lm = tiny("tiny-mistral")
    embeds, mask = lm.embed(ids(rows, 20)).detach(), torch.ones(rows, 20, dtype=torch.long)
    docs = Documents(starts=torch.arange(0, rows * 20 + 1, 10), positions=torch.arange(10).repeat(rows * 2).view(rows, 20))
    hidden, new = lm(embeds, docs), lm.generate(embeds, mask, max_new_tokens=NEW)
    with ThreadPoolExecutor(2) as pool:
        hiddens = [pool.submit(lm, embeds, docs) for _ in range(20)]
        news = [pool.submit(lm.generate, embeds, mask, max_new_tokens=NEW) for _ in range(5)]
        assert all(torch.equal(future.result(), hidden) for future in hiddens)
        assert all(torch.equal(future.result(), new) for future in news)
