"""Scores against transformers' own models, against one pair at a time, and by hand; each distinct picture and text is encoded once."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_pairs
import torch
from PIL import Image
from tiny_scores import job, json_lines, picture, rows_of, scored, some_pairs

from vlm.backbones.image import IMAGE
from vlm.backbones.text import TEXT
from vlm.conf.contrastive import HeadConfig
from vlm.models.open import open_dual
from vlm.score.metrics import clipscore, refclipscore
from vlm.score.opening import open_job
from vlm.score.scoring import MOST_REFERENCES
from vlm.score.vectors import Remembered

CAPTIONS = ["A caption.", "Another, longer caption of a picture.", "third", "A caption."]
LONG = "A caption that goes on and on, for ever and ever. " * 20


def table(folder: Path, captions: list[str] = CAPTIONS, **columns) -> Path:
    rows = [{"image": picture(folder / f"{i}.png", i, (40 + 7 * i, 33)).name, "caption": text} for i, text in enumerate(captions)]
    return json_lines(folder / "pairs.jsonl", [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)])


def scores(folder: Path, pairs: Path, **settings):
    out = folder / f"out-{len(list(folder.glob('out-*')))}.parquet"
    scored(job(pairs, out, **settings))
    return rows_of(out)


def open_clip_pair(folder: Path, monkeypatch: pytest.MonkeyPatch, **kind: Any) -> str:
    """A tiny model of open_clip with weights in a file, by the name that `--model` takes."""
    open_clip = pytest.importorskip("open_clip")
    towers = {"vision_cfg": TINY_VIT, "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", {"embed_dim": 12} | towers | kind)
    torch.save(open_clip.create_model("tiny-vit").state_dict(), folder / "weights.pt")
    return f"open-clip:tiny-vit:{folder / 'weights.pt'}"


def trained_heads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of heads, as training writes it, with a scale and a bias of its own."""
    dual = tiny_pairs.dual("clip", tiny_pairs.two_towers("clip", folder / "towers"), text_head=HeadConfig("ape", hidden_width=12), loss="siglip")
    dual.save(folder / "heads")
    return str(folder / "heads")


TINY_VIT = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
TIMM = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
EACH_KIND = {
    "tiny-clip": lambda folder, monkeypatch: "tiny-clip",
    "tiny-siglip": lambda folder, monkeypatch: "tiny-siglip",
    "open_clip": open_clip_pair,
    "open_clip, custom text": partial(open_clip_pair, custom_text=True),
    "open_clip, timm": partial(open_clip_pair, custom_text=True, vision_cfg=TIMM, init_logit_bias=-10),
    "LLM2CLIP": lambda folder, monkeypatch: tiny_pairs.llm2clip_pair(folder / "llm2clip", monkeypatch),
    "trained heads": trained_heads,
}


@pytest.mark.parametrize("kind", EACH_KIND)
def test_pairs_are_as_one_at_a_time_by_the_model_itself(tmp_path, monkeypatch, kind):
    """`DualEncoder` on single pictures and texts, which its own tests compare with the published libraries. The last caption is longer than the model reads."""
    name = EACH_KIND[kind](tmp_path, monkeypatch)
    dual = open_dual(name, device="cpu", precision="fp32")
    (scale, bias), captions = dual.logit_scale(), [*CAPTIONS, LONG]
    found = scores(tmp_path, table(tmp_path, captions), model=name)
    assert len({round(row["cos"], 4) for row in found}) == len(captions)
    for i, row in enumerate(found):
        cos = float(dual.similarity([Image.open(tmp_path / f"{i}.png")], [captions[i]]))
        assert (row["row"], row["image"], row["caption"], row["status"], row["error"]) == (i, f"{i}.png", captions[i], "ok", "")
        assert row["cos"] == pytest.approx(cos, abs=1e-5)
        assert row["logit"] == pytest.approx(scale * cos + bias, abs=1e-3)
        assert row["clipscore"] == pytest.approx(2.5 * max(cos, 0), abs=1e-5)
        assert row["siglip_probability"] == (pytest.approx(1 / (1 + math.exp(-row["logit"])), abs=1e-6) if bias else None)
        assert (row["refclipscore"], row["truncated"]) == (None, i == len(CAPTIONS))
        assert row["truncated"] == (row["tokens"] > dual.text.max_length)
        assert (row["width"], row["height"]) == (40 + 7 * i, 33)


def test_a_caption_that_is_cut_has_its_whole_count_of_tokens_and_the_score_of_what_is_read(tmp_path):
    """tiny-clip reads 32 tokens, a byte each, between a beginning and an end."""
    texts = ["x" * 29, "x" * 30, "x" * 31, "x" * 30 + "y" * 500, "x" * 500]
    rows = scores(tmp_path, json_lines(tmp_path / "pairs.jsonl", [{"image": picture(tmp_path / "a.png", 0).name, "caption": text} for text in texts]))
    assert [(row["tokens"], row["truncated"]) for row in rows] == [(31, False), (32, False), (33, True), (532, True), (502, True)]
    assert [row["cos"] for row in rows[2:]] == pytest.approx([rows[1]["cos"]] * 3, abs=1e-6)
    assert rows[0]["cos"] != pytest.approx(rows[1]["cos"], abs=1e-5)


def test_the_probability_is_that_of_models_that_were_trained_with_sigmoids(tmp_path):
    for row in scores(tmp_path, table(tmp_path), model="tiny-siglip"):
        assert row["logit"] == pytest.approx(10 * row["cos"] - 10, abs=1e-4)
        assert row["siglip_probability"] == pytest.approx(1 / (1 + math.exp(-row["logit"])), abs=1e-6)


def test_references_and_prefix(tmp_path):
    dual = open_dual("tiny-clip", device="cpu", precision="fp32")
    references = [["One.", "Two words."], [], None, "A single reference."]
    found = scores(tmp_path, table(tmp_path, refs=references), refs_col="refs", prefix="A photo depicts ")
    for i, row in enumerate(found):
        candidate = dual.encode_text([f"A photo depicts {CAPTIONS[i]}"])
        first = 2.5 * max(0.0, float(dual.encode_image([Image.open(tmp_path / f"{i}.png")]) @ candidate.T))
        assert row["clipscore"] == pytest.approx(first, abs=1e-5)
        texts = [references[i]] if isinstance(references[i], str) else references[i] or []
        if not texts:
            assert row["refclipscore"] is None
            continue
        second = max(0.0, *(float(dual.encode_text([f"A photo depicts {text}"]) @ candidate.T) for text in texts))
        assert row["refclipscore"] == pytest.approx(2 * first * second / (first + second) if first and second else 0, abs=1e-5)


def test_refclipscore_is_a_harmonic_mean_and_0_where_one_is():
    cos, reference = torch.tensor([0.4, -0.1, 0.3, 0.2]), torch.tensor([0.5, 0.9, -0.2, 1.0])
    assert clipscore(cos).tolist() == pytest.approx([1.0, 0.0, 0.75, 0.5])
    assert refclipscore(cos, reference).tolist() == pytest.approx([2 * 1.0 * 0.5 / 1.5, 0.0, 0.0, 2 * 0.5 / 1.5])


def test_every_row_has_its_status_and_the_others_are_scored(tmp_path):
    good = picture(tmp_path / "good.png", 0).name
    (tmp_path / "broken.png").write_bytes(b"nothing")
    rows = [
        {"image": good, "caption": "one"},
        {"image": good, "caption": " \n"},
        {"image": "broken.png", "caption": "two"},
        {"image": "missing.png", "caption": "two"},
        {"image": "http://a.org/x.png", "caption": "two"},
        {"image": good},
        {"caption": "two"},
        {"image": good, "caption": "one", "refs": ["x"] * 2 + [str(i) for i in range(MOST_REFERENCES + 1)]},
        {"image": "broken.png", "caption": "one"},
        {"image": good, "caption": "one"},
    ]
    pairs = json_lines(tmp_path / "pairs.jsonl", rows)
    with pairs.open("a", encoding="utf-8") as file:
        file.write('\n{"image": \n{"image": "good.png", "caption": "last"}\n')
    found = scores(tmp_path, pairs, refs_col="refs")
    expected = "ok empty_text decode_error fetch_error fetch_error empty_text row_error row_error decode_error ok row_error ok"
    assert [row["status"] for row in found] == expected.split()
    assert [row["row"] for row in found] == list(range(12))
    for row in found:
        assert (row["error"] == "") == (row["status"] == "ok") == (row["cos"] is not None) == (row["tokens"] is not None)
    assert found[0]["cos"] == found[9]["cos"]


def test_a_value_that_is_not_finite_is_a_status(tmp_path):
    opened = open_job(job(table(tmp_path), tmp_path / "out.parquet"))
    inner = opened.scorer.encoder.images
    opened.scorer.encoder.images = lambda tiles: inner(tiles) * torch.tensor([[1.0], [math.nan], [1.0], [1.0]])
    with opened.scorer:
        _, pairs = next(opened.table.parts(10, lambda index: True))
        (batch,) = opened.scorer.tables(pairs)
    assert batch.column("status").to_pylist() == ["ok", "model_error", "ok", "ok"]
    assert batch.column("cos").to_pylist()[1] is None
    assert batch.column("clipscore").to_pylist()[1] is None


@pytest.mark.parametrize("settings", [{}, {"batch_size": "1", "batch_tokens": 1, "workers": 1}, {"batch_size": "2", "part_rows": 4}])
def test_each_distinct_picture_and_text_is_encoded_once_in_whatever_batches(tmp_path, settings):
    pairs = some_pairs(tmp_path, rows=24, images=3)
    outcome = scored(job(pairs, tmp_path / "out.parquet", **settings))
    assert (outcome.rows, outcome.images, outcome.texts) == (24, 3, 4)
    found = rows_of(tmp_path / "out.parquet")
    assert [row["cos"] for row in found[:12]] == [row["cos"] for row in found[12:]]
    assert len({row["cos"] for row in found}) == 12


def test_rows_beyond_a_window_and_beyond_what_is_remembered_are_right(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.score.scoring.WINDOW", 4)
    monkeypatch.setattr("vlm.score.scoring.MOST_REFERENCES", 3)
    pairs = some_pairs(tmp_path, rows=60, images=7)
    scored(job(pairs, tmp_path / "few.parquet", batch_size="1", remember=4))
    scored(job(pairs, tmp_path / "all.parquet"))
    few, whole = rows_of(tmp_path / "few.parquet"), rows_of(tmp_path / "all.parquet")
    assert [row["cos"] for row in few] == pytest.approx([row["cos"] for row in whole], abs=1e-5)


def test_rows_of_remembered_vectors_go_to_those_that_were_used_last():
    store = Remembered(2, 1)
    assert store.assign(["a", "b", "a"]) == ({"a": 0, "b": 1}, {"a": 0, "b": 1})
    store.write(torch.tensor([0, 1]), torch.tensor([[1.0], [2.0]]))
    assert store.assign(["a", "c"]) == ({"a": 0, "c": 1}, {"c": 1})
    assert store.read(torch.tensor([1])).item() == 2.0  # until the new one is written
    assert store.assign(["b"]) == ({"b": 0}, {"b": 0})
    with pytest.raises(ValueError, match="More than 2"):
        store.assign(["x", "y", "z"])


def test_long_texts_make_short_windows_and_are_remembered_by_a_digest(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.score.scoring.HELD_BYTES", 1_000)
    opened = open_job(job(json_lines(tmp_path / "pairs.jsonl", [{"image": "no.png", "caption": "word " * 300}] * 5), tmp_path / "out.parquet"))
    with opened.scorer:
        _, pairs = next(opened.table.parts(10, lambda index: True))
        assert [len(batch) for batch in opened.scorer.tables(pairs)] == [1] * 5
    store = Remembered(2, 1)
    store.assign(["x" * 10**6])
    assert [len(key) for key in store._rows] == [16]


def test_columns_of_the_input_are_carried_and_the_root_of_pictures_is_named(tmp_path):
    from vlm.score.parts import read_facts

    found = scores(tmp_path, table(tmp_path, id=[7, "x", None, [1]]), carry=("id",))
    assert [row["id"] for row in found] == ["7", "x", None, "[1]"]
    assert Path(read_facts(tmp_path / "out-0.parquet")["image_root"]) == tmp_path.resolve()


def test_paths_of_tables_in_several_folders_are_written_whole(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        table(tmp_path / name)
    scored(job(tmp_path / "*" / "pairs.jsonl", tmp_path / "out.parquet"))
    assert [Path(row["image"]) for row in rows_of(tmp_path / "out.parquet")] == [tmp_path / name / f"{i}.png" for name in "ab" for i in range(4)]


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip"])
def test_logits_are_the_diagonal_of_transformers_own(tmp_path, name):
    """A whole model of transformers in a folder, asked with its own processor."""
    import transformers

    kind, vision, text = {"tiny-clip": "CLIP", "tiny-siglip": "Siglip"}[name], IMAGE[f"{name}-image"], TEXT[f"{name}-text"]
    words = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1} | dict(text.architecture)
    config = getattr(transformers, f"{kind}Config")(vision_config=dict(vision.architecture), text_config=words, projection_dim=8)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.logit_scale.fill_(1.5)
    model.save_pretrained(tmp_path / "model")
    tokenizer = text.tokenizer(text, None)
    tokenizer.save_pretrained(tmp_path / "model")
    pairs = table(tmp_path)
    found = scores(tmp_path, pairs, model=name, image_source=str(tmp_path / "model"), text_source=str(tmp_path / "model"))

    size, images = vision.image_size, [Image.open(tmp_path / f"{i}.png") for i in range(len(CAPTIONS))]
    sizes = (
        {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        if kind == "CLIP"
        else {"size": {"height": size, "width": size}}
    )
    pixels = getattr(transformers, f"{kind}ImageProcessorPil")(**sizes)(images, return_tensors="pt").pixel_values
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=text.max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits_per_image.diag()
    assert [row["logit"] for row in found] == pytest.approx(expected.tolist(), abs=1e-4)
    assert expected.std() > 0.1
