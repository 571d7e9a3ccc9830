"""The command from its line to its file, alone and by several processes; what it says when a line cannot be."""

import pytest
from tiny_scores import picture, rows_of, some_pairs

from vlm.__main__ import main as vlm
from vlm.score.parts import read_facts

TINY = ["--model", "tiny-clip", "--device", "cpu", "--precision", "fp32"]


def test_a_table_is_scored_and_the_end_is_told(tmp_path, capsys):
    pairs, out = some_pairs(tmp_path), tmp_path / "scores.parquet"
    assert vlm(["score", "--pairs", str(pairs), "--out", str(out), *TINY]) == 0
    said = capsys.readouterr().out
    assert "10 rows in" in said
    assert "3 pictures and 4 texts encoded" in said
    assert "10 rows, 10 ok." in said
    assert len(rows_of(out)) == 10


def test_scores_of_other_settings_are_replaced_when_told_so(tmp_path, capsys):
    pairs, out = some_pairs(tmp_path), tmp_path / "scores.parquet"
    line = ["score", "--pairs", str(pairs), "--out", str(out), *TINY]
    assert vlm(line) == 0
    assert vlm([*line, "--prefix", "A photo depicts "]) == 2
    assert "prefix was" in capsys.readouterr().err
    assert vlm([*line, "--prefix", "A photo depicts ", "--overwrite"]) == 0


def test_the_line_has_the_last_word_over_the_configuration_file(tmp_path, capsys):
    pairs = some_pairs(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(f"pairs: {pairs}\nmodel: no-such-model\nprecision: fp32\nout: {tmp_path / 'scores.parquet'}\n", encoding="utf-8")
    assert vlm(["score", "--config", str(config)]) == 2
    assert "no-such-model" in capsys.readouterr().err
    assert vlm(["score", "--config", str(config), "--model", "tiny-clip", "--device", "cpu"]) == 0
    assert len(rows_of(tmp_path / "scores.parquet")) == 10


@pytest.fixture
def original(tmp_path):
    """The original tool's configuration file, with pictures that are called after a part of their URL, and the URLs of its table."""
    photos = tmp_path / "photos"
    photos.mkdir()
    urls = [f"https://photos.example/of/{picture(photos / f'{i}.png', i).stem}/large.jpg" for i in range(5)]
    (tmp_path / "pairs.csv").write_text("\n".join(["url,caption", *(f"{url},Caption number {i}." for i, url in enumerate(urls))]), encoding="utf-8")
    keys = {"csv_path": tmp_path / "pairs.csv", "image_path": photos, "use_cuda": "false", "pretrained_model": "tiny-clip", "img_resize": 800}
    (tmp_path / "config.yaml").write_text("\n".join(f"{key}: {value}" for key, value in keys.items()), encoding="utf-8")
    return tmp_path / "config.yaml", urls


@pytest.mark.parametrize(
    "flags, dtype, near",
    [
        (["--precision", "bf16"], "bfloat16", 0.02),
        pytest.param(["--precision", "fp32", "--compile"], "float32", 1e-5, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
    ],
    ids=["bf16", "compiled"],
)
def test_the_file_of_the_original_tool_is_scored_in_other_ways_nearly_as_in_fp32(original, tmp_path, capsys, caplog, flags, dtype, near):
    config, urls = original
    before, cosines = (tmp_path / "pairs.csv").read_bytes(), []
    caplog.set_level("INFO", "vlm")
    for settings in (["--precision", "fp32"], flags):
        out = tmp_path / f"{len(cosines)}.parquet"
        assert vlm(["score", "--config", str(config), "--out", str(out), *settings]) == 0
        assert "5 rows, 5 ok." in capsys.readouterr().out
        assert [row["image"] for row in rows_of(out)] == urls
        cosines.append([row["cos"] for row in rows_of(out)])
    assert read_facts(out)["settings"]["dtype"] == dtype
    assert cosines[1] == pytest.approx(cosines[0], abs=near) and (dtype == "float32" or cosines[1] != cosines[0])
    assert "img_resize 800 has no effect" in caplog.text
    assert ("compiled both encoders" in caplog.text) == ("--compile" in flags)
    assert (tmp_path / "pairs.csv").read_bytes() == before


def test_an_estimate_writes_nothing(tmp_path, capsys):
    pairs = some_pairs(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert vlm(["score", "--pairs", str(pairs), "--out", str(tmp_path / "s.parquet"), *TINY, "--estimate", "100000000", "--price-per-hour", "2"]) == 0
    said = capsys.readouterr().out
    assert "100,000,000 pairs by one process" in said
    assert "at 2 an hour" in said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "line, message",
    [
        ([], "Say which pairs"),
        (["--pairs", "missing.csv"], "no such file"),
        (["--shard", "1/2", "--overwrite"], "--shard shares the parts"),
        (["--price-per-hour", "2"], "--price-per-hour is about --estimate"),
        (["--engine", "spark"], "not one of local, ray"),
        (["--actors", "2"], "need --engine ray"),
    ],
)
def test_lines_that_cannot_be_are_refused(capsys, line, message):
    try:
        code = vlm(["score", *line, *TINY])
    except SystemExit as end:  # tyro's, of settings that are wrong by themselves
        code = end.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.dist
def test_two_processes_score_as_one(tmp_path, torchrun):
    pairs = some_pairs(tmp_path, rows=11)
    line = ["score", "--pairs", str(pairs), *TINY, "--part-rows", "2"]
    assert vlm([*line, "--out", str(tmp_path / "one.parquet")]) == 0
    done = torchrun("-m", "vlm", *line, "--out", tmp_path / "two.parquet", timeout=150)
    assert done.stdout.count("11 rows, 11 ok.") == 1
    one, two = rows_of(tmp_path / "one.parquet"), rows_of(tmp_path / "two.parquet")
    assert [row["row"] for row in two] == list(range(11))
    assert [row["cos"] for row in two] == pytest.approx([row["cos"] for row in one], abs=1e-5)
    assert not (tmp_path / "two.parquet.parts").exists()
