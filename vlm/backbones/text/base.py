"""What a text encoder is before any download (`TextSpec`), and the wrapper that gives a tower its tokenizer. Knows no single family.

A tower maps token ids to vectors. Towers that were trained on texts padded to one length are wrapped here, in `PaddedTextEncoder`; transformers that are
pooled are wrapped in `pooled.py`. The text tower that was trained with the vision backbone `<name>` is registered as `<name>-text`, so that a dual
encoder finds its other half by name, and no name stands for two parts.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm.backbones.loading import Load
from vlm.backbones.text.reading import Reading
from vlm.errors import WEIGHTS_REMEDY, CheckpointError, ConfigError, DataFormatError, MissingPackageError


def padded_text(spec: "TextSpec", load: Load) -> "PaddedTextEncoder":
    """The encoder of a spec whose tower takes texts padded to one length, with a tokenizer of transformers.

    Raises:
        CheckpointError: If tower and tokenizer do not belong together.
    """
    tokenizer, tower = spec.tokenizer(spec, load.source), spec.build(spec, load)
    check_tokenizer(tokenizer, tower)
    options = {"padding": "max_length", "padding_side": "right", "truncation": True, "max_length": spec.max_length}

    def ids_of(texts: list[str]) -> Int[Tensor, "B T"]:
        return tokenizer(texts, return_tensors="pt", **options).input_ids

    return PaddedTextEncoder(tower, spec, tokenizer=tokenizer, ids_of=ids_of, known_as=tokenizer_hash(tokenizer), source=load.source)


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
        num_parameters: Parameters of the tower, with its projection into the joint space; None if not known before the download.
        license: Licence of the weights.
        paper: Where the model is described.
        aliases: Other names.
        packages: Optional pip packages that the tokenizer needs.
        package: Pip package that ships the weights, or empty.
        adapters: LoRA adapters that are merged into the weights in this order: name of the training stage to hub id or folder.
        reading: How a transformer without a vector of its own reads texts; None for towers that pool by themselves.
        assemble: Joins tower and tokenizer into an encoder.
    """

    build: Callable[["TextSpec", Load], nn.Module]
    tokenizer: Callable[["TextSpec", str | Path | None], Any]
    source: str | None
    width: int
    max_length: int
    num_parameters: int | None
    license: str
    paper: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    package: str = ""
    adapters: Mapping[str, str] = field(default_factory=dict)
    reading: Reading | None = None
    assemble: Callable[["TextSpec", Load], Any] = padded_text


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


class PaddedTextEncoder(nn.Module):
    """A tower with its tokenizer: texts to vectors.

    Every text is padded to the same length, so its vector does not depend on the texts beside it.
    """

    def __init__(
        self,
        tower: Any,
        spec: TextSpec,
        *,
        tokenizer: Any,
        ids_of: Callable[[list[str]], Int[Tensor, "B T"]],
        known_as: str,
        source: str | Path | None = None,
    ):
        """Join a tower and its tokenizer.

        Args:
            tower: From ids to vectors, with `blocks`.
            spec: Its spec.
            tokenizer: The tokenizer.
            ids_of: How it is called: texts to ids of `max_length` a text, the end token included.
            known_as: What tells the tokenizer from others, for `describe`.
            source: Where the weights came from, for `describe`.
        """
        super().__init__()
        self.tower, self.tokenizer = tower, tokenizer
        self.width, self.max_length, self.architecture = spec.width, spec.max_length, spec.architecture
        self._ids_of, self._known_as, self._source = ids_of, known_as, source

    def encode(self, texts: Sequence[str], *, instruction: str = "") -> Float[Tensor, "B E"]:
        """One vector a text, not normalized.

        Args:
            texts: The texts; what is beyond `max_length` tokens is cut.
            instruction: Must be empty; part of the `TextEncoder` protocol.

        Raises:
            ConfigError: If an instruction is given: these towers were trained on bare captions.
            DataFormatError: If `texts` is empty or a single string.
        """
        refuse_instruction(instruction)
        return self(self.tokenize(texts).to(next(self.parameters()).device))

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "B T"]:
        """Token ids of `max_length` a text, padded on the right.

        Raises:
            DataFormatError: If `texts` is empty, or a single string, which would be read as one text a letter.
        """
        check_texts(texts)
        return self._ids_of(list(texts))

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Vectors of texts that are tokens already."""
        return self.tower(ids)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return self.tower.blocks()

    def describe(self, *, instruction: str = "") -> dict[str, object]:
        """All that changes the vectors but the values of the weights, as a cache's key needs it; see `TextEncoder`."""
        refuse_instruction(instruction)
        return description(self, source=self._source, tokenizer=self._known_as)


def build_text(spec: TextSpec, load: Load) -> Any:
    """A text encoder with its tokenizer, in evaluation mode: a module that is a `TextEncoder`.

    Args:
        spec: What to build.
        load: Where its weights and tokenizer come from; `Load(source=spec.source)` for the published ones, None for random weights under the
            published tokenizer.

    Raises:
        CheckpointError: If weights or tokenizer cannot be found, are of another model, or do not belong together.
        MissingPackageError: If a package is not installed that the encoder needs.
    """
    return spec.assemble(spec, load).eval()


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
        raise CheckpointError(
            f"The tokenizer of {str(source)!r} could not be loaded ({' '.join(str(error).split())[:300]}). {WEIGHTS_REMEDY}"
        ) from error
    # without its files, transformers makes a CLIP tokenizer to which every word is unknown
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise CheckpointError(f"The tokenizer of {str(source)!r} could not be loaded (no vocabulary is there). {WEIGHTS_REMEDY}")
    return tokenizer


def read_json(source: str | Path, name: str) -> Any:
    """What a JSON file beside weights says; None if there is none, or the hub has none.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    from transformers.utils.hub import cached_file

    local = Path(source).is_dir()
    try:
        path = cached_file(str(source), name, local_files_only=local, _raise_exceptions_for_missing_entries=False)
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} of {str(source)!r} could not be read ({' '.join(str(error).split())[:300]}). {WEIGHTS_REMEDY}") from error


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no list of texts.

    Raises:
        DataFormatError: If it is empty, or a single string, which would be read as one text a letter.
    """
    if isinstance(texts, str) or not texts:
        raise DataFormatError(f"A text encoder takes a list of at least one text, got {texts[:40]!r}.")


def refuse_instruction(instruction: str) -> None:
    """Refuse an instruction, for towers that were trained on bare captions.

    Raises:
        ConfigError: If there is one.
    """
    if instruction:
        raise ConfigError(f"This text encoder takes no instruction, got {instruction!r}. Write the words into the texts, or leave it empty.")


def description(encoder: Any, *, source: str | Path | None, tokenizer: str, instruction: str = "") -> dict[str, object]:
    """What every encoder's `describe` says: where it came from, how long its texts are, the type of its weights, and what else is given here."""
    facts = {"width": encoder.width, "max_length": encoder.max_length, "dtype": str(next(encoder.parameters()).dtype).removeprefix("torch.")}
    return {"source": str(source), "tokenizer": tokenizer, "instruction": instruction} | facts


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash by which a tokenizer of transformers is known again: vocabulary, merges, normalization, special tokens."""
    parts = {"vocabulary": sorted(tokenizer.get_vocab().items()), "special": sorted(map(str, tokenizer.all_special_tokens))}
    if getattr(tokenizer, "is_fast", False):
        whole = json.loads(tokenizer.backend_tokenizer.to_str())
        parts |= {key: value for key, value in whole.items() if key not in ("truncation", "padding")}  # which the last call set
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def check_tokenizer(tokenizer: Any, tower: Any) -> None:
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
