"""LLM2Vec against vectors that the package llm2vec 0.2.3 gave on transformers 4.44.2; see tests/data/llm2vec_golden/README.md."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import build_text
from vlm.backbones.text.llm2vec import TEMPLATES, reading_of
from vlm.backbones.text.pooled import PooledTextEncoder
from vlm.errors import CheckpointError, ConfigError
from vlm.models.catalog import inspect
from vlm.types import TextEncoder

GOLDEN = Path(__file__).parents[2] / "data" / "llm2vec_golden"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
VECTORS = np.load(GOLDEN / "golden.npz")
TEXTS = CASES["texts"]


def golden_encoder(case: dict[str, Any], source: Path | str = GOLDEN) -> Any:
    import transformers

    spec = TEXT[f"llm2vec:{GOLDEN}"]
    reading = replace(
        reading_of(case["name_or_path"], transformers.LlamaConfig()),
        pooling=case["pooling"],
        skip_instruction=case["skip_instruction"],
        doc_max_length=case["doc_max_length"],
    )
    adapters = {stage: spec.adapters[stage] for stage in case["adapters"]}
    return build_text(replace(spec, reading=reading, adapters=adapters, max_length=case["max_length"]), Load(source=source))


@pytest.fixture(scope="module")
def encoder():
    return build_text(TEXT[f"llm2vec:{GOLDEN}"], Load(source=GOLDEN))


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["id"])
@torch.no_grad()
def test_vectors_are_those_of_the_original_package(case: dict[str, Any]):
    vectors = golden_encoder(case).encode(TEXTS, instruction=case["instruction"])
    torch.testing.assert_close(vectors, torch.from_numpy(VECTORS[case["id"]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("id", CASES["tokens"])
def test_tokens_and_the_number_that_counts_are_those_of_the_original(id: str):
    (case,) = [case for case in CASES["cases"] if case["id"] == id]
    tokens = golden_encoder(case).tokenize(TEXTS, instruction=case["instruction"])
    for row, wanted in enumerate(CASES["tokens"][id]):
        ids = tokens.ids[row][tokens.seen[row].bool()].tolist()
        assert (ids, int(tokens.counted[row].sum())) == (wanted["input_ids"], wanted["pooled"])


def of_the_original(tokenizer: Any, pairs: list[tuple[str, str]], *, template: str, end: str, max_length: int, doc_max_length: int) -> list[tuple]:
    """What `_convert_to_str`, `prepare_for_tokenization` and `tokenize` of llm2vec.py do to one text after the other, with their separator."""
    rows = []
    for instruction, text in pairs:
        length = len(tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length).input_ids)
        while length > doc_max_length:
            text = " ".join(text.split()[: int(len(text.split()) * doc_max_length / length)])
            length = len(tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length).input_ids)
        text = f"{instruction.strip()} !@#$%^&*(){text}" if instruction else f"!@#$%^&*(){text}"
        text = template.replace("{text}", text.strip()) if template != "{text}" else text
        text = text.strip() + end if end else text
        head, tail = text.split("!@#$%^&*()")
        ids = tokenizer(head + tail, truncation=True, max_length=max_length).input_ids
        rows.append((ids, len(tokenizer(tail, add_special_tokens=False, truncation=True, max_length=max_length).input_ids)))
    return rows


@pytest.mark.parametrize(("max_length", "doc_max_length"), [(512, 400), (40, 24)])
@pytest.mark.parametrize("instruction", ["", "  ", " Represent the caption: "])
@pytest.mark.parametrize("end", ["", " </s>", "<|endoftext|>"])
@pytest.mark.parametrize("template", ["{text}", *sorted(set(TEMPLATES.values()))])
def test_tokens_are_those_of_the_original_written_out(encoder, template: str, end: str, instruction: str, max_length: int, doc_max_length: int):
    texts = [*TEXTS, "\n cat  \t", "the dog " * 60, "INST [/INST] <|eot_id|>"]
    lengths = {"max_length": max_length, "doc_max_length": doc_max_length}
    wanted = of_the_original(encoder.tokenizer, [(instruction, text) for text in texts], template=template, end=end, **lengths)
    pooling = "eos_token" if end else "mean"
    reading = replace(encoder.reading, template=template, end=end, pooling=pooling, doc_max_length=doc_max_length)
    own = PooledTextEncoder(encoder.tower, tokenizer=encoder.tokenizer, width=64, max_length=max_length, reading=reading)
    tokens = own.tokenize(texts, instruction=instruction)
    for row, (ids, count) in enumerate(wanted):
        assert tokens.ids[row][tokens.seen[row].bool()].tolist() == ids
        assert tokens.counted[row].sum() == (min(count, len(ids)) or len(ids))


def test_one_source_path_loads_base_adapters_template_and_settings_without_the_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    spec = TEXT[f"llm2vec:{GOLDEN}"]
    encoder = build_text(spec, Load(source=spec.source))
    assert isinstance(encoder, TextEncoder)
    assert list(spec.adapters) == ["mntp", "supervised"]
    assert (spec.max_length, spec.reading.doc_max_length, spec.reading.pooling, spec.reading.skip_instruction) == (512, 400, "mean", True)
    torch.testing.assert_close(encoder.encode(TEXTS), torch.from_numpy(VECTORS["llama3/mean/plain"]), rtol=0, atol=1e-5)


def test_base_and_adapters_may_lie_anywhere(tmp_path: Path):
    for old, new in (("base", "llama"), ("mntp", "first"), ("supervised", "second")):
        shutil.copytree(GOLDEN / old, tmp_path / new)
    spec = TEXT[f"llm2vec:{tmp_path / 'llama'}+{tmp_path / 'first'}+{tmp_path / 'second'}"]
    vectors = build_text(spec, Load(source=spec.source)).encode(TEXTS)
    torch.testing.assert_close(vectors, torch.from_numpy(VECTORS["llama3/mean/plain"]), rtol=0, atol=1e-5)


def test_each_adapter_changes_the_vectors():
    one, both, none = (
        golden_encoder(CASES["cases"][0] | {"adapters": stages}).encode(["a cat"]) for stages in (["mntp"], ["mntp", "supervised"], [])
    )
    assert (one - both).abs().max() > 0.1
    assert (one - none).abs().max() > 0.1


def test_vectors_are_fp32_not_normalized_and_do_not_depend_on_the_batch(encoder):
    together = encoder.encode(TEXTS)
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert not torch.allclose(together.norm(dim=1), torch.ones(len(TEXTS)), atol=0.1)
    half = build_text(TEXT[f"llm2vec:{GOLDEN}"], Load(source=GOLDEN, dtype=torch.bfloat16)).encode(TEXTS)
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(half, together).min() > 0.999


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("instruction", ["", "Find it:"])
def test_empty_text_has_a_finite_vector_whatever_stands_beside_it(encoder, template: bool, instruction: str):
    reading = encoder.reading if template else replace(encoder.reading, template="{text}")
    encoder = build_text(replace(TEXT[f"llm2vec:{GOLDEN}"], reading=reading), Load(source=GOLDEN))
    empty = encoder.encode(["", " \n", "a long text about a cat"], instruction=instruction)
    torch.testing.assert_close(encoder.encode([""], instruction=instruction)[0], empty[0], rtol=0, atol=1e-5)
    assert empty.isfinite().all()


def test_text_that_contains_the_separator_of_the_original_is_read_as_it_is(encoder):
    tokens = encoder.tokenize(["swear !@#$%^&*() word"])
    assert "!@#$%^&*()" in encoder.tokenizer.decode(tokens.ids[0])
    assert encoder.tokenizer.decode(tokens.ids[0][tokens.counted[0].bool()]).startswith("swear")


def test_long_word_is_cut_to_nothing_rather_than_for_ever(encoder):
    assert encoder.encode(["ab" * 3000]).isfinite().all()


def test_description_differs_wherever_a_vector_would(encoder):
    spec = TEXT[f"llm2vec:{GOLDEN}"]
    changes = [
        {"adapters": {"mntp": spec.adapters["mntp"]}},
        {"max_length": 64},
        *(
            {"reading": replace(spec.reading, **change)}
            for change in ({"template": "{text}"}, {"pooling": "last_token"}, {"skip_instruction": False})
        ),
        {"reading": replace(spec.reading, doc_max_length=20)},
    ]
    described = [build_text(replace(spec, **change), Load(source=GOLDEN)).describe() for change in changes]
    described += [encoder.describe(), encoder.describe(instruction="Find it:")]
    described += [build_text(spec, Load(source=GOLDEN, dtype=torch.bfloat16)).describe()]
    assert len({json.dumps(each, sort_keys=True) for each in described}) == len(described)


def test_adapter_in_the_place_of_a_base_is_named():
    with pytest.raises(CheckpointError, match=r"mntp is an adapter\. Name the model that it belongs to first"):
        TEXT[f"llm2vec:{GOLDEN / 'mntp'}"]


def test_missing_stage_is_named():
    spec = replace(TEXT[f"llm2vec:{GOLDEN}"], adapters={"mntp": "x/y", "simcse": "x/z"})
    with pytest.raises(CheckpointError, match="has base/, but not simcse/"):
        build_text(spec, Load(source=GOLDEN))


@pytest.mark.parametrize(("key", "message"), [("lora_A", "lacks 1 tensors"), ("extra", "has 1 tensors of no layer")])
def test_adapter_of_another_model_is_refused(tmp_path: Path, key: str, message: str):
    shutil.copytree(GOLDEN, tmp_path / "all")
    file = tmp_path / "all" / "mntp" / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(name for name in tensors if "lora_A" in name)
    weight = tensors.pop(first) if key == "lora_A" else tensors[first]
    save_file(tensors | ({} if key == "lora_A" else {first.replace("layers.0", "layers.9"): weight.clone()}), file)
    with pytest.raises(CheckpointError, match=message):
        build_text(TEXT[f"llm2vec:{tmp_path / 'all'}"], Load(source=tmp_path / "all"))


def test_registered_entry_refuses_a_base_of_another_size():
    with pytest.raises(CheckpointError, match="hidden_size is 64, expected 4096"):
        build_text(TEXT["llm2vec-llama3-8b-supervised-text"], Load(source=GOLDEN))


def test_every_registered_entry_has_the_template_of_its_base_whatever_the_path():
    entries = {name: spec for name, spec in TEXT.items() if name.startswith("llm2vec-")}
    assert len(entries) == 9
    for spec in entries.values():
        assert spec.reading.template == TEMPLATES.get(spec.source, "{text}")
        assert list(spec.adapters) in ([], ["mntp", "supervised"], ["mntp", "simcse"])


@pytest.mark.parametrize(
    ("name", "model_type", "whole"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama", "<|start_header_id|>user<|end_header_id|>\n\nDo: a cat<|eot_id|>"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral", "[INST] Do: a cat [/INST] </s>"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama", "[INST] Do: a cat [/INST] </s>"),
        ("google/gemma-2-9b-it", "gemma2", "<bos><start_of_turn>user\nDo: a cat<end_of_turn>"),
        ("google/gemma-2b", "gemma", "Do: a cat<eos>"),
        ("Qwen/Qwen2-7B-Instruct", "qwen2", "<|im_start|>user\nDo: a cat<|im_end|><|endoftext|>"),
        ("meta-llama/Meta-Llama-3-8B", "llama", "Do: a cat<|end_of_text|>"),
        ("princeton-nlp/Sheared-LLaMA-1.3B", "llama", "Do: a cat </s>"),
    ],
)
def test_pooling_at_the_end_token_writes_what_prepare_for_tokenization_does(name: str, model_type: str, whole: str):
    import transformers

    reading = reading_of(name, transformers.AutoConfig.for_model(model_type))
    assert "".join(replace(reading, pooling="eos_token").write("a cat \n", " Do: ")) == whole
    assert "".join(replace(reading, pooling="last_token").write("a cat", "Do:")) == whole.removesuffix(reading.end)


def test_any_open_name_can_be_inspected_without_weights():
    facts = inspect(f"llm2vec:{GOLDEN}").facts
    assert (facts["tokens"], facts["joint width"], facts["parameters"]) == ("512", "64", "not known before the download")


def test_unknown_pooling_is_refused_with_the_known_ones(encoder):
    with pytest.raises(ConfigError, match="Unknown pooling 'max'; known are mean, weighted_mean, eos_token"):
        replace(encoder.reading, pooling="max")


def test_first_token_is_pooled_where_the_tokenizer_sets_one(encoder):
    spec = TEXT[f"llm2vec:{GOLDEN}"]
    first = build_text(replace(spec, reading=replace(spec.reading, pooling="bos_token")), Load(source=GOLDEN))
    tokens = first.tokenize(["a cat"])
    hidden = first.tower.model(input_ids=tokens.ids, attention_mask=tokens.seen).last_hidden_state
    assert tokens.ids[0, 0] == first.tokenizer.bos_token_id
    torch.testing.assert_close(first.encode(["a cat", "the long text of another picture"])[0], hidden[0, 0], rtol=0, atol=1e-5)


def test_a_plain_decoder_sees_no_later_token_and_takes_no_adapters():
    base = f"{GOLDEN}/base"
    causal, switched = (build_text(TEXT[f"{kind}:{base}"], Load(source=base)) for kind in ("decoder", "llm2vec"))
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])  # all but the last token are equal
    ones, first = torch.ones_like(ids), torch.tensor([[1, 0, 0]] * 2)
    with torch.no_grad():
        differences = [float((vectors[0] - vectors[1]).abs().max()) for vectors in (each(ids, ones, first) for each in (causal, switched))]
    assert differences[0] < 1e-6 < 1e-3 < differences[1]
    with pytest.raises(CheckpointError, match="Name it llm2vec:"):
        TEXT[f"decoder:{GOLDEN}"]


def test_instruct_model_without_known_template_is_said_once_when_it_is_built(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    base = shutil.copytree(GOLDEN / "base", tmp_path / "other-instruct")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": ""}), encoding="utf-8")
    _, spec = (TEXT[f"llm2vec:{base}"] for _ in range(2))
    assert not caplog.records
    build_text(spec, Load(source=base))
    assert [record.getMessage().split(" as a ")[0] for record in caplog.records] == [f"warning: no prompt template is known for {base}"]
