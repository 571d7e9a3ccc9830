"""What a text encoder is before any download (`TextSpec`), and the wrapper that gives a tower its tokenizer. Knows no single family.

A tower maps token ids to vectors. The text tower that was trained with the vision backbone `<name>` is registered as `<name>-text`, so that a dual
encoder finds its other half by name, and no name stands for two parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm.backbones.loading import REMEDY, Load
from vlm.errors import CheckpointError, ConfigError, DataFormatError, MissingPackageError


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """One text encoder, known before any download.

    Attributes:
        build: Makes the tower, a module from token ids to vectors; see `Load`.
        tokenizer: Makes its tokenizer from a source; None as the source stands for the default one.
        source: What `Load.source` is by default: a hub id, or None for towers that are random by intent.
        architecture: Config values that size the tower; a loaded one must agree with each.
        width: Width of a text's vector: the joint space of texts and images.
        max_length: Tokens that a text is padded or cut to, its end token included.
        num_parameters: Parameters of the tower, with its projection into the joint space.
        license: Licence of the weights.
        paper: Where the model is described.
        aliases: Other names.
        packages: Optional pip packages that the tokenizer needs.
    """

    build: Callable[["TextSpec", Load], nn.Module]
    tokenizer: Callable[["TextSpec", str | Path | None], Any]
    source: str | None
    width: int
    max_length: int
    num_parameters: int
    license: str
    paper: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


class TransformersText(nn.Module):
    """A text tower of transformers: token ids to one vector a row."""

    def __init__(self, model: Any, *, output: str, layers: str, end_token_id: int | None = None):
        """Wrap a tower.

        Args:
            model: The transformers model.
            output: Attribute of its output that holds the vectors.
            layers: Path of the transformer layers in `model`. A path, not the modules: what wraps a layer later puts its own module there.
            end_token_id: Id whose position is pooled; None for towers that pool a fixed position.
        """
        super().__init__()
        self.model: Any = model
        self.vocab_size: int = model.config.vocab_size
        self.end_token_id = end_token_id
        self._output, self._layers = output, layers

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """The pooled vectors; no mask, as CLIP is causal and SigLIP was trained to see its padding."""
        return getattr(self.model(input_ids=ids), self._output)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return tuple(self.model.get_submodule(self._layers))


class HFTextEncoder(nn.Module):
    """A tower with its tokenizer: texts to vectors.

    Every text is padded to the same length, so its vector does not depend on the texts beside it.
    """

    def __init__(self, tower: Any, *, tokenizer: Any, width: int, max_length: int):
        """Join a tower and its tokenizer.

        Args:
            tower: From ids to vectors, with `blocks`, `vocab_size` and `end_token_id`.
            tokenizer: A tokenizer of transformers.
            width: Width of the vectors.
            max_length: Tokens that a text is padded or cut to, its end token included.

        Raises:
            CheckpointError: If tower and tokenizer do not belong together.
        """
        super().__init__()
        _check_tokenizer(tokenizer, tower)
        self.tower, self.tokenizer = tower, tokenizer
        self.width, self.max_length = width, max_length

    def encode(self, texts: Sequence[str], *, instruction: str = "") -> Float[Tensor, "B E"]:
        """One vector a text, not normalized.

        Args:
            texts: The texts; what is beyond `max_length` tokens is cut, the end token is kept.
            instruction: Must be empty; part of the `TextEncoder` protocol.

        Raises:
            ConfigError: If an instruction is given: these towers were trained on bare captions.
            DataFormatError: If `texts` is empty or a single string.
        """
        if instruction:
            raise ConfigError(f"This text encoder takes no instruction, got {instruction!r}. Write the words into the texts, or leave it empty.")
        return self(self.tokenize(texts).to(next(self.parameters()).device))

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "B T"]:
        """Token ids of `max_length` a text, padded on the right.

        Raises:
            DataFormatError: If `texts` is empty, or a single string, which would be read as one text a letter.
        """
        if isinstance(texts, str) or not texts:
            raise DataFormatError(f"A text encoder takes a list of at least one text, got {texts[:40]!r}.")
        options = {"padding": "max_length", "padding_side": "right", "truncation": True, "max_length": self.max_length}
        return self.tokenizer(list(texts), return_tensors="pt", **options).input_ids

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Vectors of texts that are tokens already."""
        return self.tower(ids)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return self.tower.blocks()


def build_text(spec: TextSpec, load: Load) -> HFTextEncoder:
    """A text encoder with its tokenizer, in evaluation mode.

    Args:
        spec: What to build.
        load: Where its weights and tokenizer come from; `Load(source=spec.source)` for the published ones, None for random weights under the
            published tokenizer.

    Raises:
        CheckpointError: If weights or tokenizer cannot be found, are of another model, or do not belong together.
        MissingPackageError: If the tokenizer needs a package that is not installed.
    """
    tokenizer = spec.tokenizer(spec, load.source)
    return HFTextEncoder(spec.build(spec, load), tokenizer=tokenizer, width=spec.width, max_length=spec.max_length).eval()


def auto_tokenizer(spec: TextSpec, source: str | Path | None) -> Any:
    """The tokenizer that lies beside the weights.

    Raises:
        CheckpointError: If there is none, or it cannot be read; in one line.
        MissingPackageError: If it needs a package that is not installed.
    """
    import transformers

    source = spec.source if source is None else source
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(source), local_files_only=Path(str(source)).is_dir())
    except ImportError as error:
        packages = " ".join(spec.packages)
        raise MissingPackageError(packages, needed_for=f"The tokenizer of {source}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The tokenizer of {str(source)!r} could not be loaded ({' '.join(str(error).split())[:300]}). {REMEDY}") from error
    # without its files, transformers makes a CLIP tokenizer to which every word is unknown
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise CheckpointError(f"The tokenizer of {str(source)!r} could not be loaded (no vocabulary is there). {REMEDY}")
    return tokenizer


def _check_tokenizer(tokenizer: Any, tower: Any) -> None:
    """Refuse a tokenizer of another model: ids without a row would crash, and an end token that the tower does not know pools the first token."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= tower.vocab_size:
        raise CheckpointError(f"The tokenizer has ids up to {highest}, but the text tower has {tower.vocab_size} rows: they are of different models.")
    if tokenizer.pad_token_id is None:
        raise CheckpointError("The tokenizer names no padding token (pad_token), so texts of different lengths cannot be encoded.")
    if tower.end_token_id is not None and tokenizer.eos_token_id != tower.end_token_id:
        raise CheckpointError(
            f"The tokenizer ends texts with id {tokenizer.eos_token_id}, but the text tower pools at id {tower.end_token_id}: they are of different models."
        )
