import json
from dataclasses import replace

import pytest
from color_embedder import COLORS, color_embedder
from PIL import Image
from tiny_archives import build
from tiny_pairs import dual, llm2clip_pair, two_towers

from vlm.__main__ import main as vlm
from vlm.commands.evaluate import main
from vlm.data.datasets import DATASETS
from vlm.data.preparation.prepare import prepare
from vlm.errors import ConfigError, UnknownNameError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))
    for name, rgb in COLORS.items():
        (tmp_path / "colors" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), rgb).save(tmp_path / "colors" / name / "a.png")
    return tmp_path / "colors"


@pytest.fixture
def rows(folders):
    """Captions of the same pictures."""
    path = folders.parent / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"image": f"colors/{name}/a.png", "captions": [name, f"all {name}"]}) for name in COLORS), encoding="utf-8")
    return path


def test_zero_shot_of_two_models_prints_a_table_and_where_the_results_are(folders, capsys):
    (folders / "red" / "broken.png").write_bytes(b"")
    main(["zero-shot", "colors", "--model", "one", "--model", "two", "--templates", "single", "--resamples", "20"], load=color_embedder)
    said = capsys.readouterr().out
    assert "one" in said and "two" in said and "chance" in said and "100.0 (100.0 to 100.0)" in said
    assert "1 picture(s) cannot be read and are not measured; first red/broken.png" in said
    assert "Not checked whether these images were trained on" in said and said.endswith("runs/evaluate/zero-shot-colors/report.html\n")
    assert (
        json.loads((folders.parent / "runs/evaluate/zero-shot-colors/two_colors_zeroshot_classification.json").read_text(encoding="utf-8"))[
            "metrics"
        ]["acc1"]
        == 1.0
    )


def test_retrieval_refuses_pictures_that_were_trained_on_unless_that_is_allowed_and_said(folders, rows, capsys):
    train = folders.parent / "train.json"
    train.write_text(json.dumps([{"image": f"colors/{name}/a.png", "caption": "x"} for name in ("red", "blue", "cyan")]), encoding="utf-8")
    line = ["retrieval", str(rows), "--model", "m", "--resamples", "20", "--trained-on", str(train), "--out", "out"]
    with pytest.raises(ConfigError, match=r"50 % of these images were trained on: 3 of 6 .*first colors/red/a\.png, .*--allow-overlap"):
        main(line, load=color_embedder)
    assert not (folders.parent / "out").exists()
    main([*line, "--allow-overlap"], load=color_embedder)
    assert "50 % of these images were trained on" in capsys.readouterr().out
    assert "50 % of these images were trained on" in (folders.parent / "out" / "report.html").read_text(encoding="utf-8")


def test_karpathys_test_pictures_of_prepared_coco_are_grouped_and_are_not_in_its_training_split(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))
    spec = DATASETS["coco-captions"]
    archives = tuple(replace(archive, size=0, checksum="", unpacked=0) for archive in spec.archives)  # the small archives are not the published ones
    monkeypatch.setitem(DATASETS._tables[0], "coco-captions", replace(spec, archives=archives))
    build("coco-captions", tmp_path / "archives")
    prepare("coco-captions", tmp_path / "data", from_archives=tmp_path / "archives", workers=1)
    line = [
        "retrieval",
        "coco-captions@test",
        "--data-root",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
        "--resamples",
        "5",
        "--model",
        "m",
    ]
    main([*line, "--trained-on", "coco-captions@train"], load=color_embedder)
    assert "None of 1 pictures was trained on, by id and by content." in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"100 % of these images were trained on: 1 of 1 \(1 by id, 1 by content\), first 42\."):
        main([*line, "--trained-on", "coco-captions@test"], load=color_embedder)


def test_settings_that_make_no_sense_are_one_line(folders, rows, capsys):
    with pytest.raises(ConfigError, match="Say which model: --model NAME"):
        main(["zero-shot", "colors"], load=color_embedder)
    with pytest.raises(ConfigError, match="name it with --trained-on"):
        main(["retrieval", str(rows), "--model", "m", "--allow-overlap"], load=color_embedder)
    with pytest.raises(SystemExit):
        main(["zero-shot", "colors", "--resamples", "0"], load=color_embedder)
    assert "--resamples is at least 1; got 0" in capsys.readouterr().err
    with pytest.raises(UnknownNameError, match="Did you mean 'retrieval'"):
        main(["retrival"], load=color_embedder)
    assert vlm(["evaluate", "zero-shot", "colors", "--model", "gone"]) == 2
    assert "There is no run that begins with 'gone'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--text-source is for one --model; got 2"):
        main(["zero-shot", "colors", "--model", "a", "--model", "b", "--text-source", "x"], load=color_embedder)


def test_help_names_both_evaluations_and_where_models_compute(capsys):
    assert vlm(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    assert "zero-shot" in said and "retrieval" in said
    with pytest.raises(SystemExit):
        vlm(["evaluate", "zero-shot", "--help"])
    said = capsys.readouterr().out
    assert "--device" in said and "--precision" in said and "published pair" in said


@pytest.fixture
def llm2clip(tmp_path, monkeypatch):
    return llm2clip_pair(tmp_path / "llm2clip", monkeypatch)


def test_a_head_a_published_pair_and_llm2clip_stand_side_by_side(folders, rows, llm2clip, capsys):
    dual("clip", two_towers("clip", folders.parent / "towers")).save(folders.parent / "heads")
    names = ["heads", "tiny-siglip", llm2clip]
    options = [*(word for name in names for word in ("--model", name)), "--resamples", "5", "--device", "cpu", "--precision", "fp32"]
    for evaluation, data in (("retrieval", str(rows)), ("zero-shot", "colors")):
        assert vlm(["evaluate", evaluation, data, *options, "--out", evaluation]) == 0
        results = [json.loads(path.read_text(encoding="utf-8")) for path in (folders.parent / evaluation).glob("*_*.json")]
        assert sorted(result["model"] for result in results) == sorted(names)
        page = (folders.parent / evaluation / "report.html").read_text(encoding="utf-8")
        assert all(name in page for name in names)
    assert vlm(["evaluate", "zero-shot", "colors", "--model", "heads", "--device", "tpu"]) == 2
    assert "tpu" in capsys.readouterr().err
