"""Dual encoders in other libraries: equal vectors there, exact folding of linear heads, and reasons where no format fits."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_pairs import TEXTS, dual, joined, pictures, two_towers

from vlm.__main__ import main as vlm_command
from vlm.conf.contrastive import DualEncoderConfig, HeadConfig
from vlm.errors import CheckpointError, ConfigError
from vlm.export import dual as exporting
from vlm.export.dual import export_dual
from vlm.models.dual_build import build_pair, find_pair
from vlm.models.dual_encoder import DualEncoder

LINEAR = HeadConfig("linear")
BARE = HeadConfig("ape", num_layers=1)


@pytest.fixture
def clip(tmp_path) -> Path:
    return two_towers("clip", tmp_path / "clip")


@pytest.fixture
def siglip(tmp_path) -> Path:
    return two_towers("siglip", tmp_path / "siglip")


def asked(folder: Path, kind: str, model: DualEncoder) -> tuple[torch.Tensor, ...]:
    """Image vectors, text vectors and logits by transformers as its users call it, with our pixels."""
    import transformers

    theirs = getattr(transformers, f"{kind}Model").from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        said = theirs(pixel_values=model.image.tower.normalize(model.pixels(pictures())), **tokens)
    return said.image_embeds, said.text_embeds, said.logits_per_image


def check(folder: Path, kind: str, model: DualEncoder) -> None:
    images, texts, logits = asked(folder, kind, model)
    scale, bias = model.logit_scale()
    torch.testing.assert_close(images, model.encode_image(pictures()), atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, model.encode_text(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, scale * model.similarity(pictures(), TEXTS) + bias, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("image_head", "text_head", "joint"),
    [
        (HeadConfig(), LINEAR, None),
        (LINEAR, LINEAR, 6),
        (HeadConfig(), HeadConfig("linear", normalize_input="standardize"), None),
        (HeadConfig(), HeadConfig("ape", num_layers=1, normalize_input="l2"), None),
        (BARE, HeadConfig(), None),
    ],
)
def test_clip_towers_with_linear_heads_are_a_clip_model(clip, tmp_path, image_head, text_head, joint):
    model = dual("clip", clip, image_head=image_head, text_head=text_head, joint_width=joint)
    done = export_dual(model, tmp_path / "out")
    assert done.format == "transformers" and done.parity.is_equal
    check(tmp_path / "out", "CLIP", model)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_siglip_towers_with_a_linear_text_head_are_a_siglip_model(siglip, tmp_path, loss):
    model = dual("siglip", siglip, text_head=HeadConfig("linear", normalize_input="standardize"), loss=loss)
    done = export_dual(model, tmp_path / "out")
    assert done.format == "transformers"
    check(tmp_path / "out", "Siglip", model)


@pytest.mark.parametrize(("kind", "name"), [("clip", "CLIP"), ("siglip", "Siglip")])
def test_a_published_pair_comes_back_as_the_model_that_it_is(tmp_path, kind, name):
    from safetensors.torch import load_file

    folder = two_towers(kind, tmp_path / "published")
    model = build_pair(find_pair(f"tiny-{kind}"), image_source=str(folder), text_source=str(folder))
    export_dual(model, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    check(tmp_path / "out", name, model)


def test_the_image_processor_of_the_folder_does_what_ours_does_on_pil_and_nearly_so_on_torchvision(clip, tmp_path):
    done = export_dual(dual("clip", clip), tmp_path / "out")
    assert done.parity.pixels["pil"] == 0
    assert 0 < done.parity.pixels["torchvision"] < 0.1
    import transformers

    assert type(transformers.AutoProcessor.from_pretrained(tmp_path / "out")).__name__ == "CLIPProcessor"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"text_head": HeadConfig("ape")}, r"the text head is of kind 'ape', which is not linear"),
        ({"text_head": HeadConfig("linear", normalize_input="layernorm")}, "normalizes its input by layernorm, which cannot be folded"),
        ({"text_head": HeadConfig("linear", normalize_input="l2")}, r"by l2.*--model\.text-head\.kind ape with --model\.text-head\.num-layers 1"),
        ({"loss": "siglip"}, "CLIPModel's logits have no bias, and this model's have -10"),
        ({"image_head": LINEAR, "joint_width": 20}, "the image head has a bias, .*map of 16 values to 20"),
    ],
)
def test_what_clip_model_cannot_hold_is_refused_with_the_reason_and_nothing_is_left(clip, tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        export_dual(dual("clip", clip, **options), tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()


def test_towers_of_two_kinds_and_an_image_head_on_siglip_are_refused(clip, siglip, tmp_path):
    with pytest.raises(ConfigError, match="SigLIP's image tower ends in a residual sum"):
        export_dual(dual("siglip", siglip, image_head=LINEAR), tmp_path / "out", format="transformers")
    mixed = DualEncoderConfig(image="tiny-clip-image", text="tiny-siglip-text", image_source=str(clip), text_source=str(siglip), text_head=LINEAR)
    with pytest.raises(
        ConfigError, match=r"cannot be exported\. transformers: .*this image encoder is CLIP's and this text encoder is SigLIP's\. open_clip: "
    ):
        export_dual(joined(mixed), tmp_path / "out")


def test_an_export_that_is_not_equal_is_removed(clip, tmp_path, monkeypatch):
    real = exporting.FORMATS["transformers"]

    def wrong(model):
        write = real(model)

        def written(folder):
            foreign = write(folder)
            with torch.no_grad():
                model.text.tower.model.text_projection.weight.add_(0.01)
            return foreign

        return written

    monkeypatch.setitem(exporting.FORMATS, "transformers", wrong)
    with pytest.raises(CheckpointError, match=r"is not equal to the model, so .*out was removed: largest difference"):
        export_dual(dual("clip", clip), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_exports_a_checkpoint_prints_the_parity_and_overwrites_nothing(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dual("clip", clip).save(tmp_path / "heads")
    assert vlm_command(["export", "dual", "heads", "out"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "format transformers" and said[1].startswith("largest difference in fp32: image vectors ") and said[-1] == "out"
    assert any(line.startswith("image processor torchvision: pixels differ by up to") for line in said)
    assert vlm_command(["export", "dual", "heads", "out"]) == 2
    assert "out exists. Name a folder that" in capsys.readouterr().err
    assert vlm_command(["export", "dual", "tiny-clip", "pair"]) == 0
    assert json.loads(Path("pair/config.json").read_text(encoding="utf-8"))["architectures"] == ["CLIPModel"]
    assert vlm_command(["export", "duel", "heads", "out"]) == 2
    assert "Did you mean 'dual'" in capsys.readouterr().err
    assert vlm_command(["export", "--help"]) == 0 and "dual" in capsys.readouterr().out


def test_the_exported_scale_is_stored_as_its_logarithm(clip, tmp_path):
    from safetensors.torch import load_file

    model = dual("clip", clip)
    export_dual(model, tmp_path / "out")
    assert float(load_file(tmp_path / "out" / "model.safetensors")["logit_scale"]) == pytest.approx(math.log(model.logit_scale()[0]))
