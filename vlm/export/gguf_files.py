"""A model that answers as two GGUF files for llama.cpp: the language model, and `mmproj` with vision tower and projector (its LLaVA path).

Names and keys follow llama.cpp's convert_hf_to_gguf.py, tools/mtmd/clip.cpp and tools/mtmd/models/llava.cpp. Every tensor is read back and compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.backbones.loading import require
from vlm.backbones.vision.base import TransformersVision
from vlm.backbones.writing import new_folder, without_remarks
from vlm.errors import CheckpointError, ConfigError
from vlm.export.chat_jinja import as_jinja, jinja_losses
from vlm.export.gguf_tokenizer import vocabulary
from vlm.export.two_layers import TwoLayers, as_two_layers
from vlm.models.merge import fold_adapters
from vlm.models.vision_language import VisionLanguageModel

DTYPES = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}
FILE_TYPES = {"f32": 0, "f16": 1}  # LLAMA_FTYPE_ALL_F32, LLAMA_FTYPE_MOSTLY_F16
TANH_GELU = ("gelu_pytorch_tanh", "gelu")  # ggml's gelu is the tanh approximation


@dataclass(frozen=True)
class Family:
    """What llama.cpp calls an architecture, and how it differs from transformers.

    Attributes:
        arch: Name in gguf's MODEL_ARCH.
        permutes: True if rows of queries and keys are interleaved for llama.cpp's rotation of neighbors.
        layer_norm: True for a layer norm with mean, where others have RMS.
    """

    arch: str
    permutes: bool = False
    layer_norm: bool = False


FAMILIES = {
    "llama": Family("LLAMA", permutes=True),
    "mistral": Family("LLAMA", permutes=True),
    "qwen2": Family("QWEN2"),
    "qwen3": Family("QWEN3"),
    "phi3": Family("PHI3"),
    "phi": Family("PHI2", layer_norm=True),
}


@dataclass(frozen=True)
class GGUFExport:
    """What was written.

    Attributes:
        files: Language model and mmproj.
        tensors: Tensors of each, all of which were read back and are the model's in the stored type.
        rounding: Largest difference that the stored type makes in a weight.
        notes: What the user should know.
    """

    files: tuple[Path, Path]
    tensors: tuple[int, int]
    rounding: float
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """All of it in words."""
        counts = f"{self.tensors[0]} tensors of the language model, {self.tensors[1]} of mmproj"
        return [f"read back and equal to the model's in the stored type: {counts}; a weight is rounded by up to {self.rounding:.2g}", *self.notes]


def export_gguf(model: VisionLanguageModel, out: Path, *, name: str, dtype: str = "f16") -> GGUFExport:
    """Write the two files of a model. Adapters are folded into the model's weights.

    Args:
        model: The model, in fp32 on the CPU.
        out: The folder to write; must not exist.
        name: What the files are called.
        dtype: f16 or f32: the type of matrices; vectors and position embeddings are always f32.

    Raises:
        ConfigError: If llama.cpp's LLaVA cannot express the model, with the reason.
        CheckpointError: If `out` exists or cannot be written, or a tensor that is read back is another one; then nothing is left of it.
        MissingPackageError: If gguf is not installed.
    """
    require("gguf", "vlm export gguf", extra="gguf")
    fold_adapters(model)
    layers = _projector(model)
    language, vision = language_tensors(model, dtype), vision_tensors(model, layers, dtype)
    with new_folder(out, num_bytes=sum(tensor.num_bytes for part in (language, vision) for tensor in part.values())) as folder:
        files = folder / f"{name}-{dtype.upper()}.gguf", folder / f"mmproj-{name}-{dtype.upper()}.gguf"
        with without_remarks():
            _write_language(model, language, files[0], name=name, dtype=dtype)
            _write_vision(model, vision, files[1], name=name, dtype=dtype)
        rounding = max(read_back(file, tensors) for file, tensors in zip(files, (language, vision), strict=True))
    return GGUFExport((out / files[0].name, out / files[1].name), (len(language), len(vision)), rounding, tuple(_notes(model, layers)))


@dataclass(frozen=True)
class Stored:
    """A tensor as it will lie in the file, and the weight that it stands for."""

    exact: np.ndarray
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.exact.size * self.dtype.itemsize

    @property
    def values(self) -> np.ndarray:
        """In the stored type."""
        return self.exact.astype(self.dtype)


def _stored(tensor: Tensor, dtype: str, *, always_f32: bool = False) -> Stored:
    exact = tensor.detach().float().contiguous().numpy()
    stored = np.dtype(np.float32) if exact.ndim == 1 or always_f32 else DTYPES[dtype]
    if exact.size and np.abs(exact).max() > np.finfo(stored).max:
        raise ConfigError(f"A weight of {np.abs(exact).max():.3g} is too large for {dtype}. Export with --dtype f32.")
    return Stored(exact, stored)


def _projector(model: VisionLanguageModel) -> TwoLayers:
    """The connector as llama.cpp's projector, which has a GELU between its layers.

    Raises:
        ConfigError: If a part is not as llama.cpp's LLaVA has it.
    """
    kind = model.language.model.config.model_type
    reasons = [] if kind in FAMILIES else [f"its language model is of type {kind!r}, and this command knows {', '.join(FAMILIES)}"]
    vision: Any = model.vision
    if not isinstance(vision, TransformersVision) or vision.model.config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        reasons.append("its vision backbone is not one CLIP or SigLIP tower")
    elif vision.num_prefix_tokens != int(vision.model.config.model_type == "clip_vision_model"):
        reasons.append("its patch features are not those behind the class token, all of them and no other")
    elif vision.num_layers_used == 0:
        reasons.append("its patch features are the embeddings, before the first layer")
    layers = None
    try:
        layers = as_two_layers(model.connector, model.vision.width, through="gelu")
        if layers.activation not in TANH_GELU:
            reasons.append(f"its connector has the activation {layers.activation}, and llama.cpp's projector has GELU")
    except ConfigError as error:
        reasons.append(str(error))
    if reasons or layers is None:
        raise ConfigError(f"llama.cpp's LLaVA cannot express this model: {'; '.join(reasons)}.")
    return layers


def _notes(model: VisionLanguageModel, layers: TwoLayers) -> list[str]:
    notes = []
    if layers.activation == "gelu" or model.vision.model.config.hidden_act == "gelu":
        notes.append("llama.cpp computes GELU by its tanh approximation, so image embeddings differ a little from the model's exact GELU")
    if model.image_policy.mode not in ("pad", "letterbox"):
        notes.append(
            f"llama.cpp pads pictures to squares; this model was trained with --model.resize {model.image_policy.mode}, so give it square pictures"
        )
    notes += [f"in llama.cpp, {loss}" for loss in jinja_losses(model.template)]
    if (window := _window(model)) is not None:
        notes.append(f"the context is {window}, the sliding window of attention, within which llama.cpp computes the same")
    return notes


def _window(model: VisionLanguageModel) -> int | None:
    """The sliding window, where it is shorter than the context: llama.cpp has none for these architectures."""
    window = getattr(model.language.model.config, "sliding_window", None)
    return window if window is not None and window < model.language.max_length else None


def language_tensors(model: VisionLanguageModel, dtype: str) -> dict[str, Stored]:
    """The language model's tensors under llama.cpp's names.

    Raises:
        ConfigError: If llama.cpp has no name for one, or no such rotation of positions.
    """
    import gguf

    config, causal = model.language.model.config, model.language.model
    family = FAMILIES[config.model_type]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.arch], config.num_hidden_layers)
    state = dict(causal.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    tensors = {}
    for name, tensor in state.items():
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if ours is None:
            raise ConfigError(f"llama.cpp's {family.arch} has no tensor for {name!r}, so this model is not of that architecture.")
        if family.permutes and name.rsplit(".", 2)[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = interleaved(tensor, heads)
        tensors[ours] = _stored(tensor, dtype)
    return tensors | _rope_factors(model, family)


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a head from halves, which transformers rotates together, to neighbors, as Meta's code and llama.cpp do."""
    return tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _rope_factors(model: VisionLanguageModel, family: Family) -> dict[str, Stored]:
    """What Llama 3.1's and linear scaling divide each frequency by.

    Raises:
        ConfigError: If positions are scaled in a way that is not written here.
    """
    rope = model.language.model.config.rope_parameters
    if rope["rope_type"] == "default":
        return {}
    if rope["rope_type"] not in ("llama3", "linear") or family.arch != "LLAMA":
        raise ConfigError(
            f"The language model scales its positions by {rope['rope_type']!r}, which this command does not write. Use `vlm export hf`."
        )
    actual = model.language.decoder.rotary_emb.inv_freq.double()
    plain = rope["rope_theta"] ** -(torch.arange(len(actual), dtype=torch.float64) / len(actual))
    return {"rope_freqs.weight": _stored(plain / actual, "f32")}


def _write_language(model: VisionLanguageModel, tensors: Mapping[str, Stored], path: Path, *, name: str, dtype: str) -> None:
    import gguf

    config, language = model.language.model.config, model.language
    family = FAMILIES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[family.arch]])
    heads, head_width = config.num_attention_heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_vocab_size(len(tensors["token_embd.weight"].exact))
    writer.add_context_length(_window(model) or language.max_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(int(head_width * config.rope_parameters.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if family.layer_norm:
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if family.arch == "PHI3":
        writer.add_sliding_window(config.sliding_window or language.max_length)
        writer.add_rope_scaling_orig_ctx_len(language.max_length)
    _add_tokenizer(writer, model, len(tensors["token_embd.weight"].exact))
    _finish(writer, tensors)


def _add_tokenizer(writer: Any, model: VisionLanguageModel, rows: int) -> None:
    """Words, ends and chat template. The template writes BOS where the model was trained with it, so nothing is added to a text."""
    language = model.language
    tokenizer, words = language.tokenizer, vocabulary(language.tokenizer, rows)
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges:
        writer.add_token_merges(words.merges)
    if words.scores:
        writer.add_token_scores(words.scores)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "unk": tokenizer.unk_token_id}
    ids["eot"] = next((tokenizer.convert_tokens_to_ids(token) for token in language.template.stop), None)
    for kind, token in ids.items():
        if token is not None and token < rows:
            getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(words.space_prefix)
    writer.add_chat_template(as_jinja(language.template))


def vision_tensors(model: VisionLanguageModel, layers: TwoLayers, dtype: str) -> dict[str, Stored]:
    """Tower and projector under llama.cpp's names: the layers that are used, without the last norm, which llama.cpp would apply.

    Raises:
        ConfigError: If llama.cpp has no name for a tensor.
    """
    import gguf

    vision: Any = model.vision
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, len(vision.blocks()))
    unused = ("post_layernorm.", "head.", *(f"encoder.layers.{i}." for i in range(vision.num_layers_used, len(vision.blocks()))))
    tensors = {}
    for name, tensor in vision.model.state_dict().items():
        if name.startswith(unused):
            continue
        ours = names.get_name(f"vision_tower.vision_model.{name}", try_suffixes=(".weight", ".bias"))
        if ours is None:
            raise ConfigError(f"llama.cpp's vision tower has no tensor for {name!r}.")
        tensors[ours] = _stored(tensor, dtype, always_f32="position_embd" in ours)
    places = {"linear_1": "mm.0", "linear_2": "mm.2"}
    projector = {f"{places[layer]}.{kind}": tensor for name, tensor in layers.tensors().items() for layer, kind in (name.split("."),)}
    return tensors | {name: _stored(tensor, dtype) for name, tensor in projector.items()}


def _write_vision(model: VisionLanguageModel, tensors: Mapping[str, Stored], path: Path, *, name: str, dtype: str) -> None:
    import gguf

    vision: Any = model.vision
    config = vision.model.config
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name(name)
    writer.add_description("image encoder and projector for LLaVA")
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool(gguf.Keys.Clip.HAS_LLAVA_PROJECTOR, True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_projection_dim(model.language.width)
    writer.add_vision_block_count(vision.num_layers_used)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_image_mean(list(vision.normalize.constants["mean"]))
    writer.add_vision_image_std(list(vision.normalize.constants["std"]))
    writer.add_array("clip.vision.feature_layer", [vision.num_layers_used])
    writer.add_vision_use_gelu(config.hidden_act in TANH_GELU)  # otherwise llama.cpp's default, quick GELU
    _finish(writer, tensors)


def _finish(writer: Any, tensors: Mapping[str, Stored]) -> None:
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_back(path: Path, tensors: Mapping[str, Stored]) -> float:
    """Compare a file with what was to be written; returns the largest difference that the stored type makes.

    Raises:
        CheckpointError: If a tensor is missing, too many, or another one.
    """
    import gguf

    read = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    if read.keys() != tensors.keys():
        raise CheckpointError(f"{path} holds other tensors than were written: {sorted(read.keys() ^ tensors.keys())[0]!r} among them.")
    for name, tensor in tensors.items():
        if not np.array_equal(read[name], tensor.values):
            raise CheckpointError(f"{path}: {name!r} that was read back is not what was written.")
    return max(float(np.abs(read[name].astype(np.float32) - tensor.exact).max()) for name, tensor in tensors.items())
