"""Contrastive losses, distillation and the learned temperature: functions of vectors, as sum and count. They know no model and no data.

The batch is part of these losses. Each rank computes the rows of its own pairs against those of all ranks, which it gathers with gradients: the sums of
the ranks add up to that of one process, and so do the gradients, divided by the count over all ranks as the training loop does it. Similarities are in
fp32 whatever autocast says: bf16 loses the margin between near-equal captions. Captions of one image are never each other's negatives.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlm.distributed.collectives import gather_with_gradient
from vlm.errors import ConfigError, UnknownNameError
from vlm.models.losses import in_chunks
from vlm.types import LossSum, World

LARGEST_SCALE = 100.0  # CLIP (Radford et al. 2021, arXiv:2103.00020), section 2.5: more makes training unstable
CLIP_SCALE = 1 / 0.07  # the same section
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # SigLIP (Zhai et al. 2023, arXiv:2303.15343), section 3.2: a batch has far more negatives than positives
TEACHER_SCALE = 100.0  # what CLIP's scale becomes in training
NEVER = -1e9  # a logit whose probability is 0; not minus infinity, whose difference to itself is no number


class LogitScale(nn.Module):
    """What turns cosines into logits: a learned factor, at most LARGEST_SCALE, and a learned bias where the loss has one.

    Both have one dimension: weight decay leaves them out, and FSDP2 cannot share what has none.
    """

    def __init__(self, scale: float = CLIP_SCALE, bias: float | None = None):
        """Start from a factor (not its logarithm) and a bias."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    def forward(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
        """The factor and the bias."""
        with torch.no_grad():  # outside of the graph: a clamped value beyond the limit would have no gradient that leads back
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        scale = self.log_scale.float().exp()
        return scale.squeeze(0), None if self.bias is None else self.bias.float().squeeze(0)


@dataclass(frozen=True)
class Pairs:
    """The pairs of one rank, of unit length, and beside them those of all ranks.

    Attributes:
        image: Image vectors.
        text: Text vectors; row i belongs to row i of the images.
        all_image: Image vectors of all ranks, in the order of the ranks.
        all_text: Text vectors of all ranks.
        all_ids: Which image each pair of all ranks is of.
        first: Where this rank's rows begin in those of all.
    """

    image: Float[Tensor, "B J"]
    text: Float[Tensor, "B J"]
    all_image: Float[Tensor, "G J"]
    all_text: Float[Tensor, "G J"]
    all_ids: Int[Tensor, " G"]
    first: int

    @classmethod
    def of(cls, image: Float[Tensor, "B J"], text: Float[Tensor, "B J"], image_ids: Int[Tensor, " B"], world: World) -> "Pairs":
        """Bring vectors to unit length in fp32, and gather those of all ranks; all must come here with equally many."""
        image, text = unit(image), unit(text)
        all_image, all_text = (gather_with_gradient(side, world) for side in (image, text))  # not as one tensor: frozen vectors need no gradient
        return cls(image, text, all_image, all_text, gather_with_gradient(image_ids, world), first=world.rank * len(image))


def unit(vectors: Float[Tensor, "B J"]) -> Float[Tensor, "B J"]:
    """Vectors of length 1, in fp32."""
    return F.normalize(vectors.float(), dim=-1)


Contrast = Callable[[Pairs, Tensor, Tensor | None], LossSum]
Scored = Callable[[Float[Tensor, "m G"], Int[Tensor, " m"], Bool[Tensor, "m G"]], Float[Tensor, ""]]  # logits, own column, columns of the same image


def clip_softmax(pairs: Pairs, scale: Float[Tensor, ""], bias: Float[Tensor, ""] | None = None) -> LossSum:
    """Cross-entropy of each image's own text among all texts and of each text's own image among all images, halved (CLIP, figure 3)."""
    return _both_ways(_own_among_others, pairs, scale, bias)


def multi_positive(pairs: Pairs, scale: Float[Tensor, ""], bias: Float[Tensor, ""] | None = None) -> LossSum:
    """The same with a target that is uniform over all captions of the image (Khosla et al. 2020, arXiv:2004.11362, equation 2)."""
    return _both_ways(_all_of_the_image, pairs, scale, bias)


def siglip_sigmoid(pairs: Pairs, scale: Float[Tensor, ""], bias: Float[Tensor, ""] | None = None) -> LossSum:
    """Each combination of image and text judged by itself: own or not (SigLIP, algorithm 1); other captions of the image are not judged."""
    return _rows(_own_or_not, pairs.image, pairs.all_text, pairs, scale, bias)


def multi_positive_sigmoid(pairs: Pairs, scale: Float[Tensor, ""], bias: Float[Tensor, ""] | None = None) -> LossSum:
    """The same with all captions of the image as positives, as SAIL adds a second caption (Zhang et al. 2024, arXiv:2412.04616)."""
    return _rows(_of_the_image_or_not, pairs.image, pairs.all_text, pairs, scale, bias)


@dataclass(frozen=True)
class ContrastSpec:
    """A contrastive loss and where its scale starts.

    Attributes:
        loss: The loss of some pairs.
        scale: First factor of the cosines.
        bias: First bias; None: the loss has none.
    """

    loss: Contrast
    scale: float = CLIP_SCALE
    bias: float | None = None


CONTRASTS = {
    "clip": ContrastSpec(clip_softmax),
    "multi-positive": ContrastSpec(multi_positive),
    "siglip": ContrastSpec(siglip_sigmoid, SIGLIP_SCALE, SIGLIP_BIAS),
    "multi-positive-sigmoid": ContrastSpec(multi_positive_sigmoid, SIGLIP_SCALE, SIGLIP_BIAS),
}


def _both_ways(score: Scored, pairs: Pairs, scale: Tensor, bias: Tensor | None) -> LossSum:
    texts = _rows(score, pairs.image, pairs.all_text, pairs, scale, bias)
    images = _rows(score, pairs.text, pairs.all_image, pairs, scale, bias)
    return LossSum((texts.sum + images.sum) / 2, texts.count)


def _rows(score: Scored, rows: Float[Tensor, "B J"], columns: Float[Tensor, "G J"], pairs: Pairs, scale: Tensor, bias: Tensor | None) -> LossSum:
    def loss(some: Tensor, own: Tensor, _: Tensor | None) -> LossSum:
        logits = scale * similarities(some, columns)
        logits = logits if bias is None else logits + bias
        return LossSum(score(logits, own, pairs.all_ids[own][:, None] == pairs.all_ids), own.new_tensor(len(own)))

    own = torch.arange(pairs.first, pairs.first + len(rows), device=rows.device)
    return in_chunks(loss, rows, own, None, vocabulary=len(columns))


def similarities(rows: Float[Tensor, "m J"], columns: Float[Tensor, "G J"]) -> Float[Tensor, "m G"]:
    """Cosines of unit vectors, in fp32 under autocast too."""
    with nullcontext() if rows.is_meta else torch.autocast(rows.device.type, enabled=False):  # the meta device, where FLOPs are counted, has none
        return rows.float() @ columns.float().T


def _own_among_others(logits: Float[Tensor, "m G"], own: Int[Tensor, " m"], same: Bool[Tensor, "m G"]) -> Float[Tensor, ""]:
    siblings = same.scatter(1, own[:, None], False)
    return F.cross_entropy(logits.masked_fill(siblings, -torch.inf), own, reduction="sum")


def _all_of_the_image(logits: Float[Tensor, "m G"], own: Int[Tensor, " m"], same: Bool[Tensor, "m G"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, same / same.sum(1, keepdim=True), reduction="sum")


def _own_or_not(logits: Float[Tensor, "m G"], own: Int[Tensor, " m"], same: Bool[Tensor, "m G"]) -> Float[Tensor, ""]:
    negatives = F.softplus(logits).masked_fill(same, 0.0).sum()
    return negatives + F.softplus(-logits.gather(1, own[:, None])).sum()


def _of_the_image_or_not(logits: Float[Tensor, "m G"], own: Int[Tensor, " m"], same: Bool[Tensor, "m G"]) -> Float[Tensor, ""]:
    return F.softplus(torch.where(same, -logits, logits)).sum()


@dataclass(frozen=True)
class Distillation:
    """What a text head learns from the image tower's own text tower.

    Attributes:
        instance: Weight of the distance of each vector to its teacher's, 1 - cosine.
        structure: Weight of the difference between what student and teacher find similar in the batch.
        divergence: A key of DIVERGENCES.
        scale: Factor of the cosines under `kl`.
    """

    instance: float = 1.0
    structure: float = 1.0
    divergence: str = "kl"
    scale: float = TEACHER_SCALE

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise UnknownNameError("divergence", self.divergence, DIVERGENCES)
        if min(self.instance, self.structure) < 0 or self.instance + self.structure == 0:
            raise ConfigError(
                f"The weights of distillation are {self.instance:g} and {self.structure:g}; none is negative, and one must be positive."
            )


def distillation(
    student: Float[Tensor, "B J"],
    teacher: Float[Tensor, "B L"],
    options: Distillation,
    world: World,
    *,
    images: tuple[Float[Tensor, "G J"], Float[Tensor, "G L"]] | None = None,
) -> LossSum:
    """How far text vectors are from their teacher's, after ProCLIP (Hu et al. 2025, arXiv:2510.18795), whose squared distance of unit vectors is 2 (1 - cosine).

    ProCLIP compares distances between texts by smooth L1; here the rows of similarities are compared, to the images where there are some, which is
    what zero-shot classification reads (as CLIP-KD does, Yang et al. 2024, arXiv:2307.12732), else to the texts of all ranks.

    Args:
        student: Text vectors of the head; texts with and without images alike.
        teacher: Vectors of the same texts by the teacher.
        options: Weights and kind.
        world: The processes of this run; all must come here with equally many texts.
        images: Image vectors of all ranks as the student and as the teacher sees them: `Pairs.all_image`, and the image tower's own.

    Raises:
        ConfigError: If student and teacher have different widths.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            f"The joint space has width {student.shape[1]}, the teacher's vectors {teacher.shape[1]}. "
            "Distillation needs the teacher's own space: leave the image side without a head, or distillation out."
        )
    student, teacher = unit(student), unit(teacher)
    total = options.instance * (1 - (student * teacher).sum(1)).sum()
    if options.structure:
        total = total + options.structure * _structure(student, teacher, options, world, images)
    return LossSum(total, torch.tensor(len(student), device=student.device))


def _structure(student: Tensor, teacher: Tensor, options: Distillation, world: World, images: tuple[Tensor, Tensor] | None) -> Float[Tensor, ""]:
    columns = gather_with_gradient(torch.cat([student, teacher], dim=1), world).chunk(2, dim=1) if images is None else [unit(side) for side in images]
    compare = DIVERGENCES[options.divergence]

    def loss(both: Tensor, own: Tensor, _: Tensor | None) -> LossSum:
        ours, theirs = (similarities(some, column) for some, column in zip(both.chunk(2, dim=1), columns, strict=True))
        if images is None:  # every text is most similar to itself, whatever its vector
            ours, theirs = (side.scatter(1, own[:, None], NEVER / options.scale) for side in (ours, theirs))
        return LossSum(compare(ours, theirs, options.scale), own.new_tensor(len(own)))

    first = world.rank * len(student)
    own = torch.arange(first, first + len(student), device=student.device)
    return in_chunks(loss, torch.cat([student, teacher], dim=1), own, None, vocabulary=2 * len(columns[0])).sum


def _kl(ours: Float[Tensor, "m G"], theirs: Float[Tensor, "m G"], scale: float) -> Float[Tensor, ""]:
    return F.kl_div((scale * ours).log_softmax(1), (scale * theirs).log_softmax(1), log_target=True, reduction="sum")


def _mse(ours: Float[Tensor, "m G"], theirs: Float[Tensor, "m G"], scale: float) -> Float[Tensor, ""]:
    return (ours - theirs).square().mean(1).sum()


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"kl": _kl, "mse": _mse}


def weighted_sum(*terms: tuple[float, LossSum]) -> LossSum:
    """The sum of weighted means, counted as the first term is: where each rank has the same number of each, the sums of the ranks still add up."""
    count = terms[0][1].count
    return LossSum(sum((weight * (term.sum / term.count) for weight, term in terms), start=torch.zeros((), device=count.device)) * count, count)
