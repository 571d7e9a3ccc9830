"""Captions to the lower-case words that COCO's caption evaluation counts: Penn Treebank tokens without punctuation marks.

COCO runs Stanford's PTBTokenizer, a Java program of some thousand rules (coco-caption, pycocoevalcap/tokenizer). These are the rules that captions in English
need, odd ones included: `(` becomes the word `-lrb-`, and `!!` stays while `!` goes. `docs/evaluate.md` says how often both agree. Knows no metric.
"""

import re

SPELLED = str.maketrans(
    {
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": " ",
        "\N{RIGHT DOUBLE QUOTATION MARK}": " ",
        "\N{EN DASH}": " -- ",
        "\N{EM DASH}": " -- ",
        "\N{HORIZONTAL ELLIPSIS}": " ... ",
        "\N{EURO SIGN}": " $ ",
        "\N{POUND SIGN}": " # ",
        "\N{CENT SIGN}": " cents ",
        "`": "'",
        "(": " -lrb- ",
        ")": " -rrb- ",
        "[": " -lsb- ",
        "]": " -rsb- ",
        "{": " -lcb- ",
        "}": " -rcb- ",
        '"': " ",
    }
)
DROPPED = {"''", "'", ".", "?", "!", ",", ":", "-", "--", "...", ";"}  # coco-caption's list, as far as the rules here leave such tokens
ABBREVIATIONS = (
    "mr mrs ms dr prof st rd ave blvd mt jr sr vs etc inc co ltd corp dept est gov gen sen rep lt col sgt capt "
    "jan feb mar apr aug sept oct nov dec mon tues wed thurs fri ph.d"
)
HALVES = {
    "cannot": "can not",
    "gonna": "gon na",
    "wanna": "wan na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
}
WORD = r"[^\W\d_]+"
PIECES = re.compile(
    rf"""
    (?:https?://|www\.)\S+ | [\w.]+@[\w.]+\w          # addresses
    | -[lr][rsc]b-                                    # brackets, spelled above
    | (?<!\S)'\d\ds?\b                                # '90s
    | n't\b
    | '(?:s|m|d|ll|re|ve|t|em)\b                      # what is cut off words
    | (?:{"|".join(map(re.escape, ABBREVIATIONS.split()))})\.
    | (?:[^\W\d_]\.){{2,}}(?!\w)                      # u.s.
    | no\.(?=\d)
    | @\w+
    | \d+:\d\d
    | \d+(?:[.,/-]\d+)+(?!\w) | \d+[.,]\d+            # 1,000.5 and 1/2
    | \d+(?:[^\W\d_]+\d*)*(?:-\w+)*                   # 3-d, 20th, 3x4
    | (?:o|d|c|ma)'{WORD}                             # o'clock
    | {WORD}\d*(?:[-/._]?{WORD}\d*|[-_]\d+)*          # t-shirt, and/or, file.jpg
    | !{{2,}} | \?{{2,}} | \.\.\. | --
    | [^\w\s\U00010000-\U0010FFFF] | _                # no emoji
    """,
    re.VERBOSE,
)
CUT_OFF = re.compile(r"(?<=[^\W\d_])(n't)\b|(?<=\w)('(?:s|m|d|ll|re|ve))\b")  # does n't, it 's


def ptb_words(caption: str) -> list[str]:
    """The words of a caption, in lower case."""
    text = caption.lower().translate(SPELLED)
    text = CUT_OFF.sub(lambda found: f" {found[0]} ", text)
    return [word for piece in PIECES.findall(text) for word in HALVES.get(piece, piece).split() if word not in DROPPED]
