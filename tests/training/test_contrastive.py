"""Heads between tiny frozen encoders: the whole way from pictures with captions to a model that is loaded, and what is refused on it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_data import losses, metrics

import vlm
from vlm.commands.pretrain import objective_of
from vlm.conf.contrastive import ContrastiveConfig, DistillConfig
from vlm.conf.contrastive_presets import CONTRASTIVE_PRESETS
from vlm.data.feature_cache import FeatureCache
from vlm.data.stream.pairs import PairBatch, TextBatch
from vlm.errors import CheckpointError, ConfigError, DataFormatError
from vlm.models.dual_build import build_heads
from vlm.models.dual_encoder import DualEncoder
from vlm.training import contrastive
from vlm.types import World

COLORS = ("red", "green", "blue", "white", "black", "gray", "pink", "orange", "brown", "gold", "navy", "teal")


def write_pairs(folder: Path, name: str, *, tint: int) -> Path:
    """Twelve pictures with two captions each."""
    rows = []
    for number, color in enumerate(COLORS):
        picture = Image.new("RGB", (40, 40), color)
        picture.paste((tint, number, 3), (0, 0, 9, 9))
        picture.save(folder / f"{name}{number}.png")
        rows.append({"image": f"{name}{number}.png", "captions": [f"a {color} square", f"something {color}"]})
    (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / f"{name}.json"


@pytest.fixture
def config(tmp_path: Path) -> ContrastiveConfig:
    """Tiny CLIP towers, a head on the text side, 12 pictures to train on and 12 others."""
    preset = CONTRASTIVE_PRESETS["tiny-ape/align"]
    train, held_out = write_pairs(tmp_path, "train", tint=5), write_pairs(tmp_path, "held", tint=99)
    stage = replace(preset.stage, dataset=str(train), validation=str(held_out), global_batch_size=6, max_steps=4)
    return replace(preset, stage=stage, run_root=tmp_path / "runs", data_root=tmp_path / "data", device="cpu", precision="fp32")


def with_stage(config: ContrastiveConfig, **changed) -> ContrastiveConfig:
    return replace(config, stage=replace(config.stage, **changed))


def distilled(config: ContrastiveConfig, tmp_path: Path) -> ContrastiveConfig:
    names = tmp_path / "names.txt"
    names.write_text("circle\nline\n", encoding="utf-8")
    head = replace(config.model.text_head, normalize_input="standardize")
    teacher = DistillConfig(teacher="native", texts=(f"classes:{names}",), texts_batch_size=4)
    return with_stage(replace(config, model=replace(config.model, text_head=head)), distill=teacher)


def test_a_run_learns_and_is_looked_at(config):
    run = vlm.train(with_stage(config, max_steps=60))
    curve = losses(run)
    assert len(curve) == 60
    assert sum(curve[-10:]) < 0.9 * sum(curve[:10])
    assert {"validation_loss", "validation/image_retrieval_recall@1", "validation/text_retrieval_recall@5"} <= set(metrics(run)[-1])
    assert {"pairs_per_second", "lr/text_head", "lr/scale", "data_wait_share", "flops_per_second", "mfu"} <= set(metrics(run)[0])


def test_what_was_trained_is_a_small_checkpoint_that_loads_and_gives_the_vectors_of_training(config, tmp_path):
    run = vlm.train(config)
    weights = load_file(next(run.glob("checkpoints/*/weights.safetensors")))
    assert {name.split(".")[0] for name in weights} == {"text_head", "scale"}
    model = vlm.load(run, device="cpu", precision="fp32")
    assert isinstance(model, DualEncoder)
    data = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    pictures = [Image.open(tmp_path / row["image"]).convert("RGB") for row in data]
    with torch.no_grad():
        images, direct = model.encode_image(pictures), model.image(model.pixels(pictures))
    stored = [FeatureCache(path).rows(range(12)).float() for path in (tmp_path / "data" / "features").glob("*image*")]
    cached = min(stored, key=lambda vectors: float((vectors - direct).abs().max()))  # of training and of validation pictures
    torch.testing.assert_close(cached, direct, atol=2e-3, rtol=2e-3)  # vectors are stored in fp16
    torch.testing.assert_close(images, torch.nn.functional.normalize(direct, dim=1))
    texts = model.encode_text(["a red square", "something gold"])
    torch.testing.assert_close(model.similarity(pictures[:2], ["a red square", "something gold"]), images[:2] @ texts.T)
    assert 1 < model.logit_scale()[0] <= 100


def test_encoders_are_not_loaded_where_their_vectors_are_known(config, monkeypatch):
    vlm.train(config)
    monkeypatch.setattr(contrastive, "build_encoder", lambda *_, **__: pytest.fail("loaded"))
    vlm.train(replace(config, seed=8))


def test_a_resumed_run_ends_with_the_same_weights(config, tmp_path):
    config = distilled(config, tmp_path)
    whole = vlm.train(with_stage(replace(config, seed=1), max_steps=6))
    cut = with_stage(replace(config, seed=1, run_root=tmp_path / "cut", checkpoint_every=3), max_steps=6)
    run = vlm.train(cut)
    for folder in sorted(run.glob("checkpoints/step-*"))[1:]:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    vlm.train(replace(cut, resume="auto"))
    ends = [load_file(sorted(each.glob("checkpoints/*/weights.safetensors"))[-1]) for each in (whole, run)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_distillation_brings_texts_to_their_teacher(config, tmp_path):
    config = with_stage(distilled(config, tmp_path), max_steps=150)
    model = vlm.load(vlm.train(config), device="cpu")
    texts = ["a circle", "a line", "a red square"]
    with torch.no_grad():
        teacher = torch.nn.functional.normalize(model.text.encode(texts), dim=1)  # the tiny text encoder is its own teacher here
    before = vlm.load(vlm.train(with_stage(replace(config, seed=3), max_steps=1)), device="cpu").encode_text(texts)
    near, far = ((vectors * teacher).sum(1).mean() for vectors in (model.encode_text(texts), before))
    assert near > far + 0.3


@pytest.mark.dist
def test_two_ranks_compute_what_one_does(config, tmp_path, torchrun):
    config = distilled(config, tmp_path)
    one = vlm.train(config)
    stored = tmp_path / "two.json"
    from vlm.conf.serialize import write_config

    write_config(replace(config, run_root=tmp_path / "two"), stored)
    torchrun(Path(vlm.__file__).parents[1] / "scripts" / "pretrain.py", stored)
    assert losses(tmp_path / "two" / one.name) == pytest.approx(losses(one), abs=1e-5)


def test_validation_pictures_that_are_trained_on_are_refused_unless_allowed(config):
    same = with_stage(config, validation=config.stage.dataset)
    with pytest.raises(ConfigError, match="100 % of these images were trained on"):
        vlm.train(same)
    vlm.train(replace(same, allow_overlap=True))


def test_another_encoder_is_refused(config):
    run = vlm.train(config)
    path = next(run.glob("checkpoints/*/model.json"))
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"fingerprints": {**values["fingerprints"], "text": "0" * 64}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="text encoder is not the one"):
        vlm.load(run, device="cpu")


def test_a_batch_that_ranks_cannot_share_is_refused_with_advice(config):
    two = World(rank=0, size=2, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"Take 6 or 8.*raise it rather than accumulate"):
        objective_of(with_stage(config, global_batch_size=7), two).plan(two)


def test_accumulation_is_refused_with_advice(config):
    with pytest.raises(
        ConfigError, match=r"per-device-batch-size 2 on 1 device\(s\) would cut --stage.global-batch-size 6 .* raise --stage.global-batch-size rather"
    ):
        vlm.train(with_stage(config, per_device_batch_size=2))
    assert objective_of(with_stage(config, per_device_batch_size=6), World.single()).plan(World.single()).accumulation == 1


def test_more_pairs_than_images_are_refused(config):
    with pytest.raises(ConfigError, match="data has 12 images"):
        vlm.train(with_stage(config, global_batch_size=16))


def test_distillation_needs_a_teacher_in_the_joint_space(config, tmp_path):
    with pytest.raises(ConfigError, match="set --stage\\.distill\\.teacher"):
        vlm.train(with_stage(config, distill=DistillConfig(texts=("x.txt",))))
    with pytest.raises(ConfigError, match="vectors of width 384"):
        vlm.train(with_stage(config, distill=DistillConfig(teacher="all-minilm-l6-v2-text")))
    with pytest.raises(DataFormatError, match=r"nowhere\.txt cannot be read"):
        vlm.train(with_stage(config, distill=DistillConfig(teacher="native", texts=(str(tmp_path / "nowhere.txt"),))))


def test_heads_go_on_from_another_run(config, tmp_path):
    first = vlm.train(config)
    second = vlm.train(with_stage(replace(config, init_from=first, seed=9), max_steps=1))
    assert metrics(second)[0]["loss"] < metrics(first)[0]["loss"]
    other = replace(config, init_from=first, seed=10, model=replace(config.model, text_head=replace(config.model.text_head, kind="glu")))
    with pytest.raises(CheckpointError, match="text_head"):
        vlm.train(other)


def test_a_broken_picture_is_named(config, tmp_path):
    (tmp_path / "train3.png").write_bytes(b"no picture")
    with pytest.raises(DataFormatError, match=r"train3\.png cannot be read"):
        vlm.train(config)


def test_a_teacher_leaves_a_trained_image_head_alone(config, tmp_path):
    """Similarities to images whose head is trained as well would pull that head together: texts are then compared with texts."""
    width = 8
    head = replace(config.model.image_head, kind="linear")
    model = replace(config.model, image_head=head, joint_width=width)
    heads = build_heads(model, distill=DistillConfig(teacher="tiny-clip-text"))
    batch = PairBatch(image=torch.randn(4, width), text=torch.randn(4, width), image_ids=torch.arange(4), teacher=torch.randn(4, width))
    gradients = []
    for goal in (heads.goal, replace(heads.goal, distillation=None)):
        heads.goal = goal
        heads.zero_grad()
        heads(batch).sum.backward()
        gradients.append([weight.grad.clone() for weight in heads.image_head.parameters()])
    for distilled, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(distilled, plain)


def test_texts_without_images_are_learned_in_bf16_too(config):
    """Vectors are stored in fp16, which autocast on CPU refuses to join."""
    heads = build_heads(config.model, distill=DistillConfig(teacher="tiny-clip-text"))
    image, text, teacher = torch.randn(3, 4, 8).half()
    with torch.autocast("cpu", torch.bfloat16):
        loss = heads(PairBatch(image, text, torch.arange(4), teacher, TextBatch(text, teacher)))
    assert loss.sum.isfinite() and loss.sum.dtype == torch.float32


@pytest.mark.parametrize("name", ["ape-demo", "ape-demo-plain"])
def test_presets_of_the_demo_train(name, config):
    preset = CONTRASTIVE_PRESETS[f"{name}/align"]
    stage = replace(preset.stage, dataset=config.stage.dataset, validation=config.stage.validation, global_batch_size=6, max_steps=2)
    run = vlm.train(replace(preset, stage=stage, run_root=config.run_root, data_root=config.data_root, device="cpu"))
    assert len(losses(run)) == 2
    assert run.name == f"{name}+align+x7"
