"""Fingerprints: what they see, and what they must not."""

from dataclasses import replace

import pytest
import torch

from vlm.models.build import build
from vlm.models.fingerprint import _stride, fingerprint


@pytest.mark.parametrize("part", ["vision", "language"])
def test_fingerprint_is_the_same_for_fp32_and_bf16_and_with_an_adapter(part, compose):
    both = compose(rank=2, vision_rank=2, kind="dora")
    models = [compose(), compose(precision="bf16"), both, compose(rank=2, trained=("language", "connector"), precision="bf16-mixed")]
    assert len({fingerprint(getattr(model, part)) for model in models}) == 1


def test_fingerprint_sees_one_changed_value_in_a_hundred(compose):
    model, other = compose(), compose()
    weight = other.language.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.flatten()[::100] += 0.5
    assert fingerprint(model.language) != fingerprint(other.language)


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


def test_fingerprint_survives_saving_and_loading_the_tower(compose, config, tmp_path):
    model = compose()
    model.language.model.save_pretrained(tmp_path)
    model.language.tokenizer.save_pretrained(tmp_path)
    again = build(replace(config(), language_source=str(tmp_path)), precision="bf16")
    assert fingerprint(again.language) == fingerprint(model.language)
