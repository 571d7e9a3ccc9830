from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlm.backbones.language import LANGUAGE
from vlm.backbones.vision import VISION
from vlm.conf.presets import PRESETS
from vlm.conf.schema import LearningRates, LoRAConfig, LoRATowers, StageConfig, TrainConfig, VisionLanguageConfig
from vlm.models.build import build, skeleton
from vlm.models.flops import FlopModel, Work
from vlm.models.losses import cross_entropy
from vlm.models.vision_language import VisionLanguageModel
from vlm.training.recompute import recompute
from vlm.types import IGNORE_INDEX, ChatBatch, Documents

FAST = ("tiny/align", "tiny/finetune", "phi2-siglip/align", "llava-1.5-7b/finetune")  # frozen, adapter, full-size, all weights of the language model
TEXT, LABELS = 90, 30


def composition(name: str) -> tuple:
    """What FLOPs depend on; presets that agree in it are counted once, Vicuna and Llama 2 among them."""
    config = PRESETS[name]
    model = config.model
    vision, language = VISION[model.vision], LANGUAGE[model.language]
    sizes = vision.parts, str(vision.architecture), vision.num_patches, str(language.architecture)
    return *sizes, model.connector, model.feature_layer, config.stage.lr.trained, model.lora


DISTINCT = sorted({composition(name): name for name in reversed(list(PRESETS))}.values())


def counted(model: VisionLanguageModel, *, rows: int, checkpointed: Sequence[str]) -> int:
    """What torch's own counter sees of a step on the meta device: rows of one document, a tile each."""
    model.train()
    for part in checkpointed:
        recompute(getattr(model, part).blocks())
    size, labels = model.image_policy.size, rows * LABELS
    with FlopCounterMode(display=False) as counter:
        images = model.encode_images(torch.empty(rows, 3, size, size, dtype=torch.uint8, device="meta"))
        text = model.language.embed(torch.zeros(rows, TEXT, dtype=torch.int64, device="meta"))
        embeds = torch.cat([images, text], dim=1)
        needed = torch.arange(labels, device="meta")
        hidden = model.language(embeds, Documents.one_per_row(*embeds.shape[:2], device="meta"), needed=needed)
        logits = model.language.logits(hidden.flatten(0, 1)[needed])
        cross_entropy(logits, torch.zeros(labels, dtype=torch.int64, device="meta")).sum.backward()
    return counter.get_total_flops()


def agrees(config: TrainConfig, *, rows: int, checkpointed: Sequence[str] = ()) -> None:
    trained = config.stage.lr.trained
    model = skeleton(config.model, precision="bf16", trained=trained)
    length = model.tokens_per_tile + TEXT
    work = Work(tiles=rows, slots=rows * length, padding=0, labels=rows * LABELS, documents=((length, 0),) * rows)
    ours = FlopModel.of(model, recomputed=checkpointed).count(work, causal=False)
    assert sum(ours.values()) == pytest.approx(counted(model, rows=rows, checkpointed=checkpointed), rel=1e-6)


@pytest.mark.parametrize("name", FAST)
def test_agrees_with_the_counter_of_torch(name: str):
    agrees(PRESETS[name], rows=2, checkpointed=PRESETS[name].stage.gradient_checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_agrees_with_the_counter_of_torch_for_every_composition(name: str):
    agrees(PRESETS[name], rows=1, checkpointed=PRESETS[name].stage.gradient_checkpointing)


def tiny(trained: tuple[str, ...], *, language: str = "tiny-llama", rank: int = 0) -> TrainConfig:
    model = VisionLanguageConfig(vision="tiny-fused", language=language, lora=LoRATowers(language=LoRAConfig(rank=rank)))
    return TrainConfig(model=model, stage=StageConfig(name="x", dataset="x", lr=LearningRates(**dict.fromkeys(trained, 1e-3))))


@pytest.mark.parametrize("trained", [("connector",), ("vision", "connector", "language"), ("language",), ("vision",)])
def test_agrees_whatever_is_frozen(trained: tuple[str, ...]):
    agrees(tiny(trained), rows=2)
    agrees(tiny(trained), rows=2, checkpointed=["vision", "language"])


@pytest.mark.parametrize("rank", [0, 2])
def test_agrees_for_every_family(language: str, rank: int):
    agrees(tiny(("connector", "language"), language=language, rank=rank), rows=2, checkpointed=["language"])


def flops_of_siglip_phi2(trained: tuple[str, ...], *, rank: int = 0, feature_layer: int = -1) -> dict[tuple[str, str], float]:
    """One sample of 729 image tokens and 150 of text, all of them labelled."""
    lora = LoRATowers(language=LoRAConfig(rank=rank, targets="all-linear"))
    config = VisionLanguageConfig(vision="siglip-so400m-384", language="phi-2", feature_layer=feature_layer, lora=lora)
    work = Work(tiles=1, slots=879, padding=0, labels=150, documents=((879, 0),))
    return FlopModel.of(skeleton(config, precision="bf16", trained=trained)).count(work)


MLP_OF_A_TOKEN = 2 * 2 * 2560 * 10_240  # of a layer of Phi-2; the last layer's is computed for 150 tokens of 879
SPARED = 2 * MLP_OF_A_TOKEN * 729  # forward, and the gradient of its input


def of_part(flops: dict[tuple[str, str], float], part: str, *kinds: str) -> float:
    return sum(value for (name, kind), value in flops.items() if name == part and (kind in kinds or not kinds)) / 1e9


def test_siglip_and_phi2_are_what_one_computes_by_hand():
    flops = flops_of_siglip_phi2(("connector",))
    layer, mlp = 1152, 4304
    vit = 27 * (2 * (4 * layer**2 + 2 * layer * mlp) * 729 + 4 * 729**2 * layer) + 2 * 729 * 14**2 * 3 * layer
    assert of_part(flops, "vision") == pytest.approx(vit / 1e9, rel=1e-6)
    assert of_part(flops, "vision") == pytest.approx(666, rel=2e-3)
    assert of_part(flops, "connector") == pytest.approx(13.9 + 13.9 + 9.6, rel=5e-3)
    assert of_part(flops, "language", "forward", "input_gradient") == pytest.approx(2 * 4424 - SPARED / 1e9, rel=1e-3)
    assert of_part(flops, "language", "attention") == pytest.approx(380, rel=2e-3)
    assert of_part(flops, "head") == pytest.approx(79, rel=5e-3)
    assert sum(flops.values()) == pytest.approx(10.01e12 - SPARED, rel=1e-3)


@pytest.mark.parametrize(("rank", "extra"), [(16, 0.124e12), (128, 0.995e12)])
def test_an_adapter_costs_six_times_its_rank_and_widths(rank: int, extra: float):
    # the head is no target of all-linear; 6 r (in + out) a token: forward, and both gradients of both matrices
    assert sum(flops_of_siglip_phi2(("connector", "language"), rank=rank).values()) == pytest.approx(10.01e12 - SPARED + extra, rel=2e-3)


def test_the_whole_language_model_costs_half_as_much_again():
    assert sum(flops_of_siglip_phi2(("connector", "language")).values()) == pytest.approx(14.47e12 - 1.5 * SPARED, rel=1e-3)


def test_a_vision_backbone_that_stops_a_layer_early_costs_a_layer_less():
    whole, early = (of_part(flops_of_siglip_phi2(("connector",), feature_layer=layer), "vision") for layer in (-1, -2))
    patches = 2 * 729 * 14**2 * 3 * 1152 / 1e9
    assert early - patches == pytest.approx((whole - patches) * 26 / 27)


def batch_of(starts: list[int], prefix: list[int] | None, *, rows: int, length: int) -> ChatBatch:
    documents = Documents(torch.tensor(starts), torch.zeros(rows, length, dtype=torch.int64), None if prefix is None else torch.tensor(prefix))
    labels = torch.full((rows, length), IGNORE_INDEX)
    labels[:, 2:4] = 5
    return ChatBatch(
        ids=torch.full((rows, length), 5), labels=labels, documents=documents, pixels=torch.zeros(0, 3, 32, 32, dtype=torch.uint8), num_samples=3
    )


@pytest.mark.parametrize("window", [None, 3, 6, 100])
def test_pairs_are_those_that_a_mask_would_show(window: int | None):
    work = Work.of(batch_of([0, 5, 8, 12, 24], [-1, 0, 1, -1], rows=2, length=12))
    seen = 0
    for length, before in [(5, 0), (3, 5), (4, 8), (12, 0)]:
        distance = torch.arange(before, before + length)[:, None] - torch.arange(before + length)
        seen += int(((distance >= 0) & (distance < (window or 1000))).sum())
    assert work.pairs(window, causal=True) == seen
    assert work.pairs(window, causal=False) == 5 * 5 + 3 * 8 + 4 * 12 + 12 * 12


def test_a_real_step_of_packed_rows_and_a_tree_costs_what_the_counter_of_torch_sees():
    config = VisionLanguageConfig(vision="tiny-siglip", language="tiny-mistral")
    model = build(config, precision="fp32", trained=("connector", "language")).train()
    batch = batch_of([0, 5, 8, 12, 24], [-1, 0, 0, -1], rows=2, length=12)
    with FlopCounterMode(display=False) as counter:
        model(batch).sum.backward()
    # The counter sees 2.5 forward passes in the backward pass of a flash kernel; we count two. A blank tile takes part, as on a rank without pictures.
    work = Work.of(batch) + Work(tiles=1, slots=0, padding=0, labels=0, documents=())
    ours = FlopModel.of(skeleton(config, precision="fp32", trained=("connector", "language"))).count(work, causal=False)
    attention = ours["language", "attention"]
    assert sum(ours.values()) == pytest.approx(counter.get_total_flops(), abs=attention / 6 + 1)
    assert attention < 0.1 * sum(ours.values())


def test_useful_work_is_without_padding_and_without_what_is_computed_twice():
    model = skeleton(PRESETS["tiny/align"].model, precision="fp32", trained=("connector",))
    plain, checkpointed = FlopModel.of(model), FlopModel.of(model, recomputed=["language"])
    full = Work(tiles=2, slots=64, padding=0, labels=4, documents=((32, 0), (32, 0)))
    half_empty = Work(tiles=2, slots=128, padding=64, labels=4, documents=((64, 0), (64, 0)))
    assert plain.useful(full) == pytest.approx(sum(plain.count(full).values()))
    assert checkpointed.useful(full) == pytest.approx(plain.useful(full))
    assert sum(checkpointed.count(full).values()) > sum(plain.count(full).values())
    assert plain.useful(half_empty) == pytest.approx(plain.useful(full), rel=5e-3)  # tokens see themselves


def test_work_adds_up():
    work = Work(tiles=1, slots=10, padding=2, labels=3, documents=((8, 0), (2, 0)), samples=1)
    assert Work.total([work, work]) == Work(2, 20, 4, 6, work.documents * 2, 2)
    assert Work.total([]) == Work(0, 0, 0, 0, ())
