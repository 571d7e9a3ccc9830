"""What is kept of scored pairs, against the same rules on lists."""

import numpy as np
import pytest
from score_files import write_scores

from vlm.errors import ConfigError, DataFormatError
from vlm.score.located import Pictures
from vlm.score.scores import open_scores
from vlm.score.selection import NO_SCORE, Fate, Rules, select

NUM = 2_500


@pytest.fixture(scope="module")
def rows():
    """Pairs with equal names, captions and cosines among them, some without a score."""
    random = np.random.default_rng(7)
    made = []
    for i in range(NUM):
        failed = random.random() < 0.1
        made.append(
            {
                "image": f"{random.integers(0, 300)}.jpg",
                "caption": f"a thing {random.integers(0, 9)}" + " " * int(random.integers(0, 2)),
                "cos": None if failed else float(np.float32(random.integers(-20, 60) / 100)),
                "status": "fetch_error" if failed and i % 2 else "ok",
                "kind": ["cat", "dog", "rare", None][int(random.choice(4, p=[0.6, 0.3, 0.02, 0.08]))],
            }
        )
    return made


@pytest.fixture(scope="module")
def scores(rows, tmp_path_factory):
    """Three shards."""
    folder = tmp_path_factory.mktemp("scores")
    for start in range(0, NUM, 1_100):
        write_scores(folder / f"part-{start:05}.parquet", rows[start : start + 1_100], carried=("kind",), first=start)
    return open_scores([str(folder / "part-*.parquet")])


def by_lists(rows, rules):
    """The rules one after the other on Python's lists."""
    kept = [i for i, row in enumerate(rows) if row["status"] == "ok" and row["cos"] is not None]
    if rules.min_cos is not None:
        kept = [i for i in kept if np.float32(rows[i]["cos"]) >= np.float32(rules.min_cos)]
    best_first = sorted(kept, key=lambda i: (-rows[i]["cos"], i))
    if rules.drop_duplicates:
        seen: dict[tuple[str, str], int] = {}
        for i in best_first:
            seen.setdefault((rows[i]["image"], rows[i]["caption"].strip()), i)
        best_first = list(seen.values())
    if rules.keep_top is not None:
        best_first = best_first[: max(1, round(rules.keep_top * len(best_first)))]
    if rules.balance:
        counts = {kind: sum(rows[i]["kind"] == kind for i in best_first) for kind in {rows[i]["kind"] for i in best_first}}
        cap = rules.per_value or min(counts.values())
        best_first = [i for n, i in enumerate(best_first) if sum(rows[j]["kind"] == rows[i]["kind"] for j in best_first[:n]) < cap]
    return sorted(best_first)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(min_cos=0.25),
        Rules(keep_top=0.3),
        Rules(drop_duplicates=True),
        Rules(balance="kind"),
        Rules(balance="kind", per_value=100),
        Rules(min_cos=-0.1, drop_duplicates=True, keep_top=0.5, balance="kind"),
    ],
    ids=str,
)
def test_what_is_kept_is_what_the_rules_keep_on_lists_and_the_steps_add_up(rows, scores, tmp_path, rules):
    selection = select(scores, rules, scratch=tmp_path)
    assert np.flatnonzero(selection.fates == Fate.KEPT).tolist() == by_lists(rows, rules)
    assert sum(step.dropped for step in selection.steps) + selection.num_kept == NUM
    assert [step.dropped for step in selection.steps] == [int((selection.fates == step.fate).sum()) for step in selection.steps]
    assert [step.fate for step in selection.steps] == sorted(step.fate for step in selection.steps)


def test_rows_without_a_score_are_counted_by_status(rows, scores, tmp_path):
    selection = select(scores, Rules(keep_top=1.0), scratch=tmp_path)
    assert selection.statuses["fetch_error"] == sum(row["status"] == "fetch_error" for row in rows)
    assert selection.statuses[NO_SCORE] == sum(row["status"] == "ok" and row["cos"] is None for row in rows)


def test_pictures_of_the_same_bytes_are_duplicates_under_any_name(tmp_path):
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        (tmp_path / name).write_bytes(content)
    write_scores(tmp_path / "s.parquet", [{"image": name, "caption": name, "cos": 0.1} for name in ("a", "b", "c", "gone", "gone too")])
    selection = select(open_scores([str(tmp_path)]), Rules(drop_duplicates=True, same="bytes"), scratch=tmp_path, pictures=Pictures(tmp_path))
    assert np.flatnonzero(selection.fates).tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "Say what to keep"),
        ({"min_cos": 30.0}, "--min-cos is a cosine, from -1 to 1; got 30"),
        ({"keep_top": 30.0}, "--keep-top is a share, above 0 to 1, such as 0.3; got 30"),
        ({"min_cos": 0.1, "same": "image"}, "--same image is for --drop-duplicates"),
        ({"min_cos": 0.1, "per_value": 3}, "--per-value 3 is for --balance"),
    ],
)
def test_rules_that_make_no_sense_are_one_line(settings, said):
    with pytest.raises(ConfigError, match=said):
        Rules(**settings)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Rules(balance="color"), "--balance color: .* has no such column; it has row, image, caption"),
        (Rules(keep_top=0.5, by="caption"), "The column caption holds string, not numbers"),
        (Rules(min_cos=0.99), "Nothing is left of 2,500 rows .*cosine of at least 0.99: 0 left"),
    ],
    ids=["no column", "no numbers", "nothing left"],
)
def test_rules_that_do_not_fit_the_scores_are_one_line(scores, tmp_path, rules, said):
    with pytest.raises((ConfigError, DataFormatError), match=said):
        select(scores, rules, scratch=tmp_path)


def test_files_that_are_no_scores_are_named(tmp_path):
    with pytest.raises(DataFormatError, match=r"nothing\.parquet matches no Parquet file"):
        open_scores([str(tmp_path / "nothing.parquet")])
    path = write_scores(tmp_path / "s.parquet", [{"image": "a", "caption": "b", "cos": 0.5}])
    with pytest.raises(DataFormatError, match="is named twice"):
        open_scores([str(path), str(tmp_path)])
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataFormatError, match=r"text\.parquet cannot be read as Parquet"):
        open_scores([str(tmp_path / "text.parquet")])
    write_scores(tmp_path / "empty" / "s.parquet", [])
    with pytest.raises(DataFormatError, match="has no row"):
        open_scores([str(tmp_path / "empty")])
