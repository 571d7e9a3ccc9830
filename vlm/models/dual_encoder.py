"""Two frozen encoders and the heads that bring their vectors into one space: `AlignmentHeads` is what is trained, `DualEncoder` what is used.

Training sees cached vectors alone, so that no encoder is in memory then. Looks up no names; a checkpoint of heads is written here and opened by
`vlm.models.dual_build`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from vlm.backbones.fingerprint import fingerprint
from vlm.backbones.text.base import check_texts
from vlm.conf.contrastive import DualEncoderConfig
from vlm.data.image import to_pixels
from vlm.data.stream.pairs import PairBatch
from vlm.errors import CheckpointError, DataFormatError
from vlm.models.alignment_head import AlignmentHead
from vlm.models.checkpoint import MODEL, save_weights, trained_state, values_of
from vlm.models.contrastive import CONTRASTS, Distillation, LogitScale, Pairs, distillation, unit, weighted_sum
from vlm.types import LossSum, World

BATCH = 64  # pictures or texts that are encoded at once, unless more is asked for


@dataclass(frozen=True)
class Goal:
    """What heads are trained for.

    Attributes:
        contrast: A key of `vlm.models.contrastive.CONTRASTS`.
        distillation: What the text head learns from a teacher; None for nothing.
        weight: Weight of distillation on captions, beside the contrastive loss's 1.
        texts_weight: Weight of distillation on texts without images.
    """

    contrast: str
    distillation: Distillation | None = None
    weight: float = 1.0
    texts_weight: float = 1.0


class AlignmentHeads(nn.Module):
    """The heads of both sides and the scale of their similarities (APE, arXiv:2210.03927; with distillation, ProCLIP, arXiv:2510.18795)."""

    PARTS = ("image_head", "text_head", "scale")

    def __init__(self, image_head: AlignmentHead, text_head: AlignmentHead, scale: LogitScale, *, goal: Goal, world: World | None = None):
        """Join the heads.

        Args:
            image_head: From image vectors into the joint space.
            text_head: From text vectors into the joint space.
            scale: Factor and bias of the cosines.
            goal: The loss.
            world: The processes that share a batch; None: this one alone.
        """
        super().__init__()
        self.image_head, self.text_head, self.scale = image_head, text_head, scale
        self.goal, self.world = goal, world or World.single()
        self.adapters: dict[str, Any] = {}  # heads have neither, unlike the towers of vision-language models
        self.quantized: dict[str, str] = {}
        self.altered = set(self.PARTS)

    def units(self) -> Sequence[nn.Module]:
        """The modules that are sharded one by one."""
        return [head for head in (self.image_head, self.text_head) if any(True for _ in head.parameters())]

    def forward(self, batch: PairBatch) -> LossSum:
        """The contrastive loss of the pairs, and the weighted losses of distillation where the batch brings a teacher's vectors."""
        num_pairs, free = len(batch.text), batch.texts
        # one call of the head: what is wrapped around it for several ranks expects one a step. fp32: autocast on CPU cannot join fp16, as vectors are stored
        texts = self.text_head(batch.text if free is None else torch.cat([batch.text.float(), free.text.float()]))
        pairs = Pairs.of(self.image_head(batch.image), texts[:num_pairs], batch.image_ids, self.world)
        terms = [(1.0, self._contrast(pairs))]
        options, goal = self.goal.distillation, self.goal
        if options is not None and batch.teacher is not None and goal.weight:
            images = (pairs.all_image, pairs.all_image.detach()) if self._images_are_the_teachers else None
            terms.append((goal.weight, distillation(texts[:num_pairs], batch.teacher, options, self.world, images=images)))
        if options is not None and free is not None and goal.texts_weight:
            terms.append((goal.texts_weight, distillation(texts[num_pairs:], free.teacher, options, self.world)))
        return weighted_sum(*terms)

    @property
    def _images_are_the_teachers(self) -> bool:
        """True if images stay in the space where the teacher's texts belong; through a head of their own, similarities to them would train that head."""
        return next(self.image_head.parameters(), None) is None

    def loss_of(self, image: Float[Tensor, "B J"], text: Float[Tensor, "B J"], image_ids: Int[Tensor, " B"]) -> float:
        """Mean contrastive loss of vectors of the joint space, on this rank alone."""
        loss = self._contrast(Pairs.of(image, text, image_ids, World.single(image.device)))
        return float(loss.sum / loss.count)

    def _contrast(self, pairs: Pairs) -> LossSum:
        return CONTRASTS[self.goal.contrast].loss(pairs, *self.scale())


class DualEncoder(nn.Module):
    """Pictures and texts as unit vectors of one space."""

    def __init__(
        self,
        image: Any,
        text: Any,
        heads: AlignmentHeads | None,
        *,
        scale: tuple[float, float] = (1.0, 0.0),
        config: DualEncoderConfig | None = None,
        trained_on: Sequence[str] = (),
    ):
        """Join encoders and heads.

        Args:
            image: An image encoder (`vlm.backbones.image`).
            text: A text encoder (`vlm.backbones.text`).
            heads: What was trained between them; None for encoders that were trained together.
            scale: Without heads, factor and bias of the published pair.
            config: With heads, the names of the encoders and how the heads are built, which `save` writes; its instruction is told to the text encoder
                before each text.
            trained_on: Datasets that the heads were trained on, which `save` keeps.
        """
        super().__init__()
        self.image, self.text, self.heads = image, text, heads
        self.published_scale, self.config, self.trained_on = scale, config, tuple(trained_on)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.image.parameters()).device

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image], *, batch_size: int = BATCH) -> Float[Tensor, "N J"]:
        """Unit vectors of pictures, fp32.

        Args:
            images: Pictures of any mode.
            batch_size: Pictures that are encoded at once.

        Raises:
            DataFormatError: If `images` is empty or a single picture, or one of them cannot be used.
        """
        if isinstance(images, Image.Image) or not len(images):
            raise DataFormatError(f"encode_image takes a list of at least one picture, got {images!r}.")
        return self._encoded(images, self._image_vectors, batch_size)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = BATCH) -> Float[Tensor, "N J"]:
        """Unit vectors of texts, fp32.

        Args:
            texts: The texts.
            batch_size: Texts that are encoded at once.

        Raises:
            DataFormatError: If `texts` is empty or a single string.
        """
        check_texts(texts)
        return self._encoded(texts, self._text_vectors, batch_size)

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "N M"]:
        """Cosine of every picture with every text, -1 to 1."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def logit_scale(self) -> tuple[float, float]:
        """What a cosine is multiplied with, and what is added then, to give the logit of the softmax or sigmoid that the model was trained with."""
        if self.heads is None:
            return self.published_scale
        scale, bias = self.heads.scale()
        return float(scale.detach()), 0.0 if bias is None else float(bias.detach())

    def save(self, folder: str | Path) -> None:
        """Write the heads as a checkpoint of a few MB that names its encoders with fingerprints; `vlm.load(folder)` opens it.

        Args:
            folder: Folder to write; a checkpoint that is there is replaced.

        Raises:
            CheckpointError: If there are no heads, the names of the encoders are not known, or the folder holds something else or cannot be written.
        """
        if self.heads is None:
            raise CheckpointError(
                "This dual encoder has no heads: it is a published pair, which vlm.load opens by its name, so there is nothing to save. "
                "To write it for other libraries, run `vlm export dual NAME OUT`."
            )
        if self.config is None:
            raise CheckpointError("This dual encoder does not know the names of its encoders: give DualEncoder its DualEncoderConfig as config.")
        folder = Path(folder)
        if folder.exists() and not (folder / MODEL).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{folder} is there and is no checkpoint; a checkpoint would replace it. Name another folder.")
        encoders = {"image": fingerprint(self.image, adapters=True), "text": fingerprint(self.text, adapters=True)}
        values = heads_values(self.heads, self.config, encoders, trained_on=self.trained_on)
        save_weights(trained_state(self.heads), values, folder)

    def _encoded(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor], batch_size: int) -> Tensor:
        return torch.cat([unit(encode(items[i : i + batch_size])).cpu() for i in range(0, len(items), batch_size)])

    def _image_vectors(self, images: Sequence[Image.Image]) -> Float[Tensor, "N J"]:
        vectors = self.image(self.pixels(images).to(self.device))
        return vectors if self.heads is None else self.heads.image_head(vectors)

    def _text_vectors(self, texts: Sequence[str]) -> Float[Tensor, "N J"]:
        vectors = self.text.encode(texts, instruction=self.config.instruction if self.config else "")
        return vectors if self.heads is None else self.heads.text_head(vectors)

    def pixels(self, images: Sequence[Image.Image]) -> UInt8[Tensor, "N 3 H W"]:
        """Pictures as the image encoder takes them."""
        return to_pixels(images, self.image.image_policy)


def heads_values(heads: AlignmentHeads, config: DualEncoderConfig, encoders: Mapping[str, str], *, trained_on: Sequence[str] = ()) -> dict[str, Any]:
    """The contents of `model.json`: heads alone are stored, encoders are named with their fingerprints."""
    return values_of(heads, config, kind="dual-encoder", fingerprints=encoders) | {"trained_on": list(trained_on)}
