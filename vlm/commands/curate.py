"""`vlm curate scores.parquet --keep-top 0.3 --drop-duplicates --out best.jsonl`: the pairs worth training on, and a page about the choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vlm.conf.cli import Positional, parse
from vlm.errors import ConfigError

OUT = Path("curated.jsonl")


@dataclass(frozen=True)
class Arguments:
    """What to keep. The rules are applied in this order, each to what is left: a score, --min-cos, --drop-duplicates, --keep-top, --balance."""

    scores: Annotated[tuple[str, ...], Positional]
    """Parquet files that `vlm score` wrote, their folders, or patterns in quotation marks."""
    min_cos: float | None = None
    """Least cosine of picture and caption, -1 to 1."""
    drop_duplicates: bool = False
    """Of equal rows keep the best."""
    same: Literal["pair", "image", "caption", "bytes"] = "pair"
    """What makes rows equal: the picture's name and the caption, either alone, or the bytes of the picture's file."""
    keep_top: float | None = None
    """Share that is kept, the best, above 0 to 1."""
    balance: str = ""
    """Column of whose values each gets the same number of rows, the best; a column that `vlm score` carried over from the input, for instance."""
    per_value: int | None = None
    """Most rows of a value of --balance; None: as many as the rarest value has."""
    by: str = "cos"
    """Column of the numbers by which a row is better than another: the higher, the better; of equal ones the first."""
    out: Path = OUT
    """Where the kept pairs go: a .jsonl or .csv file for `vlm preprocess` and training. The page about them is beside it, as .html."""
    image_root: Path | None = None
    """Folder below which relative names of pictures lie; None: as the scores say, or the folder of the first file."""
    overwrite: bool = False
    """Replace files of an earlier choice."""


def main(argv: Sequence[str]) -> None:
    """Choose, write the pairs and the page, and say what was dropped."""
    arguments = parse(
        Arguments, argv, prog="vlm curate", description="Keep the best of scored pairs as a dataset, and write a page about the choice."
    )
    if not arguments.scores:
        raise ConfigError("Say which scores: `vlm curate scores.parquet --keep-top 0.3`.")
    from vlm.evaluate.run_report import small_picture
    from vlm.pages import filled, write_whole
    from vlm.score.curation_page import TEMPLATE, curation_values
    from vlm.score.scores import open_scores
    from vlm.score.selection import Rules, select
    from vlm.score.subset import check_suffix, make_folder, write_subset

    out, page = arguments.out, arguments.out.with_suffix(".html")
    names = ("min_cos", "drop_duplicates", "same", "keep_top", "balance", "per_value", "by")
    rules = Rules(**{name: getattr(arguments, name) for name in names})
    check_suffix(out)
    _refuse_earlier((out, page), overwrite=arguments.overwrite)
    scores = open_scores(arguments.scores)
    pictures = scores.pictures(arguments.image_root)
    make_folder(out)
    selection = select(scores, rules, scratch=out.parent, pictures=pictures)
    written = write_subset(scores, selection, out, pictures=pictures, also=(rules.balance,) if rules.balance else ())
    values = curation_values(scores, rules, selection, pictures=pictures, out=str(out), shrink=small_picture)
    write_whole(page, filled(TEMPLATE, values), remedy="Name another file with --out.")
    print(f"{scores.num_rows:>12,} rows in {len(scores.files)} file(s)")
    print("\n".join(f"{step.left:>12,} left, {step.dropped:,} dropped; rule: {step.rule}" for step in selection.steps))
    if written.urls:
        print(f"{written.urls:,} kept pictures are URLs: download them before `vlm preprocess`, which reads files; `vlm score --cache` keeps them")
    print(f"{out}\n{page}\nTrain on it: vlm pretrain PRESET --stage.dataset {out}")


def _refuse_earlier(files: Sequence[Path], *, overwrite: bool) -> None:
    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} is there already. Name another file with --out, or add --overwrite.")
