"""Batches against one at a time, texts without their padding against texts with it, and what is counted as a token."""

import math

import pytest
import tiny_pairs
import torch

from vlm.models.dual_build import build_encoder
from vlm.models.open import open_dual
from vlm.score import encoding
from vlm.score.encoding import PairEncoder, count_tokens, without_padding

TEXTS = ["short", "A somewhat longer text of a few words.", "x", "word " * 40, "A text."]
MODELS = ["tiny-clip", "tiny-siglip"]


def model(name: str):
    return open_dual(name, device="cpu", precision="fp32")


def tiles(encoder: PairEncoder, count: int):
    size = encoder.policy.size
    return [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_pictures_is_as_one_at_a_time(name):
    encoder = PairEncoder(model(name))
    many = tiles(encoder, 5)
    torch.testing.assert_close(encoder.images(many), torch.cat([encoder.images([tile]) for tile in many]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_texts_in_any_batches_are_as_the_model_encodes_each(name, batch_tokens):
    dual = model(name)
    expected = torch.cat([dual.encode_text([text]) for text in TEXTS])
    found = PairEncoder(dual, batch_tokens=batch_tokens).texts(TEXTS)
    torch.testing.assert_close(found.vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_encoders_give_the_same_in_batches_of_any_size(name, caplog):
    from torch._dynamo.utils import counters

    caplog.set_level("INFO", "vlm")
    plain, compiled = PairEncoder(model(name), batch_tokens=400), PairEncoder(model(name), batch_tokens=400, compile=True)
    assert "compiled both encoders in" in caplog.text
    start = counters["stats"]["unique_graphs"]

    def compare(counts, texts) -> int:
        for count in counts:
            many = tiles(plain, count)
            torch.testing.assert_close(compiled.images(many), plain.images(many), rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled.texts(texts).vectors, plain.texts(texts).vectors, rtol=0, atol=1e-5)
        return counters["stats"]["unique_graphs"]

    assert compare([16, 3], ["a text of some words", "another"]) == start  # nothing is left to be compiled
    graphs = compare([16, 1], TEXTS * 3)
    assert compare([5, 2, 11], TEXTS * 4) == graphs  # the last batch of a window has what is left


def test_texts_of_clip_are_padded_to_their_batch_alone(monkeypatch):
    dual, lengths = model("tiny-clip"), []
    encoder, forward = PairEncoder(dual, batch_tokens=20), dual.text.tower.forward
    monkeypatch.setattr(dual.text.tower, "forward", lambda ids: (lengths.append(tuple(ids.shape)), forward(ids))[1])
    encoder.texts(TEXTS)
    assert all(rows * length <= 20 or rows == 1 for rows, length in lengths)
    assert max(length for _, length in lengths) == dual.text.max_length
    assert min(length for _, length in lengths) < 10


def test_padding_is_what_stands_behind_the_first_end_token():
    ids = torch.tensor([[0, 5, 1, 1, 1], [0, 5, 6, 1, 1]])
    assert without_padding(ids, 1).tolist() == [[0, 5, 1, 1], [0, 5, 6, 1]]
    assert without_padding(ids, 6).shape == ids.shape  # a row without the token: nothing is known


def test_tokens_are_counted_before_a_text_is_cut():
    dual = model("tiny-clip")
    counts = count_tokens(dual.text, TEXTS)
    assert [count.truncated for count in counts] == [False, False, False, True, False]
    assert counts[3].tokens > dual.text.max_length
    ids = dual.text.tokenize(["x"])[0]
    assert counts[2].tokens == int((ids == dual.text.tower.end_token_id).int().argmax()) + 1


def test_tokens_of_open_clips_own_tokenizer_include_the_two_around_a_text():
    open_clip = pytest.importorskip("open_clip")

    class Encoder:
        tokenizer, max_length = open_clip.tokenizer.SimpleTokenizer(), 77

    (count, long) = count_tokens(Encoder, ["a photo of a cat", "cat " * 80])
    assert count == (7, False)
    assert long == (82, True)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    encoder = PairEncoder(model("tiny-clip"))
    many, sizes, inner = tiles(encoder, 5), [], encoder._image_vectors
    expected = encoder.images(many)

    def small(items):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("full")
        return inner(items)

    monkeypatch.setattr(encoder, "_image_vectors", small)
    torch.testing.assert_close(encoder.images(many), expected, rtol=0, atol=1e-5)
    assert sizes == [5, 2, 3, 1, 2]


def test_the_automatic_batch_fits_into_the_free_memory(monkeypatch):
    encoder = PairEncoder(model("tiny-clip"))
    assert encoder.batch_size == encoding.BATCH_ON_CPU
    monkeypatch.setattr(PairEncoder, "device", torch.device("cuda"))
    monkeypatch.setattr(encoder, "_taken", lambda size: 1000 + 50 * size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 20_000))
    assert encoder._fitting() == math.floor(10_000 * encoding.SHARE_OF_MEMORY / 50)


def test_the_model_keeps_no_gradients():
    dual = model("tiny-clip")
    encoder = PairEncoder(dual)
    assert not any(parameter.requires_grad for parameter in dual.parameters())
    assert not encoder.texts(TEXTS).vectors.requires_grad


def test_tokens_of_sentence_encoders_are_counted_as_they_are_read(tmp_path):
    encoder = build_encoder("text", f"sentence:{tiny_pairs.bert_folder(tmp_path / 'bert')}")
    short, long = count_tokens(encoder, ["a red cat", "a red cat " * 10])
    assert short == (5, False)
    assert long == (32, True)
    assert int(encoder.tokenize(["a red cat"]).seen.sum()) == 5
