"""LLM2Vec text encoders (BehnamGhader et al. 2024, arXiv:2404.05961): bidirectional decoders with merged adapters, pooled.

The package `llm2vec` itself runs on transformers 4.44 alone; this is its reading of texts on transformers 5. Where they differ: Mistral's sliding window
is ignored by both, but the original leaves Qwen2 causal beside padding, and divides by nothing for a text of no tokens.

A source names the base model, and its adapters with `+` between: "<base>+<adapter>+<adapter>", hub ids or folders, in the order in which they are
merged. A base alone gets the adapters of the spec. One folder may hold it all as base/, mntp/ and supervised/ (or simcse/).
`decoder:` is for a decoder that was never trained to see later tokens, and does not.
"""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.huggingface import ABOUT_THE_FILE
from vlm.backbones.language.llama import llama_2
from vlm.backbones.loading import Load, read_config
from vlm.backbones.text.base import TextSpec, auto_tokenizer, read_json
from vlm.backbones.text.bidirectional import check_attention, make_bidirectional
from vlm.backbones.text.pooled import PooledTower, headless, pooled_text
from vlm.backbones.text.reading import BARE, Reading
from vlm.errors import CheckpointError

log = logging.getLogger(__name__)

STAGES = ("mntp", "supervised", "simcse")  # folders beside base/, in the order of training; the last two are alternatives
MAX_LENGTH, DOC_MAX_LENGTH = 512, 400

# prepare_for_tokenization of llm2vec.py; there the keys are compared with config._name_or_path, which a local path replaces
LLAMA_3 = "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
INST = "[INST] {text} [/INST]"
CHATML = "<|im_start|>user\n{text}<|im_end|>"
TEMPLATES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3,
    "mistralai/Mistral-7B-Instruct-v0.2": INST,
    "meta-llama/Llama-2-7b-chat-hf": INST,
    "google/gemma-2-9b-it": "<bos><start_of_turn>user\n{text}<end_of_turn>",
    "Qwen/Qwen2-1.5B-Instruct": CHATML,
    "Qwen/Qwen2-7B-Instruct": CHATML,
}
# what pooling eos_token appends: by model, else by type
ENDS_OF_MODELS = {"meta-llama/Meta-Llama-3-8B": "<|end_of_text|>", "meta-llama/Meta-Llama-3-8B-Instruct": ""}
ENDS = {"llama": " </s>", "mistral": " </s>", "gemma": "<eos>", "qwen2": "<|endoftext|>"}


class Parts(NamedTuple):
    """Where the pieces of an encoder are: hub ids or folders."""

    base: str
    adapters: tuple[str, ...]


def llm2vec(spec: TextSpec, load: Load) -> PooledTower:
    """A decoder without head, its adapters merged, its tokens seeing later tokens.

    Raises:
        CheckpointError: If weights or adapters cannot be found, are of another model, or attention is not as it should be.
    """
    assert spec.reading is not None
    reading, adapters = spec.reading, ()
    if load.source is None:
        model = headless(spec, load)
    else:
        base, adapters = parts_of(load.source, spec.adapters)
        if reading.template == BARE and "instruct" in base.lower():
            log.warning("warning: no prompt template is known for %s as a text encoder; texts are read as they are", base)
        model = headless(spec, replace(load, source=base))
        for adapter in adapters:
            model = merged(model, adapter)
    if model.config.model_type == "mistral":
        model.config.sliding_window = None  # as in the original
    if reading.bidirectional:
        make_bidirectional(model, padding_side=reading.padding_side)
    else:
        check_attention(model, bidirectional=False, padding_side=reading.padding_side)
    return PooledTower(model, pooling=reading.pooling, adapters=adapters)


def parts_of(source: str | Path, adapters: Mapping[str, str]) -> Parts:
    """What a source names.

    Args:
        source: See the head of this file.
        adapters: Those of the spec, by stage.

    Raises:
        CheckpointError: If the folder of a stage is missing, or an adapter is named where a base should be.
    """
    base, *named = [str(source)] if Path(source).exists() else str(source).split("+")
    folder = Path(base)
    if named:
        parts = Parts(base, tuple(named))
    elif (folder / "base").is_dir():
        missing = [stage for stage in adapters if not (folder / stage).is_dir()]
        if missing:
            raise CheckpointError(f"{folder} has base/, but not {missing[0]}/. Put the adapter there, or name the pieces: <base>+<adapter>.")
        parts = Parts(str(folder / "base"), tuple(str(folder / stage) for stage in adapters))
    else:
        parts = Parts(base, tuple(adapters.values()))
    if (Path(parts.base) / "adapter_config.json").is_file():
        raise CheckpointError(f"{parts.base} is an adapter. Name the model that it belongs to first: <base>+{parts.base}.")
    return parts


def merged(model: Any, source: str) -> Any:
    """A model with an adapter added to its weights.

    Raises:
        CheckpointError: If there is no adapter, or it does not fit the model.
    """
    import peft
    from safetensors import SafetensorError

    try:
        config = peft.PeftConfig.from_pretrained(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that peft uses
            wrapped = peft.PeftModel(model, config)
        result: Any = peft.set_peft_model_state_dict(wrapped, peft.load_peft_weights(source, device="cpu"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"The adapter {source!r} could not be loaded ({' '.join(str(error).split())[:300]}).") from error
    missing = [key for key in result.missing_keys if ".lora_" in key]
    if missing or result.unexpected_keys:
        key = (missing or result.unexpected_keys)[0]
        problem = f"lacks {len(missing)} tensors" if missing else f"has {len(result.unexpected_keys)} tensors of no layer of the model"
        raise CheckpointError(f"The adapter {source!r} {problem}, among them {key}: it belongs to another model.")
    model = wrapped.merge_and_unload()
    return model.requires_grad_(True)  # peft froze them


def base_tokenizer(spec: TextSpec, source: str | Path | None) -> Any:
    """The tokenizer that lies beside the base model."""
    return auto_tokenizer(spec, parts_of(spec.source or "" if source is None else source, spec.adapters).base)


def llm2vec_spec(source: str) -> TextSpec:
    """The spec of any decoder as a text encoder, with adapters or without; reads its `config.json` when called.

    Template and end go by the name of the base model: its hub id, or the one that its `config.json` states. `llm2vec_config.json`, where the last
    adapter or the base has one, gives pooling and lengths. What else is wanted is said with `dataclasses.replace`.

    Raises:
        CheckpointError: If there is no config, or it sizes no decoder.
    """
    import transformers

    folder = Path(source)
    stages = [stage for stage in STAGES if (folder / stage).is_dir()] if (folder / "base").is_dir() else []
    if stages[-2:] == ["supervised", "simcse"]:
        raise CheckpointError(f"{folder} has supervised/ and simcse/, which are alternatives. Name the pieces: {folder}/base+{folder}/mntp+...")
    adapters = {stage: str(folder / stage) for stage in stages}
    parts = parts_of(source, adapters)
    config = read_config(transformers.AutoConfig, parts.base)
    values = {key: value for key, value in config.to_dict().items() if key not in ABOUT_THE_FILE}
    width, longest = values.get("hidden_size"), values.get("max_position_embeddings")
    if not isinstance(width, int) or not isinstance(longest, int):
        raise CheckpointError(f"The config of {parts.base!r} has no hidden_size and max_position_embeddings: it is not that of a decoder.")
    reading = reading_of(read_json(parts.base, "config.json").get("_name_or_path") or parts.base, config)
    stated = read_json((parts.adapters or (parts.base,))[-1], "llm2vec_config.json") or {}
    max_length = min(stated.get("max_length", MAX_LENGTH), longest)
    stated = {key: value for key, value in stated.items() if key in ("doc_max_length", "skip_instruction")} | {
        "pooling": stated.get("pooling_mode", reading.pooling)
    }
    return TextSpec(
        build=llm2vec,
        tokenizer=base_tokenizer,
        assemble=pooled_text,
        source=source,
        architecture=values,
        adapters=adapters,
        reading=replace(reading, **stated),
        width=width,
        max_length=max_length,
        num_parameters=None,
        license="see the model's page",
        paper="arXiv:2404.05961",
    )


def decoder_spec(source: str) -> TextSpec:
    """The spec of any decoder as it was trained, so that no token sees a later one; it reads its `config.json` when called.

    Without the training that LLM2Vec adds, a decoder loses much of what it says of a text when the switch is thrown (benchmarks/contrastive_demo.md).

    Raises:
        CheckpointError: If there is no config, it sizes no decoder, or the source has adapters, which were trained with the switch thrown.
    """
    spec = llm2vec_spec(source)
    assert spec.reading is not None
    if parts_of(source, spec.adapters).adapters:
        raise CheckpointError(f"{source} has adapters of LLM2Vec, which need a bidirectional decoder. Name it llm2vec:{source}.")
    return replace(spec, reading=replace(spec.reading, bidirectional=False))


def reading_of(name: str, config: Any) -> Reading:
    """How LLM2Vec reads texts for a base model of this name."""
    has_rotary = getattr(config, "rope_parameters", None) is not None
    return Reading(
        template=TEMPLATES.get(name, BARE),
        end=ENDS_OF_MODELS.get(name, ENDS.get(config.model_type, "")),
        skip_instruction=True,
        doc_max_length=DOC_MAX_LENGTH,
        padding_side="left" if has_rotary else "right",
    )


def _spec(
    architecture: Mapping[str, Any], source: str, *, template: str = BARE, stages: Mapping[str, str], num_parameters: int, license: str
) -> TextSpec:
    return TextSpec(
        build=llm2vec,
        tokenizer=base_tokenizer,
        assemble=pooled_text,
        source=source,
        architecture=architecture,
        adapters={stage: f"McGill-NLP/LLM2Vec-{name}" for stage, name in stages.items()},
        reading=Reading(
            template=template,
            end=ENDS_OF_MODELS.get(source, ENDS[architecture["model_type"]]),
            skip_instruction=True,
            doc_max_length=DOC_MAX_LENGTH,
            padding_side="left",
        ),
        width=architecture["hidden_size"],
        max_length=MAX_LENGTH,
        num_parameters=num_parameters,
        license=license,
        paper="arXiv:2404.05961",
    )


def _specs(name: str, architecture: Mapping[str, Any], source: str, *, adapter: str, **facts: Any) -> dict[str, TextSpec]:
    """The two published encoders of a base model: `adapter` with -mntp, then with -mntp-supervised or -mntp-unsup-simcse."""
    last = {"supervised": f"{adapter}-mntp-supervised", "simcse": f"{adapter}-mntp-unsup-simcse"}
    facts["template"] = TEMPLATES.get(source, BARE)
    return {
        f"llm2vec-{name}-{stage}-text": _spec(architecture, source, stages={"mntp": f"{adapter}-mntp", stage: own}, **facts)
        for stage, own in last.items()
    }


SHEARED = llama_2(2048, hidden=5504, layers=24, heads=16)
L2, L3 = (LANGUAGE[name].license for name in ("llama-2-7b-chat", "llama-3-8b-instruct"))

SPECS = {
    **_specs(
        "llama3-8b",
        LANGUAGE["llama-3-8b-instruct"].architecture,
        "meta-llama/Meta-Llama-3-8B-Instruct",
        adapter="Meta-Llama-3-8B-Instruct",
        num_parameters=7_504_924_672,
        license=f"MIT; the base model: {L3}",
    ),
    **_specs(
        "sheared-llama-1.3b",
        SHEARED,
        "princeton-nlp/Sheared-LLaMA-1.3B",
        adapter="Sheared-LLaMA",
        num_parameters=1_279_887_360,
        license="MIT; the base model: Apache-2.0",
    ),
    **_specs(
        "mistral-7b",
        LANGUAGE["mistral-instruct-v0.2-7b"].architecture,
        "mistralai/Mistral-7B-Instruct-v0.2",
        adapter="Mistral-7B-Instruct-v2",
        num_parameters=7_110_660_096,
        license="MIT; the base model: Apache-2.0",
    ),
    **_specs(
        "llama2-7b",
        LANGUAGE["llama-2-7b-chat"].architecture,
        "meta-llama/Llama-2-7b-chat-hf",
        adapter="Llama-2-7b-chat-hf",
        num_parameters=6_607_343_616,
        license=f"MIT; the base model: {L2}",
    ),
    # no adapters of Qwen2-7B are published; this is the base model alone, which was not trained to embed
    "llm2vec-qwen2-7b-base-text": _spec(
        LANGUAGE["qwen2.5-7b-instruct"].architecture,  # Qwen2 and Qwen2.5 have equal sizes
        "Qwen/Qwen2-7B-Instruct",
        template=CHATML,
        stages={},
        num_parameters=7_070_619_136,
        license="Apache-2.0",
    ),
}

OPEN_SPECS = {"llm2vec:<base>[+<adapter>...]": llm2vec_spec, "decoder:<id or folder>": decoder_spec}
