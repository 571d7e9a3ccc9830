"""Fingerprints: what they see, and what they must not."""

import pytest
import torch

from vlm.backbones.fingerprint import _stride, fingerprint
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import build_language
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, add_lora
from vlm.backbones.vision import VISION


def tower(name: str, *, dtype: torch.dtype = torch.float32, kind: str = ""):
    load = Load(None, dtype=dtype)
    tower = VISION[name].build(VISION[name], load) if name in VISION else build_language(LANGUAGE[name], load)
    if kind:
        add_lora(tower, LoRAOptions(rank=2, alpha=8.0, dropout=0.0, targets="all-linear", kind=kind))
    return tower


@pytest.mark.parametrize("name", ["tiny-siglip", "tiny-llama"])
def test_fingerprint_is_the_same_for_fp32_and_bf16_and_with_an_adapter(name):
    towers = [tower(name), tower(name, dtype=torch.bfloat16), tower(name, kind="dora"), tower(name, dtype=torch.bfloat16, kind="lora")]
    assert len({fingerprint(each) for each in towers}) == 1


def test_adapter_is_seen_where_it_is_asked_for():
    adapted = tower("tiny-siglip", kind="lora")
    before = fingerprint(adapted, adapters=True)
    assert before != fingerprint(adapted) == fingerprint(tower("tiny-siglip"), adapters=True)
    with torch.no_grad():
        next(weight for name, weight in adapted.named_parameters() if "lora_B" in name).add_(1)
    assert fingerprint(adapted, adapters=True) != before


def test_fingerprint_sees_one_changed_value_in_a_hundred():
    language, other = tower("tiny-llama"), tower("tiny-llama")
    weight = other.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.flatten()[::100] += 0.5
    assert fingerprint(language) != fingerprint(other)


@pytest.mark.parametrize("shape", [(512, 1024), (300, 1152), (12_288, 64)])
def test_fingerprint_sees_a_change_in_any_column(shape):
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    before = fingerprint(layer)
    for column in (0, 1, 2, 3, 17, shape[1] - 1):
        with torch.no_grad():
            layer.weight[:, column] += 1
        after = fingerprint(layer)
        assert after != before, column
        before = after


def test_fingerprint_hashes_at_most_twice_the_values_it_is_meant_to():
    sizes = [1, 4096, 4097, 8191, 8192, 4096 * 30, 4096 * 30030, 1024 * 1024, 151_936 * 896, 32_000 * 4096]
    hashed = [len(range(0, size, _stride(size))) for size in sizes]
    assert all(min(size, 2048) <= count < 8192 for size, count in zip(sizes, hashed, strict=True))


def test_fingerprint_survives_saving_and_loading_the_tower(tmp_path):
    language = tower("tiny-llama")
    language.model.save_pretrained(tmp_path)
    language.tokenizer.save_pretrained(tmp_path)
    assert fingerprint(build_language(LANGUAGE["tiny-llama"], Load(tmp_path, dtype=torch.bfloat16))) == fingerprint(language)
