"""Vectors that are computed once: several ranks agree on whether they are there."""

import torch

from vlm.models.dual_build import build_encoder
from vlm.training import features
from vlm.training.features import Frozen, Vectors
from vlm.types import World


def test_a_rank_that_finds_vectors_which_another_did_not_goes_with_it(tmp_path, monkeypatch):
    vectors = Vectors(tmp_path, World.single(), torch.float16, batch_size=4)
    encoder = Frozen("tiny-clip-text", "", lambda: build_encoder("text", "tiny-clip-text"))
    first = vectors.of_texts(encoder, ["a", "b"])
    waits = []
    monkeypatch.setattr(features, "wait_for_all", waits.append)
    vectors.of_texts(encoder, ["a", "b"])
    assert not waits
    monkeypatch.setattr(features, "any_rank", lambda value, world: True)  # the others looked before it was written
    again = vectors.of_texts(encoder, ["a", "b"])
    assert len(waits) == 1
    assert torch.equal(again.rows([0, 1]), first.rows([0, 1]))


def test_without_a_source_the_working_directory_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vectors = Vectors(tmp_path / "features", World.single(), torch.float16, batch_size=4)
    vectors.of_texts(Frozen("tiny-clip-text", "", lambda: build_encoder("text", "tiny-clip-text")), ["a"])
    (tmp_path / "new.txt").write_text("changes nothing", encoding="utf-8")
    vectors.of_texts(Frozen("tiny-clip-text", "", lambda: build_encoder("text", "tiny-image-that-is-not-loaded")), ["a"])
