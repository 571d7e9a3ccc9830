"""Rows of every kind of table, cut into parts; what is wrong with a row is said in it, what is wrong with a table before anything else is done."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioned_squares import write_squares
from tiny_scores import job, json_lines, picture, rows_of, scored

from vlm.__main__ import main
from vlm.errors import ConfigError, DataFormatError, UnknownNameError
from vlm.score.job import Job, files_of
from vlm.score.pairs import Columns, PairTable, prepared_split, to_pair

COLUMNS = Columns("image", "caption")


def all_of(table: PairTable, part_rows: int = 3, wanted=lambda index: True):
    return [(index, None if pairs is None else list(pairs)) for index, pairs in table.parts(part_rows, wanted)]


def write(folder: Path, kind: str, count: int) -> Path:
    """The same rows as every kind of table."""
    rows = [{"image": f"{i}.png", "caption": f"caption {i}", "other": i} for i in range(count)]
    path = folder / f"pairs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "jsonl":
        json_lines(path, rows)
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        path.write_text("\n".join(mark.join(map(str, row)) for row in [rows[0], *(row.values() for row in rows)]), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_parts(tmp_path, kind):
    parts = all_of(PairTable([write(tmp_path, kind, 7)], COLUMNS))
    assert [(index, [pair.row for pair in pairs]) for index, pairs in parts] == [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6])]
    assert [pair.image for _, pairs in parts for pair in pairs] == [f"{i}.png" for i in range(7)]
    assert [pair.caption for _, pairs in parts for pair in pairs] == [f"caption {i}" for i in range(7)]


@pytest.mark.parametrize("part_rows", [1, 3, 4, 5, 26])
def test_parts_that_are_not_wanted_are_passed_over_across_files(tmp_path, part_rows):
    files = []
    for kind, count in (("csv", 3), ("parquet", 11), ("jsonl", 2)):
        (tmp_path / kind).mkdir()
        files.append(write(tmp_path / kind, kind, count))
    (tmp_path / "last").mkdir()
    table = PairTable([*files, write(tmp_path / "last", "parquet", 9)], COLUMNS)
    whole = [pair for _, pairs in all_of(table, part_rows) for pair in pairs]
    assert [pair.row for pair in whole] == list(range(25))
    assert [pair.folder.name for pair in whole] == ["csv"] * 3 + ["parquet"] * 11 + ["jsonl"] * 2 + ["last"] * 9
    odd = all_of(table, part_rows, lambda index: index % 2 == 1)
    assert [pair for _, pairs in odd if pairs is not None for pair in pairs] == [pair for pair in whole if pair.row // part_rows % 2 == 1]
    assert len(odd) == table.count_parts(part_rows) == -(-25 // part_rows)


def test_a_caller_that_leaves_rows_of_a_part_gets_the_next_part_whole(tmp_path):
    parts = PairTable([write(tmp_path, "csv", 5)], COLUMNS).parts(3, lambda index: True)
    _, first = next(parts)
    next(first)
    _, second = next(parts)
    assert [pair.row for pair in second] == [3, 4]


def test_a_csv_row_of_empty_cells_is_a_row(tmp_path):
    (tmp_path / "p.csv").write_text("image,caption\na.png,one\n,\nb.png,two\n", encoding="utf-8")
    ((_, pairs),) = all_of(PairTable([tmp_path / "p.csv"], COLUMNS), 10)
    assert [pair.caption for pair in pairs] == ["one", "", "two"]
    assert "it is empty" in pairs[1].fault


def test_pictures_in_the_row_are_known_by_their_bytes(tmp_path):
    content = picture(tmp_path / "a.png", 0).read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    cells = [content, url, {"bytes": content, "path": "a.png"}]
    pairs = [to_pair({"image": cell, "caption": "c"}, 0, tmp_path, COLUMNS) for cell in cells]
    assert {pair.content for pair in pairs} == {content}
    assert len({pair.image for pair in pairs}) == 1
    assert pairs[0].image.startswith("sha256:")
    by_path = to_pair({"image": {"bytes": None, "path": "a.png"}, "caption": "c"}, 0, tmp_path, COLUMNS)
    assert (by_path.image, by_path.content) == ("a.png", None)


@pytest.mark.parametrize(
    "row, fault",
    [
        (DataFormatError("not JSON"), "not JSON"),
        ([1, 2], "not an object of columns"),
        ({"caption": "c"}, "names no picture"),
        ({"image": 7, "caption": "c"}, "names no picture: 7"),
        ({"image": "data:image/png;base64,?", "caption": "c"}, "data URL"),
        ({"image": "a.png", "caption": 7}, "holds int, not text"),
        ({"image": "a.png", "caption": "c", "refs": [1]}, "not a text or a list of texts"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_it(tmp_path, row, fault):
    assert fault in to_pair(row, 0, tmp_path, Columns("image", "caption", "refs")).fault


@pytest.mark.parametrize(
    "cell, references",
    [
        (["a", "b", "a", " "], ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("one text", ("one text",)),
        ("[sic] a text", ("[sic] a text",)),
        (None, ()),
        ("", ()),
    ],
)
def test_references_are_a_list_or_a_text(tmp_path, cell, references):
    pair = to_pair({"image": "a.png", "caption": "c", "refs": cell}, 0, tmp_path, Columns("image", "caption", "refs"))
    assert (pair.references, pair.fault) == (references, "")


def test_carried_cells_are_text(tmp_path):
    pair = to_pair(
        {"image": "a", "caption": "c", "id": 7, "tags": ["x"], "none": None}, 0, tmp_path, Columns("image", "caption", "", ("id", "tags", "none"))
    )
    assert pair.carried == ("7", '["x"]', None)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"has no column 'url'; it has image, caption, other\. Name it with --image-col"):
        PairTable([write(tmp_path, kind, 2)], Columns("url", "caption"))


def test_a_table_of_another_kind_is_refused(tmp_path):
    (tmp_path / "p.xlsx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"rows are read from .json"):
        PairTable([tmp_path / "p.xlsx"], COLUMNS)


def test_patterns_name_files_in_their_order(tmp_path):
    for name in ("b-2.csv", "b-1.csv", "a.csv"):
        (tmp_path / name).touch()
    assert [path.name for path in files_of((str(tmp_path / "b-*.csv"), str(tmp_path / "a.csv")))] == ["b-1.csv", "b-2.csv", "a.csv"]
    with pytest.raises(ConfigError, match="nothing fits it"):
        files_of((str(tmp_path / "c-*.csv"),))
    with pytest.raises(ConfigError, match="twice"):
        files_of((str(tmp_path / "a.csv"), str(tmp_path / "*.csv")))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"images": "web"}, "not one of local, url, auto"),
        ({"part_rows": 0}, "--part-rows is at least 1"),
        ({"batch_size": "many"}, "auto or a whole number"),
        ({"allow_host": ("a.org",)}, "nothing is fetched"),
        ({"allow_host": ("https://a.org",), "images": "url"}, "--allow-host is 'https://a.org', which is no host's name"),
        ({"url_file": "{4}.png"}, "needs --images local and --image-root"),
    ],
)
def test_settings_that_cannot_be_or_have_no_effect_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Job(**settings)


def test_a_missing_column_names_those_that_are_alike(tmp_path):
    (tmp_path / "pairs.csv").write_text("Image,captions,id\na.png,text,1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no column 'image'; it has Image, captions, id\. Did you mean 'Image'\? Name it with --image-col"):
        PairTable([tmp_path / "pairs.csv"], COLUMNS)
    with pytest.raises(ConfigError, match=r"Did you mean 'captions'\? Name it with --text-col"):
        PairTable([tmp_path / "pairs.csv"], Columns("Image", "caption"))


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a.png"]), pa.array(["x"]), pa.array(["y"])], names=["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "pairs.parquet")
    with pytest.raises(DataFormatError, match="two columns of one name"):
        PairTable([tmp_path / "pairs.parquet"], COLUMNS)


@pytest.mark.parametrize("cells", [{"image": "a\ud800.png"}, {"caption": "\udfff"}, {"refs": ["fine", "\ud800"]}])
def test_half_of_a_surrogate_pair_is_a_fault_and_can_be_written(cells):
    pair = to_pair({"image": "a.png", "caption": "text"} | cells, 0, Path(), Columns("image", "caption", "refs", ("caption",)))
    assert pair.fault == "a text is not valid Unicode: it holds half of a surrogate pair."
    assert all(text.isascii() for text in (pair.image, pair.caption, *pair.carried))


@pytest.fixture
def squares(tmp_path, monkeypatch) -> Path:
    """What `vlm preprocess` makes of two squares and their names."""
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "squares")
    rows = [{"image": f"squares/train-{color}.png", "caption": f"a {color} square"} for color in ("green", "blue")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["preprocess", "--dataset-id", "pairs.jsonl", "--root-dir", "data", "--workers", "1"]) == 0
    return tmp_path / "data" / "pairs"


def test_the_rows_of_a_prepared_dataset_are_scored(squares, tmp_path):
    assert scored(job(squares, tmp_path / "scores.parquet", carry=("id",))).statuses == {"ok": 2}
    found = rows_of(tmp_path / "scores.parquet")
    assert [row["caption"] for row in found] == ["a green square", "a blue square"]
    assert all((squares / row["image"]).is_file() and row["id"] for row in found)
    assert main(["curate", str(tmp_path / "scores.parquet"), "--keep-top", "0.5", "--out", "kept.jsonl"]) == 0


def test_a_split_is_named_behind_the_folder(squares):
    (split,) = json.loads((squares / "manifest.json").read_text(encoding="utf-8"))["splits"]
    assert files_of((f"{squares}@{split}",)) == [squares / f"samples-{split}.parquet"]
    with pytest.raises(UnknownNameError, match=r"No split of .* named 'other'"):
        files_of((f"{squares}@other",))


def test_a_mix_is_refused_with_its_parts_and_other_folders_are_none(squares):
    values = json.loads((squares / "manifest.json").read_text(encoding="utf-8")) | {"parts": ["a", "b"]}
    (squares / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mix of prepared datasets\. Name them instead: .*data/a, .*data/b"):
        prepared_split(str(squares))
    (squares / "manifest.json").write_text('{"kind": "features"}', encoding="utf-8")
    assert prepared_split(str(squares)) is prepared_split("nowhere") is None


def test_a_sample_of_several_pictures_is_a_fault(tmp_path):
    answer = {"role": "assistant", "text": "An answer."}
    rows = [{"id": "x", "images": ["a.png"] * count, "messages": [answer] * (count > 0)} for count in (1, 2, 0)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "samples.parquet")
    (_, pairs), *_ = all_of(PairTable([tmp_path / "samples.parquet"], COLUMNS))
    assert [(pair.image, pair.caption, pair.fault) for pair in pairs[:1]] == [("a.png", "An answer.", "")]
    assert [pair.fault for pair in pairs[1:]] == [f"the sample 'x' has {count} pictures; a pair has one." for count in (2, 0)]


def test_columns_of_another_trainer_are_not_taken_for_a_prepared_datasets(tmp_path):
    row = {"id": "a caption", "images": "a.png", "messages": [{"role": "assistant", "content": "An answer."}]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "theirs.parquet")
    (_, (pair,)), *_ = all_of(PairTable([tmp_path / "theirs.parquet"], Columns("images", "id")))
    assert (pair.image, pair.caption, pair.fault) == ("a.png", "a caption", "")
    with pytest.raises(ConfigError, match="it has id, images, messages"):
        PairTable([tmp_path / "theirs.parquet"], COLUMNS)


def faults(path: Path) -> list[str]:
    table = PairTable([path], Columns("image", "caption"))
    return [pair.fault for _, part in table.parts(10, lambda _: True) for pair in part]


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.parquet"])
def test_a_text_that_is_not_utf8_is_a_fault_of_its_row(tmp_path, name):
    path, captions = tmp_path / name, [b"x", b"caf\xe9", b"y"]
    if name == "pairs.parquet":
        pq.write_table(pa.table({"image": ["a.png"] * 3, "caption": pa.array(captions, pa.binary()).view(pa.string())}), path)
    elif name == "pairs.csv":
        path.write_bytes(b"image,caption\n" + b"".join(b"a.png,%s\n" % caption for caption in captions))
    else:
        path.write_bytes(b"".join(b'{"image": "a.png", "caption": "%s"}\n' % caption for caption in captions))
    first, second, third = faults(path)
    assert (first, third) == ("", "") and "UTF-8" in second


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_a_file_in_another_encoding_is_refused_whole(tmp_path, name):
    text = "image,caption\na.png,x\n" if name == "pairs.csv" else '{"image": "a.png", "caption": "x"}\n'
    (tmp_path / name).write_text(text, encoding="utf-16")
    with pytest.raises(DataFormatError, match="is not UTF-8"):
        PairTable([tmp_path / name], Columns("image", "caption"))


def test_a_table_of_a_header_alone_has_no_pair(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,caption\n", encoding="utf-8")
    assert faults(tmp_path / "pairs.csv") == []
    (tmp_path / "other.csv").write_text("image,captions\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean 'captions'"):
        PairTable([tmp_path / "other.csv"], Columns("image", "caption"))
