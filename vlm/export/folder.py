"""The files that every export of a model that answers has: tokenizer, generation config, weights."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.backbones.language.base import HFCausalLM
from vlm.backbones.language.huggingface import ABOUT_THE_FILE
from vlm.backbones.writing import without_remarks
from vlm.data.chat import opens_once
from vlm.messages import IMAGE_PLACEHOLDER

SHARD_SIZE = "5GB"  # transformers' own default
TOKENIZER_CLASS = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 know; tokenizer.json holds all that matters


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plain_config(config: Any) -> dict[str, Any]:
    """A config of transformers as JSON, without what every config has and what is about its file; positions also in transformers 4's words."""
    import transformers

    of_every = transformers.PretrainedConfig().to_dict()
    values = {key: value for key, value in config.to_dict().items() if key not in ABOUT_THE_FILE and (key not in of_every or value != of_every[key])}
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    rope = values.get("rope_parameters") or {}
    if "rope_theta" in rope:
        values |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        values |= {} if rope.get("rope_type", "default") == "default" else {"rope_scaling": rope}
    return values | {"model_type": config.model_type}


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors`, or its shards and their index, in place of earlier ones."""
    from huggingface_hub import save_torch_state_dict

    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    with without_remarks():
        save_torch_state_dict(dict(weights), folder, max_shard_size=SHARD_SIZE)


def exported_tokenizer(language: HFCausalLM, chat_template: str) -> Any:
    """A copy of the tokenizer that knows the chat template and puts nothing around a text: the template writes BOS where the model was trained with it.

    So `apply_chat_template` in one step or in two, and servers that tokenize the rendered text, all give the ids of training.
    """
    import transformers
    from tokenizers import Tokenizer, processors

    own = language.tokenizer
    bare = Tokenizer.from_str(own.backend_tokenizer.to_str())
    bare.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    if own.bos_token and opens_once(own):
        _open_behind(bare, own.bos_token)
    names = {name: getattr(own, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token") if getattr(own, name) is not None}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        **names,
        extra_special_tokens={"image_token": IMAGE_PLACEHOLDER},
        model_max_length=language.max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )


def _open_behind(tokenizer: Any, bos: str) -> None:
    """Put the space that a text begins with behind a BOS that opens the text as well, as it is when the tokenizer itself writes BOS.

    As there, none is put before a space or a special token. Normalization sees the text as a whole if all added tokens are found in normalized text.
    """
    from tokenizers import AddedToken, Regex, normalizers

    added = tokenizer.get_added_tokens_decoder().values()
    for token in added:
        flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special}
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([AddedToken(token.content, normalized=True, **flags)])
    others = "|".join(re.escape(token.content) for token in added)
    space = normalizers.Replace(Regex(rf"\A{re.escape(bos)}(?!{others})(?=[^ ▁])"), f"{bos} ")
    before = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*before, space])


def name_tokenizer_class(folder: Path) -> None:
    """Let `tokenizer_config.json` name a class that older versions of transformers have as well."""
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": TOKENIZER_CLASS})


def write_generation_config(folder: Path, language: HFCausalLM, *, suppress: Sequence[int] = ()) -> None:
    """Write what ends an answer, and which ids are never drawn."""
    import transformers

    own = language.model.generation_config
    config = transformers.GenerationConfig(
        bos_token_id=language.tokenizer.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
        suppress_tokens=list(suppress) or None,
    )
    config.save_pretrained(folder)
