"""`vlm curate` on the command line."""

import errno
import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest
from captioned_squares import COLORS, write_squares
from score_files import write_scores

from vlm.__main__ import main as vlm
from vlm.data.fetched import cache_path
from vlm.score.scores import open_scores


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Two shards of scores of twelve squares, which lie in a folder that the shards name."""
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "squares")
    rows = [{"image": f"train-{color}.png", "caption": f"a {color} square", "cos": i / 100, "kind": str(i % 2)} for i, color in enumerate(COLORS)]
    for part in range(2):
        path = tmp_path / "scores" / f"part-{part}.parquet"
        write_scores(path, rows[6 * part : 6 * part + 6], carried=("kind",), first=6 * part, image_root=str(tmp_path / "squares"))
    return tmp_path


def kept(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("names", [["scores"], ["scores/part-*.parquet"], ["scores/part-0.parquet", "scores/part-1.parquet"]])
def test_the_best_of_several_shards_are_written_with_a_page_and_said(scored, capsys, names):
    assert vlm(["curate", *names, "--keep-top", "0.5", "--out", "sub/best.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "12 rows in 2 file(s)" in said and "6 left, 6 dropped; rule: 50 % of the highest cos" in said
    assert [row["id"] for row in kept(scored / "sub" / "best.jsonl")] == [6, 7, 8, 9, 10, 11]
    assert kept(scored / "sub" / "best.jsonl")[0]["image"] == "../squares/train-pink.png"
    assert "6 of 12 pairs kept" in (scored / "sub" / "best.html").read_text(encoding="utf-8")


def test_what_vlm_score_writes_is_what_these_tests_write(scored):
    rows = [{"image": f"squares/train-{color}.png", "caption": f"a {color} square", "kind": str(i % 2)} for i, color in enumerate(COLORS)]
    (scored / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for out in ("real.parquet", "real/"):  # one file, or a folder of parts
        line = ["score", "--pairs", "pairs.jsonl", "--model", "tiny-clip", "--carry", "kind", "--part-rows", "5", "--device", "cpu", "--out", out]
        assert vlm(line) == 0
        real, made = open_scores([out]), open_scores(["scores"])
        assert real.columns == made.columns and real.num_rows == made.num_rows and real.image_root == scored
        assert vlm(["curate", out, "--keep-top", "0.5", "--balance", "kind", "--by", "clipscore", "--out", f"{out.strip('/')}.jsonl"]) == 0
        values = [pyarrow.parquet.read_table(file).schema.remove_metadata() for file in (*real.files, *made.files)]
        assert all(value.equals(values[0]) for value in values)
    assert (scored / "real.parquet.jsonl").read_text() == (scored / "real.jsonl").read_text()


def test_a_balanced_subset_keeps_the_column_and_is_the_same_each_time(scored):
    line = ["curate", "scores", "--min-cos", "0.01", "--balance", "kind", "--per-value", "2"]
    assert vlm([*line, "--out", "a.csv"]) == 0
    assert vlm([*line, "--out", "b.csv"]) == 0
    assert (scored / "a.csv").read_text() == (scored / "b.csv").read_text()
    header, *rows = (scored / "a.csv").read_text(encoding="utf-8").splitlines()
    assert header == "id,image,caption,cos,kind" and [row.split(",")[0] for row in rows] == ["8", "9", "10", "11"]


def test_an_earlier_choice_is_replaced_only_when_that_is_said(scored, capsys):
    line = ["curate", "scores", "--keep-top", "0.5", "--out", "best.jsonl"]
    assert vlm(line) == 0
    before = (scored / "best.jsonl").read_text()
    assert vlm([*line[:3], "0.1", *line[4:]]) == 2
    assert "best.jsonl is there already. Name another file with --out, or add --overwrite." in capsys.readouterr().err
    assert (scored / "best.jsonl").read_text() == before
    assert vlm([*line[:3], "0.1", *line[4:], "--overwrite"]) == 0
    assert len(kept(scored / "best.jsonl")) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "Say which scores: `vlm curate scores.parquet --keep-top 0.3`"),
        (["scores"], "Say what to keep: --keep-top 0.3"),
        (["scores", "--keep-top", "30"], "--keep-top is a share, above 0 to 1, such as 0.3; got 30"),
        (["gone.parquet", "--keep-top", "0.3"], "gone.parquet matches no Parquet file"),
        (["scores", "--keep-top", "0.3", "--out", "best.parquet"], "best.parquet is to end with .jsonl or .csv"),
        (["scores", "--keep-top", "0.3", "--image-root", "scores"], "There is no picture scores/train-brown.png"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_writes_nothing(scored, capsys, line, said):
    before = sorted(scored.rglob("*"))
    assert vlm(["curate", *line]) == 2
    assert said in capsys.readouterr().err
    assert sorted(scored.rglob("*")) == before


def test_shards_of_pictures_in_different_folders_need_a_root(scored, capsys):
    write_scores(scored / "other.parquet", [{"image": "a", "caption": "b", "cos": 0.1}], image_root=str(scored))
    assert vlm(["curate", "scores", "other.parquet", "--keep-top", "0.5"]) == 2
    assert "curate files of one at a time, or say --image-root" in capsys.readouterr().err


def test_pictures_that_were_fetched_to_a_cache_or_have_a_file_for_their_url_are_kept_as_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "photos")
    urls = {color: f"https://a.test/x/train-{color}/big.png" for color in ("red", "blue", "lost")}
    kept_file = cache_path(tmp_path / "cache", urls["red"])
    kept_file.parent.mkdir(parents=True)
    kept_file.write_bytes((tmp_path / "photos" / "train-red.png").read_bytes())
    rows = [{"image": url, "caption": color, "cos": 0.5} for color, url in urls.items()]
    write_scores(tmp_path / "s.parquet", rows, image_root=str(tmp_path / "photos"), url_file="{4}.png", cache=str(tmp_path / "cache"))
    (tmp_path / "photos" / "train-red.png").unlink()
    assert vlm(["curate", "s.parquet", "--min-cos", "0", "--out", "sub/best.jsonl"]) == 0
    found = [json.loads(line)["image"] for line in (tmp_path / "sub" / "best.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found == [f"../cache/{kept_file.parent.name}/{kept_file.name}", "../photos/train-blue.png", urls["lost"]]
    assert (tmp_path / "sub" / "best.html").read_text(encoding="utf-8").count("a URL: pages load nothing from elsewhere") == 1


@pytest.mark.parametrize("out", ["best.jsonl", "sub/best.jsonl"])
def test_a_folder_that_cannot_be_written_is_one_line(scored, capsys, monkeypatch, out):
    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "open", "unlink"):
        monkeypatch.setattr(Path, name, refused)
    assert vlm(["curate", "scores", "--keep-top", "0.5", "--out", out]) == 2
    assert f"{out} cannot be written: Read-only file system. Name another file with --out." in capsys.readouterr().err
