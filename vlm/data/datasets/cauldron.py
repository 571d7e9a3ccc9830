"""The 50 subsets of The Cauldron (Laurencon et al. 2024, arXiv:2405.02246), each a dataset: `the-cauldron-ai2d`.

The hub keeps a subset as some Parquet files with the pictures inside, in its branch `refs/convert/parquet` under numbers. How many there are is known of
the subsets in `SHARDS`, as the hub listed them in 2024. Should a subset grow, its further files would be missed: compare the number of rows with its card.
Of the other subsets nothing is downloaded: pack their Parquet files into one tar, such as the-cauldron-okvqa.tar, and name its folder with
--from-archives.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm.data.datasets.base import EMBEDDED, Archive, DatasetSpec, Source
from vlm.data.sample import Row
from vlm.errors import DataFormatError

HUB = "https://huggingface.co/datasets/HuggingFaceM4/the_cauldron"
SUBSETS = (
    *("ai2d", "aokvqa", "chart2text", "chartqa", "clevr", "clevr_math", "cocoqa", "datikz", "diagram_image_to_text", "docvqa"),
    *("dvqa", "figureqa", "finqa", "geomverse", "hateful_memes", "hitab", "iam", "iconqa", "infographic_vqa", "intergps"),
    *("localized_narratives", "mapqa", "mimic_cgd", "multihiertt", "nlvr2", "ocrvqa", "okvqa", "plotqa", "raven", "rendered_text"),
    *("robut_sqa", "robut_wikisql", "robut_wtq", "scienceqa", "screen2words", "spot_the_diff", "st_vqa", "tabmwp", "tallyqa", "tat_qa"),
    *("textcaps", "textvqa", "tqa", "vistext", "visual7w", "visualmrc", "vqarad", "vqav2", "vsr", "websight"),
)
SHARDS = {  # numbers of Parquet files
    "ai2d": 1,
    "aokvqa": 2,
    "chart2text": 3,
    "chartqa": 2,
    "clevr": 24,
    "cocoqa": 5,
    "diagram_image_to_text": 1,
    "docvqa": 14,
    "dvqa": 8,
    "finqa": 1,
    "geomverse": 2,
    "hateful_memes": 7,
    "hitab": 1,
    "iam": 3,
    "infographic_vqa": 1,
    "intergps": 1,
    "localized_narratives": 43,
    "mapqa": 7,
    "multihiertt": 3,
    "ocrvqa": 11,
    "robut_sqa": 2,
    "scienceqa": 1,
    "spot_the_diff": 4,
    "st_vqa": 2,
    "tallyqa": 9,
    "textcaps": 12,
    "textvqa": 12,
    "visualmrc": 6,
    "vqarad": 1,
    "vsr": 1,
}


def archives(subset: str) -> tuple[Archive, ...]:
    """The Parquet files of a subset, or the one tar of them that is made by hand."""
    name = f"the-cauldron-{subset}"
    if subset not in SHARDS:
        return (Archive(file=f"{name}.tar", url="", page=f"{HUB}/tree/refs%2Fconvert%2Fparquet/{subset}/train"),)
    base = f"{HUB}/resolve/refs%2Fconvert%2Fparquet/{subset}/train"
    return tuple(Archive(file=f"{name}-{number:04}.parquet", url=f"{base}/{number:04}.parquet") for number in range(SHARDS[subset]))


def _open(files: tuple[str, ...], options: Any, places: Mapping[str, Path]) -> Source:
    pictures = places[EMBEDDED]

    def rows(split: str) -> Iterator[Row]:
        from vlm.data.formats.cauldron import read_cauldron

        for path in _tables([places[file] for file in files]):
            for row in read_cauldron(path, pictures=pictures):
                yield replace(row, id=f"{path.stem}/{row.id}")  # rows have no names, only numbers in their file

    return Source(rows=rows, locate=lambda name: pictures / name)


def _tables(places: list[Path]) -> list[Path]:
    tables = [table for place in places for table in (sorted(place.rglob("*.parquet")) if place.is_dir() else [place])]
    if not tables:
        raise DataFormatError(f"{places[0]} has no .parquet file: its archive is not one of a subset of The Cauldron.")
    return tables


def _spec(subset: str) -> DatasetSpec:
    needed = archives(subset)
    return DatasetSpec(
        open=partial(_open, tuple(archive.file for archive in needed)),
        archives=needed,
        description=f"The Cauldron: {subset}{'' if subset in SHARDS else '; to be downloaded by hand'}",
        license="that of the subset's source; prompts CC BY 4.0",
        source=HUB,
        citation="Hugo Laurencon, Leo Tronchon, Matthieu Cord, Victor Sanh. What matters when building vision-language models? 2024. arXiv:2405.02246",
    )


SPECS = {f"the-cauldron-{subset}": _spec(subset) for subset in SUBSETS}
