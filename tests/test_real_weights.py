"""Every entry with its real weights: widths, tensor names, one sensible output. What ran is recorded in `vlm/verified.json`.

    pytest -m network tests/test_real_weights.py                # from the hub: downloads hundreds of gigabytes; choose with -k
    VLM_RECORD=1 pytest -m slow tests/test_real_weights.py      # from pip packages, offline

Entries of the hub are recorded whenever they ran; those of pip packages, which run in every `make test-all`, only with VLM_RECORD=1.
"""

import datetime
import importlib.metadata
import os

import pytest
import torch

from vlm.backbones.image import IMAGE
from vlm.backbones.image.base import build_image
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import HFCausalLM, build_language
from vlm.backbones.loading import Load
from vlm.backbones.text import TEXT
from vlm.backbones.text.base import build_text
from vlm.backbones.vision import VISION
from vlm.messages import Message
from vlm.verified import Verification, record, verifications

REGISTRIES = {"vision": VISION, "language": LANGUAGE, "image": IMAGE, "text": TEXT}
BASE_MODELS = {"pure"}  # templates of models that were trained on text alone


def from_pip(spec) -> bool:
    return bool(package := getattr(spec, "package", "")) and spec.source in (package, f"pip:{package}")


def entries(registry) -> list:
    """Hub entries under `network`, packaged ones under `slow`; random ones have no real weights."""
    rows = []
    for name, spec in registry.items():
        if not name.startswith("tiny-"):
            rows.append(pytest.param(name, marks=pytest.mark.slow if from_pip(spec) else (pytest.mark.network, pytest.mark.timeout(7200))))
    return rows


def note(key: str, check: str, *packages: str, always: bool) -> None:
    """Record what was seen."""
    if always or os.environ.get("VLM_RECORD") == "1":
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", *packages))
        record(key, Verification(date=datetime.date.today().isoformat(), check=check, versions=versions))


def continuation(model: HFCausalLM, text: str, count: int = 20) -> str:
    bos = [model.tokenizer.bos_token_id] if model.template.bos else []
    ids = torch.tensor([[*bos, *model.tokenizer(text, add_special_tokens=False).input_ids]])
    new = model.generate(model.embed(ids), torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return model.tokenizer.decode(new[0], skip_special_tokens=True)


@pytest.mark.parametrize("name", entries(LANGUAGE))
@torch.no_grad()
def test_language_model_knows_the_capital_of_france(name):
    spec = LANGUAGE[name]
    model = build_language(spec, Load(spec.source, torch.float32 if from_pip(spec) else torch.bfloat16))  # refuses missing tensors and other sizes
    assert model.width == spec.width
    assert sum(weight.numel() for weight in model.parameters()) == spec.num_parameters
    if model.template.name in BASE_MODELS:
        question, answer = "The capital of France is", continuation(model, "The capital of France is")
    else:
        question = "What is the capital of France?"
        answer = continuation(
            model, "".join(span.text for span in model.template.render([Message("user", question)])).removeprefix(model.template.bos)
        )
    assert "Paris" in answer
    packages = [spec.package] if spec.package else []
    note(f"language/{name}", f"{question!r}: {answer.strip()!r}", *packages, always=not from_pip(spec))


def scene(size: int, *, seed: int | None = None) -> torch.Tensor:
    """A gradient, or noise over it."""
    ramp = torch.linspace(0, 255, size)
    picture = torch.stack([ramp.expand(size, size), ramp.expand(size, size).T, ramp.flip(0).expand(size, size)])
    if seed is not None:
        picture = picture.roll(size // 2, 1) * torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
    return picture.to(torch.uint8)


@pytest.mark.parametrize("name", entries(VISION))
@torch.no_grad()
def test_vision_backbone_tells_pictures_apart(name):
    spec = VISION[name]
    tower = spec.build(spec, Load(spec.source)).eval()  # refuses missing tensors and other sizes
    assert sum(weight.numel() for weight in tower.parameters()) == spec.num_parameters
    first, second, first_again = scene(spec.image_size), scene(spec.image_size, seed=0), scene(spec.image_size)
    features = tower(torch.stack([first, second, first_again]))
    assert features.shape == (3, spec.num_patches, spec.width)
    assert features.isfinite().all()
    apart = (features[0] - features[1]).norm() / features[0].norm()
    torch.testing.assert_close(features[0], features[2], atol=1e-4, rtol=1e-4)
    assert apart > 0.1
    # a slightly darker picture is nearer than another one; tests/backbones compares the features themselves with other implementations
    darker = tower((first.float() * 0.95).to(torch.uint8)[None])[0]
    assert (features[0] - darker).norm() < (features[0] - features[1]).norm()
    packages = [spec.package] if spec.package else []
    note(f"vision/{name}", f"two pictures differ by {apart:.2f} of the features' norm, one twice by nothing", *packages, always=not from_pip(spec))


@pytest.mark.parametrize("name", entries(IMAGE))
@torch.no_grad()
def test_image_encoder_puts_a_darker_picture_nearer_than_another_one(name):
    spec = IMAGE[name]
    encoder = build_image(spec, Load(spec.source))  # refuses missing tensors and other sizes
    assert sum(weight.numel() for weight in encoder.parameters()) == spec.num_parameters
    first, second = scene(spec.image_size), scene(spec.image_size, seed=0)
    vectors = encoder(torch.stack([first, second, (first.float() * 0.95).to(torch.uint8)]))
    assert vectors.shape == (3, spec.width)
    assert vectors.isfinite().all()
    picture, other, darker = torch.nn.functional.normalize(vectors, dim=1)
    near, far = float(picture @ darker), float(picture @ other)
    assert near > far
    packages = [spec.package] if spec.package else []
    note(f"image/{name}", f"a darker picture has cosine {near:.2f}, another one {far:.2f}", *packages, always=not from_pip(spec))


@pytest.mark.parametrize("name", entries(TEXT))
@torch.no_grad()
def test_text_encoder_puts_texts_of_one_meaning_together(name):
    spec = TEXT[name]
    encoder = build_text(spec, Load(spec.source))  # refuses missing tensors and other sizes
    assert sum(weight.numel() for weight in encoder.parameters()) == spec.num_parameters
    vectors = encoder.encode(["a photo of a cat", "a picture of a kitten", "a map of the London underground"])
    assert vectors.shape == (3, spec.width)
    assert vectors.isfinite().all()
    cat, kitten, underground = torch.nn.functional.normalize(vectors, dim=1)
    near, far = float(cat @ kitten), float(cat @ underground)
    assert near > far
    packages = [*spec.packages, *([spec.package] if spec.package else [])]
    note(f"text/{name}", f"cat and kitten have cosine {near:.2f}, cat and a map {far:.2f}", *packages, always=not from_pip(spec))


def test_every_record_names_a_registered_entry():
    known = {f"{kind}/{name}" for kind, registry in REGISTRIES.items() for name in registry}
    assert set(verifications()) <= known


def test_a_record_replaces_the_one_before_and_keeps_the_others(tmp_path):
    path = tmp_path / "verified.json"
    path.write_text("{}", encoding="utf-8")
    old, new = (Verification(date=date, check="seen", versions="torch 2") for date in ("2026-01-01", "2026-01-02"))
    record("vision/b", old, path)
    record("vision/a", old, path)
    record("vision/b", new, path)
    assert verifications(path) == {"vision/a": old, "vision/b": new}
    assert [file.name for file in tmp_path.iterdir()] == ["verified.json"]


def test_nothing_from_the_hub_is_claimed_without_a_record():
    from vlm.models.catalog import list_components

    listed = {f"{kind}/{row['name']}": row["ran_with_real_weights"] for kind in REGISTRIES for row in list_components(kind)[kind]}
    assert {key for key, ran in listed.items() if ran != "no"} == set(verifications())
