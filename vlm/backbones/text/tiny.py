"""Text encoders of some ten thousand random weights for tests: the real transformers classes, a tokenizer made in code, the same weights everywhere.

`Load.source` may be a folder that such a model and its tokenizer were saved to.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm.backbones.loading import Load
from vlm.backbones.text.base import TextSpec, auto_tokenizer
from vlm.backbones.text.clip import clip
from vlm.backbones.text.siglip import siglip
from vlm.backbones.tiny_tokenizer import byte_level_bpe

SEED = 0
VOCAB_SIZE, MAX_LENGTH = 384, 32
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": MAX_LENGTH}


def seeded(build: Callable[[TextSpec, Load], nn.Module], spec: TextSpec, load: Load) -> nn.Module:
    """What `build` makes, with weights from a fixed seed unless a folder is given; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build(spec, load)


def tiny_tokenizer(spec: TextSpec, source: str | Path | None, *, special_tokens: tuple[str, str], template: str) -> Any:
    """A folder's tokenizer, or one made in code that writes in lower case, ends every text and pads with the end token, as CLIP and SigLIP do.

    Args:
        spec: The spec.
        source: A folder, or None.
        special_tokens: The tokens with ids 0 and 1; the second one ends a text.
        template: What stands around the text `$A`.
    """
    if source is not None:
        return auto_tokenizer(spec, source)
    import transformers
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(byte_level_bpe(special_tokens, vocab_size=VOCAB_SIZE, lowercase=True))
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(token, i) for i, token in enumerate(special_tokens)])
    end = special_tokens[1]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end, model_max_length=spec.max_length)


def _spec(build: Callable[..., Any], *, tokenizer: Callable[..., Any], width: int, num_parameters: int, sizes: dict[str, int]) -> TextSpec:
    return TextSpec(
        build=partial(seeded, build),
        tokenizer=tokenizer,
        source=None,
        architecture=SIZE | TOKENS | sizes,
        width=width,
        max_length=MAX_LENGTH,
        num_parameters=num_parameters,
        license="none needed: random weights",
        paper="",
    )


SPECS = {
    "tiny-clip-text": _spec(
        clip,
        tokenizer=partial(tiny_tokenizer, special_tokens=("<|startoftext|>", "<|endoftext|>"), template="<|startoftext|> $A <|endoftext|>"),
        width=8,
        num_parameters=11_264,
        sizes={"projection_dim": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
    ),
    "tiny-siglip-text": _spec(
        siglip,
        tokenizer=partial(tiny_tokenizer, special_tokens=("<unk>", "</s>"), template="$A </s>"),
        width=16,
        num_parameters=11_408,
        sizes={"projection_size": 16},
    ),
}
