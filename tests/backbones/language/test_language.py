"""What the specs say, proven by building each model at full size on the meta device, without weights."""

import subprocess
import sys

import pytest
import torch

from vlm.backbones.language import LANGUAGE
from vlm.backbones.loading import Load
from vlm.errors import UnknownNameError

# Published sizes: the safetensors index or the model card of each hub repository; Qwen3-0.6B's card rounds to 0.6B with the tied head once.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-7b-chat": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-13b-chat": 13_015_864_320,
    "llama-3-8b-instruct": 8_030_261_248,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "llama-3.2-3b-instruct": 3_212_749_824,
    "vicuna-1.5-7b": 6_738_415_616,
    "vicuna-1.5-13b": 13_015_864_320,
    "mistral-v0.1-7b": 7_241_732_096,
    "mistral-instruct-v0.1-7b": 7_241_732_096,
    "mistral-instruct-v0.2-7b": 7_241_732_096,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-135m-instruct-q4": 134_515_008,
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b-instruct": 1_711_376_384,
}

# prismatic-vlms, models/materialize.py, and the registries of its two forks
PRISMATIC = {
    "llama2-7b-pure": "llama-2-7b",
    "llama2-13b-pure": "llama-2-13b",
    "llama2-7b-chat": "llama-2-7b-chat",
    "llama2-13b-chat": "llama-2-13b-chat",
    "vicuna-v15-7b": "vicuna-1.5-7b",
    "vicuna-v15-13b": "vicuna-1.5-13b",
    "mistral-v0.1-7b-pure": "mistral-v0.1-7b",
    "mistral-v0.1-7b-instruct": "mistral-instruct-v0.1-7b",
    "phi-2-3b": "phi-2",
    "phi2_base": "phi-2",
    "phi3_base": "phi-3-mini",
}


def on_meta(name: str) -> torch.nn.Module:
    spec = LANGUAGE[name]
    with torch.device("meta"):
        return spec.build(spec, Load(None))


def test_every_published_model_is_counted():
    assert set(PUBLISHED) == {name for name in LANGUAGE if not name.startswith("tiny-")}


@pytest.mark.parametrize("name", LANGUAGE)
def test_full_size_has_the_published_number_of_parameters(name):
    assert LANGUAGE[name].num_parameters == PUBLISHED.get(name, LANGUAGE[name].num_parameters)
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == LANGUAGE[name].num_parameters


@pytest.mark.parametrize("name", LANGUAGE)
def test_width_vocabulary_context_and_adapter_layers_are_those_of_the_model(name):
    spec, model = LANGUAGE[name], on_meta(name)
    assert model.get_input_embeddings().weight.shape == (spec.vocab_size, spec.width)
    assert model.config.max_position_embeddings == spec.max_length
    linear = {path.split(".")[-1] for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(spec.lora_targets) <= linear - {"lm_head"}


@pytest.mark.parametrize("name", LANGUAGE)
def test_source_licence_paper_and_template_are_named(name):
    spec = LANGUAGE[name]
    assert spec.template is not None
    assert spec.license
    assert name.startswith("tiny-") or (spec.source and spec.paper)


@pytest.mark.parametrize(("alias", "name"), PRISMATIC.items())
def test_prismatics_names_answer(alias, name):
    assert LANGUAGE.resolve(alias) == name


def test_a_typo_names_its_neighbors():
    with pytest.raises(UnknownNameError, match=r"No language model named 'phi2'\. Did you mean 'phi-2'"):
        LANGUAGE["phi2"]


def test_rotary_settings_are_the_published_ones():
    """From the config.json of each hub repository."""
    rope = {name: LANGUAGE[name].architecture.get("rope_parameters", {}) for name in PUBLISHED}
    assert {rope[name]["rope_theta"] for name in PUBLISHED if name.startswith("qwen")} == {1e6}
    assert {rope[name]["rope_theta"] for name in PUBLISHED if name.startswith("llama-3")} == {5e5}
    assert [rope[f"llama-3.{name}-instruct"]["factor"] for name in ("1-8b", "2-1b", "2-3b")] == [8.0, 32.0, 32.0]
    assert on_meta("phi-2").config.rope_parameters["partial_rotary_factor"] == 0.4
    assert on_meta("llama-2-7b").config.rope_parameters["rope_theta"] == 10_000.0


def test_looking_models_up_imports_no_transformers():
    code = "import sys; from vlm.backbones.language import LANGUAGE; list(LANGUAGE.items()); print([m for m in ('transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
