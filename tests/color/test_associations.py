import numpy as np
import pytest

from vlm.color.associations import Associations, colors_of, interpolated, read_associations, read_ratings
from vlm.color.colors import UW71, open_colors
from vlm.errors import DataFormatError


def written(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_ratings_are_70_concepts_by_71_colors():
    ratings = read_ratings()
    assert ratings.values.shape == (70, 71) and ratings.colors == open_colors(UW71).names
    yellow = open_colors(UW71).hexes[int(ratings.of(["banana"]).values[0].argmax())]
    assert yellow == "#fcdb42"


def test_columns_are_read_by_name_and_numbered_from_1(tmp_path):
    shuffled = read_associations(written(tmp_path, ",2,1\napple,0.2,0.1\n"))
    assert shuffled.at(["1", "2"]).values.tolist() == [[0.1, 0.2]]
    assert read_associations(written(tmp_path, ",0,1\napple,0.1,0.2\n")).colors == ("1", "2")
    assert read_associations(written(tmp_path, '"","V1","V2"\n"apple",0.1,0.2\n')).colors == ("1", "2")


def test_csv_is_that_of_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    values = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    own = Associations(("apple", "a, b"), ("1", "2", "3"), values, "test")
    assert own.as_csv() == pandas.DataFrame(values, index=["apple", "a, b"], columns=["1", "2", "3"]).to_csv()
    assert np.array_equal(read_associations(written(tmp_path, own.as_csv())).values.astype(np.float32), values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n", "is no table of associations"),
        (",1,2\na,1\n", "Line 2 of .* has 2 cells, its header 3"),
        (",1,1\na,1,1\n", "two colors named '1'"),
        (",1\na,1\na,1\n", "two concepts named 'a'"),
        (",1\na,x\n", "has 'x' for 'a'; every cell must be a finite number"),
        (",1\na,\n", "has '' for 'a'"),
        (",1\na,nan\n", "has 'nan' for 'a'"),
        (",1\na,1e300\n", "has '1e300' for 'a'.* at most 1e[+]100"),
        (";1;2\na;1;2\n", "separated by commas"),
    ],
)
def test_broken_tables_are_refused(tmp_path, text, says):
    with pytest.raises(DataFormatError, match=says):
        read_associations(written(tmp_path, text))


def test_ratings_beyond_0_to_1_are_refused(tmp_path):
    with pytest.raises(DataFormatError, match=r"go from -0\.5 to 2; expected 0 to 1\. Divide ratings by the highest value of their scale\."):
        read_ratings(written(tmp_path, ",1,2\na,-0.5,2\n"))


def test_unknown_concepts_and_colors_are_named():
    ratings = read_ratings()
    with pytest.raises(DataFormatError, match=r"No concept of the UW-71 ratings is called 'applle'\. Did you mean apple"):
        ratings.of(["applle"])
    with pytest.raises(DataFormatError, match="has no color '72'"):
        ratings.at(["72"])


def test_concepts_are_found_in_other_spellings_unless_rows_differ_in_spelling_alone():
    table = Associations(("ice cream", "Caf\u00e9", "polish", "Polish"), ("1",), np.array([[0.1], [0.2], [0.3], [0.4]]), "test")
    found = table.of([" Ice  Cream ", "CAFE\u0301", "Polish"])
    assert found.concepts == ("ice cream", "Caf\u00e9", "Polish") and found.values.tolist() == [[0.1], [0.2], [0.4]]
    with pytest.raises(DataFormatError, match="is called 'POLISH'"):
        table.of(["POLISH"])


def test_colors_of_other_names_are_refused(tmp_path):
    with pytest.raises(DataFormatError, match=r"has a color 'red', which uw71 lacks.* --colors"):
        colors_of(read_associations(written(tmp_path, ",red\na,1\n")))


def test_rescaling_stretches_each_concept_and_keeps_constant_ones():
    own = Associations(("a", "b"), ("1", "2", "3"), np.array([[0.1, 0.2, 0.3], [5.0, 5.0, 5.0]]), "test")
    assert own.rescaled().values == pytest.approx(np.array([[0, 0.5, 1], [0, 0, 0]]))


def test_interpolation_keeps_known_colors_and_predicts_those_left_out():
    ratings, colors = read_ratings(), open_colors(UW71)
    same, far = interpolated(ratings, colors, colors)
    assert np.abs(same.values - ratings.values).max() < 1e-6 and far.max() == 0
    found = np.zeros_like(ratings.values)
    for i, name in enumerate(colors.names):
        rest = [other for other in colors.names if other != name]
        found[:, i] = interpolated(ratings.at(rest), colors.named(rest), colors.named([name]))[0].values[:, 0]
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, ratings.values, strict=True)]
    assert np.mean(correlations) > 0.85 and np.abs(found - ratings.values).mean() < 0.06
