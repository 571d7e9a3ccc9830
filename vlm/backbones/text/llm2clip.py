"""LLM2CLIP text encoders (Huang et al. 2024, arXiv:2411.04997): a bidirectional Llama, mean-pooled, and an adapter into CLIP's space.

The adapter lies in the repository of the CLIP half, the language model (its own adapters merged by the authors) in another one, so a source names both:
"<CLIP half>+<language model>", hub ids or folders. The remote code of either is not run. The adapter is that of `llm2clip/eva_clip/model.py`
(`TextProj`); the published ones take the 4096 values of the 8B model. What is not verified here against the published files: the bias of the last layer
(it is taken if it is there) and the normalization of the input, which that file does by default.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from vlm.backbones.language import LANGUAGE
from vlm.backbones.loading import Load
from vlm.backbones.text.base import TextSpec, auto_tokenizer
from vlm.backbones.text.llm2vec import LLAMA_3, MAX_LENGTH, llm2vec, llm2vec_spec
from vlm.backbones.text.pooled import PooledTower, pooled_text
from vlm.backbones.text.reading import Reading
from vlm.errors import WEIGHTS_REMEDY, CheckpointError

READING = Reading(template=LLAMA_3, skip_instruction=True, doc_max_length=MAX_LENGTH, padding_side="left")
ADAPTER = "text_adapter.adaptor."
PARTS = ("vision_model.", "visual_projection.", "text_adapter.", "logit_scale")  # of the file of a CLIP half
NUM_BLOCKS, JOINT_WIDTH = 4, 1280


def llm2clip_state(source: str | Path) -> dict[str, Tensor]:
    """All tensors of a CLIP half: `vision_model.*`, `visual_projection.*`, `text_adapter.*` and perhaps `logit_scale`.

    Args:
        source: Folder with a `model.safetensors`, that file, or a hub id.

    Raises:
        CheckpointError: If there is none, it cannot be read, or it holds anything else.
    """
    from safetensors.torch import load_file
    from transformers.utils.hub import cached_file

    path = Path(source)
    try:
        file = path if path.is_file() else cached_file(str(source), "model.safetensors", local_files_only=path.is_dir())
        state = load_file(str(file))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"Weights of {str(source)!r} could not be loaded ({' '.join(str(error).split())[:300]}). {WEIGHTS_REMEDY}") from error
    if foreign := [key for key in state if not key.startswith(PARTS)]:
        raise CheckpointError(f"{source} is no LLM2CLIP checkpoint: it has {len(foreign)} other tensors, among them {foreign[0]}.")
    return state


class ResidualAdapter(nn.Module):
    """Pooled vectors of a language model to CLIP's space."""

    def __init__(self, width: int, out_width: int, *, hidden: int, num_blocks: int, bias: bool, normalize: bool):
        """Make an adapter with random weights.

        Args:
            width: Width of the language model's vectors.
            out_width: Width of the joint space.
            hidden: Width inside a block.
            num_blocks: Number of residual blocks.
            bias: The last layer has one.
            normalize: Vectors get length 1 first.
        """
        super().__init__()
        self.normalize, self.sizes = normalize, (width, out_width)
        last = (nn.LayerNorm(width), nn.Linear(width, out_width, bias=bias))
        self.adaptor = nn.Sequential(*(ResidualBlock(width, hidden) for _ in range(num_blocks)), *last)

    def forward(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        """The vectors in the joint space, not normalized."""
        vectors = F.normalize(vectors, dim=-1) if self.normalize else vectors
        return self.adaptor(vectors.to(next(self.parameters()).dtype))


class ResidualBlock(nn.Module):
    """x + W2 GELU(W1 LN(x))."""

    def __init__(self, width: int, hidden: int):
        """Make a block.

        Args:
            width: Width outside.
            hidden: Width inside.
        """
        super().__init__()
        self.fn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width))
        self.ln = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The block's output."""
        return x + self.fn(self.ln(x))


def read_adapter(state: Mapping[str, Tensor], source: str | Path, *, normalize: bool) -> ResidualAdapter:
    """The adapter of a CLIP half, sized by its tensors.

    Args:
        state: What `llm2clip_state` read.
        source: Where from, for messages.
        normalize: Vectors get length 1 first.

    Raises:
        CheckpointError: If a tensor is missing, left over, or of another shape.
    """
    # without its dropout, which has no weights, the second linear layer of a block is number 2
    own = {re.sub(r"\.fn\.2\.", ".fn.3.", key.removeprefix(ADAPTER)): tensor for key, tensor in state.items() if key.startswith(ADAPTER)}
    last = max((int(key.split(".")[0]) for key in own if key.split(".")[0].isdigit()), default=0)
    try:
        out_width, width = own[f"{last}.weight"].shape
        hidden = own["0.fn.0.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source} has no text adapter ({ADAPTER}*); revisions of the images' half alone have none.") from error
    adapter = ResidualAdapter(width, out_width, hidden=hidden, num_blocks=last - 1, bias=f"{last}.bias" in own, normalize=normalize)
    try:
        adapter.adaptor.load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(f"The text adapter of {source} does not fit: {' '.join(str(error).split())[:300]}") from error
    return adapter


class LLM2ClipTower(nn.Module):
    """A pooled language model and the adapter behind it."""

    def __init__(self, tower: PooledTower, adapter: ResidualAdapter):
        """Join them."""
        super().__init__()
        self.tower, self.adapter = tower, adapter
        self.vocab_size, self.end_token_id, self.adapters = tower.vocab_size, None, tower.adapters

    def forward(
        self, ids: Int[Tensor, "B T"], seen: Int[Tensor, "B T"] | None = None, counted: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B J"]:
        """Vectors in CLIP's space, in fp32."""
        return self.adapter(self.tower(ids, seen, counted)).float()

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return self.tower.blocks()


def llm2clip(spec: TextSpec, load: Load, *, normalize: bool = True) -> LLM2ClipTower:
    """A language model and its adapter into CLIP's space.

    Args:
        spec: The spec.
        load: Where both come from.
        normalize: The adapter takes vectors of length 1.

    Raises:
        CheckpointError: If one of them cannot be found, or they do not belong together.
    """
    width = spec.architecture["hidden_size"]
    if load.source is None:
        adapter = ResidualAdapter(width, spec.width, hidden=2 * width, num_blocks=NUM_BLOCKS, bias=True, normalize=normalize)
        return LLM2ClipTower(llm2vec(spec, load), adapter.to(load.dtype))
    clip, language = halves(load.source)
    adapter = read_adapter(llm2clip_state(clip), clip, normalize=normalize)
    if adapter.sizes != (width, spec.width):
        seen, out = adapter.sizes
        raise CheckpointError(f"The text adapter of {clip} maps {seen} values to {out}, expected {width} (of {language}) to {spec.width}.")
    return LLM2ClipTower(llm2vec(spec, replace(load, source=language)), adapter.to(load.dtype))


def halves(source: str | Path) -> tuple[str, str]:
    """CLIP half and language model that a source names.

    Raises:
        CheckpointError: If it names one alone, or more than two.
    """
    both = str(source).split("+")
    if len(both) != 2:
        raise CheckpointError(f"LLM2CLIP needs two sources, '<CLIP half>+<language model>'; got {str(source)!r}.")
    return both[0], both[1]


def language_tokenizer(spec: TextSpec, source: str | Path | None) -> Any:
    """The tokenizer that lies beside the language model."""
    return auto_tokenizer(spec, halves(spec.source or "" if source is None else source)[1])


def llm2clip_spec(source: str) -> TextSpec:
    """The spec of any pair of a CLIP half and a language model; reads both when called.

    Raises:
        CheckpointError: If one of them cannot be found, or they do not belong together.
    """
    clip, language = halves(source)
    adapter = read_adapter(llm2clip_state(clip), clip, normalize=True)
    return replace(
        llm2vec_spec(language),
        build=llm2clip,
        tokenizer=language_tokenizer,
        source=source,
        reading=READING,
        width=adapter.sizes[1],
        paper="arXiv:2411.04997",
    )


def _text_model(name: str, source: str, *, num_parameters: int) -> TextSpec:
    """A language model as LLM2CLIP trained it on captions, without an adapter."""
    language = LANGUAGE[name]
    return TextSpec(
        build=llm2vec,
        tokenizer=auto_tokenizer,
        assemble=pooled_text,
        source=source,
        architecture=language.architecture,
        reading=READING,
        width=language.width,
        max_length=MAX_LENGTH,
        num_parameters=num_parameters,
        license=f"Apache-2.0; the base model: {language.license}",
        paper="arXiv:2411.04997",
    )


LLAMA_8B = _text_model("llama-3-8b-instruct", "microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned", num_parameters=7_504_924_672)
LLAMA_1B = _text_model("llama-3.2-1b-instruct", "microsoft/LLM2CLIP-Llama-3.2-1B-Instruct-CC-Finetuned", num_parameters=1_235_814_400)


def _spec(clip: str) -> TextSpec:
    return replace(
        LLAMA_8B,
        build=partial(llm2clip, normalize=True),
        tokenizer=language_tokenizer,
        source=f"microsoft/LLM2CLIP-Openai-{clip}+{LLAMA_8B.source}",
        width=JOINT_WIDTH,
        num_parameters=7_778_694_400,
    )


SPECS = {
    "llm2clip-b16-224-text": _spec("B-16"),
    "llm2clip-l14-224-text": _spec("L-14-224"),
    "llm2clip-l14-336-text": _spec("L-14-336"),
    "llm2clip-llama3-8b-text": LLAMA_8B,
    "llm2clip-llama3.2-1b-text": LLAMA_1B,
}

OPEN_SPECS = {"llm2clip:<CLIP half>+<language model>": llm2clip_spec}
