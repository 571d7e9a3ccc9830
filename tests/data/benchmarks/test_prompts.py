import pytest

from vlm.data.benchmarks.prompts import (
    CIFAR10_NAMES,
    CIFAR100_NAMES,
    CIFAR_TEMPLATES,
    imagenet_names,
    imagenet_templates,
    prompts_of,
    read_names,
    refuse_equal_names,
    templates_of,
)
from vlm.errors import DataFormatError, UnknownNameError

CLIP_BENCHMARKS_CIFAR = {  # clip_benchmark 1.6.2, datasets/en_zeroshot_classification_templates.json
    *("a photo of a {c}.", "a blurry photo of a {c}.", "a black and white photo of a {c}.", "a low contrast photo of a {c}."),
    *("a high contrast photo of a {c}.", "a bad photo of a {c}.", "a good photo of a {c}.", "a photo of a small {c}.", "a photo of a big {c}."),
    *("a photo of the {c}.", "a blurry photo of the {c}.", "a black and white photo of the {c}.", "a low contrast photo of the {c}."),
    *(
        "a high contrast photo of the {c}.",
        "a bad photo of the {c}.",
        "a good photo of the {c}.",
        "a photo of the small {c}.",
        "a photo of the big {c}.",
    ),
}


def test_cifar_has_the_18_published_templates_and_10_and_100_sorted_names():
    assert len(CIFAR_TEMPLATES) == 18 and set(CIFAR_TEMPLATES) == CLIP_BENCHMARKS_CIFAR
    assert (len(CIFAR10_NAMES), len(CIFAR100_NAMES)) == (10, 100)
    assert list(CIFAR10_NAMES) == sorted(set(CIFAR10_NAMES)) and list(CIFAR100_NAMES) == sorted(set(CIFAR100_NAMES))


def test_imagenet_has_1000_names_80_templates_and_two_names_for_two_classes_each():
    pytest.importorskip("torchvision")  # open_clip is there only with it
    names, templates = imagenet_names(), imagenet_templates()
    assert len(names) == 1000 and (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet paper")
    assert {name for name in names if names.count(name) > 1} == {"missile", "sunglasses"}
    assert len(templates) == 80 and templates[0] == "a bad photo of a {c}." and all("{c}" in template for template in templates)


def test_names_with_braces_are_taken_as_they_are():
    assert prompts_of(["a{0}b", "x"], ["the {c}."]) == [["the a{0}b."], ["the x."]]


def test_a_file_of_templates_needs_the_place_of_the_name_in_each_line(tmp_path):
    (tmp_path / "t.txt").write_text("a {c}\n\nthe {c} there\n", encoding="utf-8")
    assert templates_of(str(tmp_path / "t.txt")) == ("a {c}", "the {c} there")
    (tmp_path / "t.txt").write_text("a {}\n", encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"the template 'a \{\}' has no \{c\}"):
        templates_of(str(tmp_path / "t.txt"))
    (tmp_path / "t.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(DataFormatError, match="has no template"):
        templates_of(str(tmp_path / "t.txt"))
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar'"):
        templates_of("cifra")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("n.txt", "Katze\nHund\n"),
        ("n.txt", "dog\tHund\ncat\tKatze\n"),
        ("n.json", '["Katze", "Hund"]'),
        ("n.json", '{"dog": "Hund", "cat": "Katze"}'),
    ],
)
def test_names_of_a_file_in_order_or_by_class(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / file, ["cat", "dog"]) == ("Katze", "Hund")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"cat": "Katze", "dog": "Hund", "cow": "Kuh"}', "'cow' is no class of the data, whose classes are cat, dog"),
        ('{"cat": "Katze"}', "has no name for 1 of 2 classes: dog"),
        ('["Katze"]', "has 1 names, the data has 2 classes: cat, dog"),
        ('["Katze", 7]', "neither a list of names"),
        ("[", "is not JSON"),
    ],
)
def test_a_file_of_names_that_does_not_fit_is_an_error(tmp_path, text, says):
    (tmp_path / "n.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataFormatError, match=says):
        read_names(tmp_path / "n.json", ["cat", "dog"])


def test_two_classes_with_one_name_and_an_empty_name_are_errors(tmp_path):
    with pytest.raises(DataFormatError, match=r"1 name\(s\) stand for several classes, which no prompt can tell apart: crane"):
        refuse_equal_names(["crane", "cat", "crane"], where=tmp_path)
    with pytest.raises(DataFormatError, match="class 2 has an empty name"):
        refuse_equal_names(["crane", " "], where=tmp_path)
