"""A model that answers as a folder for transformers: written, loaded there, compared, and removed again if it is not the same model.

Either a stock `LlavaForConditionalGeneration`, which vLLM reads too, or a folder with code of its own (`vlm.export.remote`) for every other composition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm.backbones.loading import check_complete, from_pretrained, quiet
from vlm.backbones.torchvision_shim import prepare_torchvision
from vlm.backbones.writing import new_folder
from vlm.errors import CheckpointError, ConfigError
from vlm.export.answers_parity import NUM_TOKENS, AnswerParity, Foreign, compare
from vlm.export.chat_jinja import as_jinja
from vlm.export.folder import exported_tokenizer, name_tokenizer_class, write_generation_config, write_json, write_weights
from vlm.export.llava import REMEDY, Llava, as_llava
from vlm.models.merge import fold_adapters
from vlm.models.vision_language import VisionLanguageModel
from vlm.types import ImagePolicy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Format = Callable[[VisionLanguageModel, Path, torch.dtype], tuple[str, ...]]  # writes a folder; returns what the user should know
Loader = Callable[[VisionLanguageModel, Path], Foreign]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        parity: How far the loaded copy, in fp32, is from the model.
        rounding: What storing the weights in another type makes of it; None for fp32.
        notes: What the user should know of the folder.
    """

    parity: AnswerParity
    rounding: AnswerParity | None
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """All of it in words."""
        lines = self.parity.lines()
        if (stored := self.rounding) is not None:
            lines.append(f"with the stored type: logits differ by up to {stored.logits:.2g}, {stored.tokens} of {NUM_TOKENS} greedy tokens are equal")
        return [*lines, *self.notes]


def export_hf(
    model: VisionLanguageModel,
    out: Path,
    *,
    dtype: str = "fp32",
    allow_lossy: bool = False,
    with_code: bool = False,
    card: Callable[[Path, Sequence[str]], None] | None = None,
) -> Exported:
    """Write a model for transformers, and check it there. Adapters are folded into the model's weights.

    Args:
        model: The model, in fp32 on the CPU.
        out: The folder to write; must not exist.
        dtype: Type of the stored weights: a key of DTYPES.
        allow_lossy: Keep an export that differs from the model, and say by how much.
        with_code: Write code beside the weights that computes what the model does, for any composition.
        card: Writes the model card into the folder, from what the comparison found; None for no card.

    Raises:
        ConfigError: If LLaVA cannot express the model, with the reasons.
        CheckpointError: If `out` exists or cannot be written, or the copy is not equal to the model; then nothing is left of it.
    """
    fold_adapters(model)
    write, load = _formats(with_code)
    notes: Sequence[str] = ()
    if not with_code:
        losses = as_llava(model).losses  # before anything is written
        if losses and not allow_lossy:
            raise ConfigError(f"LlavaForConditionalGeneration is not exactly this model: {'; '.join(losses)}. {_choices()}")
        notes = losses
    rounding = None
    with new_folder(out, num_bytes=sum(weight.nbytes for weight in model.parameters())) as folder:  # in fp32, to be compared
        notes = (*notes, *write(model, folder, torch.float32))
        parity = compare(model, load(model, folder))
        if not parity.is_equal and not allow_lossy:
            raise CheckpointError(f"The export is not equal to the model, so {out} was removed: {'; '.join(parity.lines())}. {_choices()}")
        if dtype != "fp32":
            write(model, folder, DTYPES[dtype])
            rounding = compare(model, load(model, folder))
        done = Exported(parity, rounding, tuple(notes))
        if card is not None:
            card(folder, done.lines())
    return done


def _choices() -> str:
    return f"{REMEDY[0].upper()}{REMEDY[1:]}; `--allow-lossy` keeps the difference and says how large it is."


def _formats(with_code: bool) -> tuple[Format, Loader]:
    if with_code:
        from vlm.export.remote import load_remote, write_remote

        return write_remote, load_remote
    return write_llava, load_llava


def write_llava(model: VisionLanguageModel, folder: Path, dtype: torch.dtype) -> tuple[str, ...]:
    """Write the stock form: config, weights, tokenizer, chat template, processor, generation config."""
    llava = as_llava(model)
    write_json(folder / "config.json", dict(llava.config) | {"dtype": str(dtype).removeprefix("torch.")})
    write_weights(folder, {name: tensor.to(dtype) for name, tensor in llava.weights.items()})
    write_generation_config(folder, model.language, suppress=llava.new_rows)
    processor = _processor(model, llava)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # preprocessor_config.json, which transformers 4 and vLLM read
    name_tokenizer_class(folder)
    return llava.notes


def _processor(model: VisionLanguageModel, llava: Llava) -> Any:
    import transformers

    template = as_jinja(model.template)
    return transformers.LlavaProcessor(
        image_processor=image_processor(model.image_policy, model.vision.normalize),
        tokenizer=exported_tokenizer(model.language, template),
        patch_size=llava.patch_size,
        vision_feature_select_strategy="default" if llava.drops_first else "full",
        num_additional_image_tokens=llava.extra_tokens,
        chat_template=template,
    )


def image_processor(policy: ImagePolicy, normalize: Any) -> Any:
    """transformers' image processor that does what a policy says: CLIP's, or LLaVA's where pictures are padded to squares.

    Prismatic's letterbox is padded to a square too; where its borders differ by a pixel, the comparison of pixels says so.

    Args:
        policy: How a picture becomes pixels.
        normalize: The means and deviations.
    """
    import transformers

    square = {"height": policy.size, "width": policy.size}
    pads = policy.mode in ("pad", "letterbox")
    make: Any = transformers.LlavaImageProcessorPil if pads else transformers.CLIPImageProcessorPil
    return make(
        size={"shortest_edge": policy.short_side or policy.size} if policy.mode == "crop" else square,
        do_center_crop=policy.mode == "crop",
        crop_size=square,  # read by vLLM and others that count tokens, whether a picture is cut or not
        resample=int(Image.Resampling[policy.resample.upper()]),
        image_mean=list(normalize.constants["mean"]),
        image_std=list(normalize.constants["std"]),
        **({"do_pad": True} if pads else {}),
    )


def load_llava(model: VisionLanguageModel, folder: Path) -> Foreign:
    """The folder as a user of transformers loads it, in fp32.

    Raises:
        CheckpointError: If a tensor is missing or left over.
    """
    import transformers

    prepare_torchvision()
    llava, info = from_pretrained(transformers.LlavaForConditionalGeneration, folder, dtype=torch.float32)
    check_complete(info, folder)
    if info["unexpected_keys"]:
        raise CheckpointError(
            f"transformers does not know {len(info['unexpected_keys'])} tensors of {folder}, among them {sorted(info['unexpected_keys'])[0]}."
        )
    with quiet(True):
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    backends = [name for name in ("torchvision", "pil") if name == "pil" or find_spec(name)]
    processors = {name: _backend(folder, name) for name in backends}
    return Foreign(llava.eval(), processor, model.vision.normalize, processors)


def _backend(folder: Path, backend: str) -> Callable[[Image.Image], Tensor]:
    """The folder's image processor on one of transformers' backends."""
    import transformers

    process: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend, local_files_only=True)
    return lambda image: process(image, return_tensors="pt").pixel_values
