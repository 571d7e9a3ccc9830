"""Per-document attention against plain transformers on each document alone, for every family."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from vlm.backbones.language import LANGUAGE, attention
from vlm.backbones.language.attention import NAME, Piece, Pieces, document_attention, pieces_of, varlen_of
from vlm.backbones.language.base import HFCausalLM
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions
from vlm.errors import ConfigError
from vlm.types import Documents

ROWS, LENGTH = 2, 20
LORA = LoRAOptions(rank=4, alpha=8.0, dropout=0.0, targets="all-linear")


def documents(starts: list[int]) -> Documents:
    positions = torch.cat([torch.arange(end - start) for start, end in pairwise(starts)]).view(ROWS, LENGTH)
    return Documents(starts=torch.tensor(starts), positions=positions)


PACKED = documents([0, 7, 20, 29, 30, 40])
ONE_PER_ROW = Documents.one_per_row(ROWS, LENGTH)


def plain(name: str) -> torch.nn.Module:
    """The same weights in transformers' own model with its own SDPA."""
    spec = LANGUAGE[name]
    model = spec.build(spec, Load(None))
    assert model.config._attn_implementation == "sdpa"
    return model


def ids() -> Tensor:
    return torch.randint(20, 380, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def logits(lm: HFCausalLM, embeds: Tensor, docs: Documents) -> Tensor:
    return lm.logits(lm(embeds, docs).flatten(0, 1))


@pytest.mark.parametrize("docs", [PACKED, ONE_PER_ROW], ids=["several-a-row", "one-a-row"])
def test_logits_equal_plain_transformers_on_each_document_alone(tiny, name, docs):
    lm, reference = tiny(name), plain(name)
    seen = logits(lm, lm.embed(ids()), docs)
    for start, end in pairwise(docs.starts.tolist()):
        wanted = reference(input_ids=ids().flatten()[None, start:end], use_cache=False).logits[0]
        torch.testing.assert_close(seen[start:end], wanted, atol=1e-5, rtol=1e-5)


def test_right_padding_changes_no_logit_before_it(tiny, name):
    lm, reference = tiny(name), plain(name)
    padded = ids()
    padded[0, 13:] = lm.tokenizer.pad_token_id
    seen = logits(lm, lm.embed(padded), ONE_PER_ROW)
    torch.testing.assert_close(seen[:13], reference(input_ids=padded[:1, :13], use_cache=False).logits[0], atol=1e-5, rtol=1e-5)


def test_changing_a_document_changes_no_other_by_anything(tiny, name):
    lm = tiny(name)
    before = lm(lm.embed(ids()), PACKED).flatten(0, 1)
    changed = ids()
    changed[0, 7:] = 50
    after = lm(lm.embed(changed), PACKED).flatten(0, 1)
    assert torch.equal(before[:7], after[:7])
    assert torch.equal(before[20:], after[20:])
    assert not torch.allclose(before[7:20], after[7:20], atol=0.1)


def test_gradients_equal_those_of_each_document_alone(tiny, name):
    lm, reference = tiny(name), plain(name)
    weights = torch.randn(ROWS * LENGTH, 384, generator=torch.Generator().manual_seed(2))
    (logits(lm, lm.embed(ids()), PACKED) * weights).sum().backward()
    for start, end in pairwise(PACKED.starts.tolist()):
        alone = reference(input_ids=ids().flatten()[None, start:end], use_cache=False).logits[0]
        (alone * weights[start:end]).sum().backward()
    for (path, ours), theirs in zip(lm.model.named_parameters(), reference.parameters(), strict=True):
        scale = theirs.grad.abs().max()
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, atol=1e-4, rtol=0, msg=path)


def test_no_gradient_flows_into_another_document(tiny, name):
    lm = tiny(name)
    embeds = lm.embed(ids()).detach().requires_grad_()
    lm(embeds, PACKED)[0, :7].square().sum().backward()
    assert embeds.grad[0, :7].abs().min() > 0
    assert embeds.grad[0, 7:].abs().max() == 0
    assert embeds.grad[1].abs().max() == 0


def test_positions_are_those_of_the_documents(tiny, name):
    lm = tiny(name)
    embeds = lm.embed(ids())
    shifted = Documents(starts=PACKED.starts, positions=PACKED.positions + 5)
    # rotary positions are relative: a shift of whole documents changes nothing but rounding, running numbers change nothing either
    torch.testing.assert_close(lm(embeds, PACKED), lm(embeds, shifted), atol=1e-4, rtol=1e-4)
    stretched = Documents(starts=PACKED.starts, positions=PACKED.positions * 2)
    assert not torch.allclose(lm(embeds, PACKED), lm(embeds, stretched), atol=1e-2)


def test_a_document_sees_its_prefix_as_if_it_followed_it(tiny, name):
    lm, reference = tiny(name), plain(name)
    # a trunk of 7 tokens, branches of 6 and 7 on it, a branch of 5 on the second branch
    starts, prefix = [0, 7, 13, 20, 25, 40], [-1, 0, 0, 2, -1]
    offsets = [0, 7, 7, 14, 0]
    positions = torch.cat([torch.arange(end - start) + offset for (start, end), offset in zip(pairwise(starts), offsets, strict=True)])
    docs = Documents(starts=torch.tensor(starts), positions=positions.view(ROWS, LENGTH), prefix=torch.tensor(prefix))
    flat, seen = ids().flatten(), logits(lm, lm.embed(ids()), docs)
    for path in ([(0, 7), (7, 13)], [(0, 7), (13, 20), (20, 25)], [(25, 40)]):
        wanted = reference(input_ids=torch.cat([flat[start:end] for start, end in path])[None], use_cache=False).logits[0]
        start, end = path[-1]
        torch.testing.assert_close(seen[start:end], wanted[start - end :], atol=1e-5, rtol=1e-5)


def test_a_prefix_that_comes_later_is_refused():
    docs = Documents(starts=PACKED.starts, positions=PACKED.positions, prefix=torch.tensor([1, -1, -1, -1, -1]))
    with pytest.raises(ValueError, match="Document 0 has document 1 as its prefix"):
        pieces_of(docs)


@pytest.mark.parametrize("lora", [None, LORA], ids=["bare", "with-adapter"])
def test_all_attention_layers_share_the_models_config(tiny, name, lora):
    lm = tiny(name, lora=lora)
    configs = {id(module.config) for module in lm.modules() if hasattr(module, "config")}
    assert configs == {id(lm.model.config)}
    assert lm.model.config._attn_implementation == NAME


def test_a_saved_config_does_not_name_our_attention(tiny, name):
    assert NAME not in tiny(name).model.config.to_json_string(use_diff=False)


def test_training_builds_no_mask(tiny, name, monkeypatch):
    from transformers import AttentionMaskInterface

    def refuse(*_, **__):
        raise AssertionError("a mask was built")

    lm = tiny(name)
    AttentionMaskInterface.register(NAME, refuse)
    try:
        lm(lm.embed(ids()), PACKED)
    finally:
        from vlm.backbones.language import attention

        attention.register()


def test_training_between_generations_changes_neither(tiny, name):
    lm = tiny(name)
    embeds, mask = lm.embed(ids()), torch.ones(ROWS, LENGTH, dtype=torch.long)
    hidden, new = lm(embeds, PACKED), lm.generate(embeds, mask, max_new_tokens=4)
    assert torch.equal(lm(embeds, PACKED), hidden)
    assert torch.equal(lm.generate(embeds, mask, max_new_tokens=4), new)


def test_gradient_checkpointing_changes_no_gradient(tiny):
    grads = []
    for checkpointing in (False, True):
        lm = tiny("tiny-llama").train()
        if checkpointing:
            lm.model.activation_checkpointing_enable()
        lm(lm.embed(ids()), PACKED).square().sum().backward()
        grads.append(lm.decoder.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_attention_that_needs_more_than_this_is_refused(tiny):
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ConfigError, match="Linear needs softcap"):
        document_attention(torch.nn.Linear(1, 1), states, states, states, None, document_pieces=Pieces(), softcap=50.0)


def test_families_that_mix_tokens_elsewhere_are_refused(tiny):
    import transformers

    lm = tiny("tiny-qwen3")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 384, "num_experts": 2}
    config = transformers.AutoConfig.for_model("qwen3_next", layer_types=["linear_attention", "full_attention"], **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match="'qwen3_next' have layers of kind linear_attention"):
        HFCausalLM(model, tokenizer=lm.tokenizer, template=lm.template, max_length=512)


TRUNK = Piece(0, 0, 6)
PLACES = (TRUNK, Piece(0, 6, 13, (TRUNK,)), Piece(0, 13, 20, (TRUNK,)), Piece(1, 0, 9), Piece(1, 9, 20))


def kernel_by_definition(*, top_left: bool = False):
    """torch.nn.attention.varlen.varlen_attn as its documentation defines it, document by document; `top_left` aligns the causal mask as some kernels do."""

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
        assert enable_gqa == (query.shape[1] != key.shape[1])
        key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
        outs = []
        for (a, b), (c, d) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
            first = 0 if top_left else (d - c) - (b - a)
            distance = torch.arange(first, first + b - a)[:, None] - torch.arange(d - c)
            seen = (distance >= 0) & (distance <= window_size[0] if window_size[0] >= 0 else True)
            scores = torch.einsum("qhw,khw->hqk", query[a:b].double(), key[c:d].double()) * (scale or query.shape[2] ** -0.5)
            outs.append(torch.einsum("hqk,khw->qhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), value[c:d].double()))
        return torch.cat(outs).to(query.dtype)

    return varlen_attn


def attend_by(monkeypatch, kernel, *, places=PLACES, kv_heads=2, window=None):
    """Attention through the variable-length path, and document by document."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    attention._is_exact.cache_clear()
    q, k, v = (torch.randn(2, count, 20, 8, generator=torch.Generator().manual_seed(count)).bfloat16() for count in (4, kv_heads, kv_heads))
    module = torch.nn.Linear(1, 1)
    fast, slow = (
        document_attention(module, q, k, v, None, document_pieces=Pieces(places, varlen), sliding_window=window)[0]
        for varlen in (varlen_of(places, 20, torch.device("cpu")), None)
    )
    attention._is_exact.cache_clear()
    return fast, slow


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("places", [PLACES, tuple(place._replace(path=()) for place in PLACES)], ids=["tree", "documents"])
def test_variable_length_kernel_gets_the_documents_as_it_takes_them(monkeypatch, places, kv_heads, window):
    calls = []
    kernel = kernel_by_definition()
    fast, slow = attend_by(monkeypatch, lambda *a, **k: calls.append(1) or kernel(*a, **k), places=places, kv_heads=kv_heads, window=window)
    assert len(calls) == 2  # once on trial
    torch.testing.assert_close(fast.float(), slow.float(), atol=0.02, rtol=0.02)


def test_kernel_that_aligns_otherwise_is_found_out_and_not_used(monkeypatch, caplog):
    fast, slow = attend_by(monkeypatch, kernel_by_definition(top_left=True))
    assert torch.equal(fast, slow)
    assert "is not exact here" in caplog.text


def test_kernel_that_this_torch_lacks_is_done_without(monkeypatch, caplog):
    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        raise AssertionError("never called with these")

    fast, slow = attend_by(monkeypatch, older)
    assert torch.equal(fast, slow)
    assert "kernel refuses" in caplog.text


def test_under_autocast_the_kernel_gets_what_it_can_take(monkeypatch):
    """Full fine-tuning under bf16-mixed: rotary angles make fp32 of queries and keys."""
    seen = []
    kernel = kernel_by_definition()
    monkeypatch.setattr(
        "torch.nn.attention.varlen.varlen_attn", lambda q, k, v, *a, **s: seen.append((q.dtype, k.dtype, v.dtype)) or kernel(q, k, v, *a, **s)
    )
    attention._is_exact.cache_clear()
    q, k, v = torch.randn(2, 4, 20, 8), torch.randn(2, 4, 20, 8), torch.randn(2, 4, 20, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pieces = Pieces(PLACES, varlen_of(PLACES, 20, torch.device("cpu")))
        out, _ = document_attention(torch.nn.Linear(1, 1), q, k, v, None, document_pieces=pieces)
    attention._is_exact.cache_clear()
    assert seen == [(torch.bfloat16,) * 3] * 2
    assert out.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 40])
def test_cuda_kernel_equals_one_call_a_document_with_gradients(window):
    places, states = PLACES, []
    for count in (4, 2, 2):
        states.append(torch.randn(2, count, 20, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True))
    results = []
    for varlen in (varlen_of(places, 20, torch.device("cuda")), None):
        out, _ = document_attention(torch.nn.Linear(1, 1), *states, None, document_pieces=Pieces(places, varlen), sliding_window=window)
        results.append((out, torch.autograd.grad(out.float().square().sum(), states)))
    torch.testing.assert_close(results[0][0], results[1][0], atol=0.02, rtol=0.02)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.05)
