"""`DualEncoder` by itself: what it encodes, what a checkpoint of heads gives back, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import TEXTS, dual, pictures, two_towers

import vlm
from vlm.conf.contrastive import HeadConfig
from vlm.errors import CheckpointError, DataFormatError
from vlm.models.dual_build import build_pair, find_pair
from vlm.models.dual_encoder import DualEncoder


@pytest.fixture
def towers(tmp_path):
    return two_towers("clip", tmp_path / "towers")


@pytest.fixture
def model(towers) -> DualEncoder:
    return dual("clip", towers, text_head=HeadConfig("ape", hidden_width=12))


def test_vectors_are_of_unit_length_and_similarities_are_their_cosines(model):
    images, texts = model.encode_image(pictures()), model.encode_text(TEXTS[:2])
    assert images.shape == (3, 8) and texts.shape == (2, 8)
    for vectors in (images, texts):
        assert vectors.dtype == torch.float32 and not vectors.requires_grad
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    torch.testing.assert_close(model.similarity(pictures(), TEXTS[:2]), images @ texts.T)
    assert float(images.std(0).mean()) > 0.03 and float(texts.std(0).mean()) > 0.03  # different inputs, different vectors


def test_what_else_is_in_the_batch_does_not_matter(model):
    images, texts = model.encode_image(pictures()), model.encode_text(TEXTS)
    for i in range(3):
        torch.testing.assert_close(model.encode_image([pictures()[i]])[0], images[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(model.encode_text([TEXTS[i]])[0], texts[i], atol=1e-6, rtol=0)
    torch.testing.assert_close(model.encode_image(pictures(), batch_size=2), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.encode_text(TEXTS, batch_size=1), texts, atol=1e-6, rtol=0)


def test_the_scale_is_that_of_the_heads_or_of_the_published_pair(model, towers):
    scale, bias = model.logit_scale()
    assert scale == pytest.approx(float(torch.tensor(2.5).exp())) and bias == 0
    assert dual("clip", towers, loss="siglip").logit_scale()[1] == -10
    published = build_pair(find_pair("tiny-clip"), image_source=str(towers), text_source=str(towers)).logit_scale()
    assert published == (pytest.approx(float(load_file(towers / "model.safetensors")["logit_scale"].exp())), 0)


def test_single_strings_and_empty_lists_are_refused(model):
    for texts in ("a cat", []):
        with pytest.raises(DataFormatError, match="takes a list of at least one text"):
            model.encode_text(texts)
    with pytest.raises(DataFormatError, match="takes a list of at least one picture"):
        model.encode_image([])


def test_a_saved_model_is_small_and_loads_to_equal_vectors(model, tmp_path):
    model.save(tmp_path / "heads")
    assert {name.split(".")[0] for name in load_file(tmp_path / "heads" / "weights.safetensors")} == {"text_head", "scale"}
    assert sum(path.stat().st_size for path in (tmp_path / "heads").iterdir()) < 20_000
    again = vlm.load(tmp_path / "heads", device="cpu", precision="fp32")
    torch.testing.assert_close(again.encode_image(pictures()), model.encode_image(pictures()), atol=0, rtol=0)
    torch.testing.assert_close(again.encode_text(TEXTS), model.encode_text(TEXTS), atol=0, rtol=0)
    assert again.logit_scale() == model.logit_scale() and again.config == model.config and again.trained_on == ("pairs.json",)
    again.save(tmp_path / "heads")  # replaces a checkpoint
    assert json.loads((tmp_path / "heads" / "model.json").read_text(encoding="utf-8"))["trained_on"] == ["pairs.json"]


def test_a_model_loaded_from_other_folders_remembers_them(model, tmp_path):
    model.save(tmp_path / "heads")
    (tmp_path / "towers").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"'.*towers' could not be loaded.*--model\.image-source|no folder '.*towers'"):
        vlm.load(tmp_path / "heads", device="cpu")
    moved = vlm.load(tmp_path / "heads", device="cpu", image_source=str(tmp_path / "moved"), text_source=str(tmp_path / "moved"))
    moved.save(tmp_path / "again")
    assert isinstance(vlm.load(tmp_path / "again", device="cpu"), DualEncoder)


@pytest.mark.parametrize("side", ["image", "text"])
def test_other_weights_under_the_same_name_are_refused_with_both_fingerprints(model, tmp_path, side):
    model.save(tmp_path / "heads")
    stored = json.loads((tmp_path / "heads" / "model.json").read_text(encoding="utf-8"))["fingerprints"][side]
    other = two_towers("clip", tmp_path / "other", seed=2)
    with pytest.raises(
        CheckpointError, match=rf"The {side} encoder is not the one .*: fingerprint [0-9a-f]{{12}}, expected {stored[:12]}\..*{side}_source"
    ):
        vlm.load(tmp_path / "heads", device="cpu", **{f"{side}_source": str(other)})


def test_heads_of_another_shape_and_damaged_files_are_refused(model, towers, tmp_path):
    model.save(tmp_path / "heads")
    dual("clip", towers, text_head=HeadConfig("ape", hidden_width=10)).save(tmp_path / "other")
    weights = (tmp_path / "heads" / "weights.safetensors").read_bytes()
    (tmp_path / "heads" / "weights.safetensors").write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"'text_head\.adaptor\.0\.weight' has shape \(10, 8\), this model needs \(12, 8\)"):
        vlm.load(tmp_path / "heads", device="cpu")
    (tmp_path / "heads" / "weights.safetensors").write_bytes(weights[:-50])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be read"):
        vlm.load(tmp_path / "heads", device="cpu")


def test_what_has_no_heads_or_no_names_is_not_saved(model, towers, tmp_path):
    pair = build_pair(find_pair("tiny-clip"), image_source=str(towers), text_source=str(towers))
    with pytest.raises(CheckpointError, match=r"published pair, which vlm\.load opens by its name.*vlm export dual"):
        pair.save(tmp_path / "pair")
    with pytest.raises(CheckpointError, match="does not know the names of its encoders"):
        DualEncoder(model.image, model.text, model.heads).save(tmp_path / "nameless")
    with pytest.raises(CheckpointError, match="is no checkpoint; a checkpoint would replace it"):
        model.save(towers)
    assert not (tmp_path / "pair").exists() and not (tmp_path / "nameless").exists() and (towers / "config.json").is_file()


def test_an_instruction_is_told_to_the_text_encoder(model):
    told = []
    model.config = replace(model.config, instruction="Retrieve:")
    model.text.encode = lambda texts, *, instruction="": told.append(instruction) or torch.ones(len(texts), 8)
    model.encode_text(["a cat"])
    assert told == ["Retrieve:"]
