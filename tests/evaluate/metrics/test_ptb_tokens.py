"""Words as Stanford's tokenizer gives them; what it gave stands in caption_golden.json, or was read off its output here."""

import json
from pathlib import Path

import pytest

from vlm.evaluate.metrics.ptb_tokens import ptb_words

GOLDEN = json.loads(Path(__file__).with_name("caption_golden.json").read_text(encoding="utf-8"))


def test_captions_have_the_words_that_stanfords_tokenizer_gave():
    for row in GOLDEN["rows"]:
        for text, words in zip((row["caption"], *row["references"]), (row["caption_words"], *row["reference_words"]), strict=True):
            assert ptb_words(text) == words.split(), text


@pytest.mark.parametrize(
    ("caption", "words"),  # PTBTokenizer of stanford-corenlp-3.4.1.jar with coco-caption's list of punctuation
    [
        ("A man doesn't ride (it's) a \"bike\", 2.5 km/h; U.S. flag...", "a man does n't ride -lrb- it 's -rrb- a bike 2.5 km/h u.s. flag"),
        ("Can't won't gonna wanna cannot, ok?", "ca n't wo n't gon na wan na can not ok"),
        ("$5 & 10% [sic] {x} e.g. Mr. Smith's hat!", "$ 5 & 10 % -lsb- sic -rsb- -lcb- x -rcb- e.g. mr. smith 's hat"),
        ("two--dashes a \u2013 b \u2014 c 'quoted' ``tick`` I'm we'll they've", "two dashes a b c quoted tick i 'm we 'll they 've"),
        ("A cat .A dog,sitting. The end.A b", "a cat a dog sitting the end.a b"),
        ("half-eaten sandwich/wrap; no.1 vs. St. John's 1990's '90s", "half-eaten sandwich/wrap no. 1 vs. st. john 's 1990 's '90s"),
        ("wow!!! what?? hmm...ok", "wow !!! what ?? hmm ok"),
        ('1st 2nd 3rd 20th 1,2,3 1.5m 10am 5pm 6\'2" 12"', "1st 2nd 3rd 20th 1,2,3 1.5 m 10am 5pm 6 2 12"),
        ("dont couldn't've shouldn't", "dont could n't 've should n't"),
        ("x.y.z a.b. file.jpg www.x.com a@b.com", "x.y.z a.b. file.jpg www.x.com a@b.com"),
        (" ", ""),
    ],
)
def test_odd_spellings(caption, words):
    assert ptb_words(caption) == words.split()
