"""`vlm preprocess --dataset-id easy-vqa --root-dir data`, the same as `scripts/preprocess.py`: prepares a registered dataset or the user's own data."""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlm.conf.cli import Repeated, parse
from vlm.errors import ConfigError

if TYPE_CHECKING:
    from vlm.data.archives.store import Needs
    from vlm.data.preparation.prepare import Prepared

EXAMPLES = 2  # of dropped rows, for each reason


@dataclass(frozen=True)
class Arguments:
    """What to prepare, and where."""

    dataset_id: str
    """Name of a dataset (`vlm list datasets`), or the path of your own file or folder."""
    root_dir: Path = Path("data")
    """Folder of the prepared datasets; the dataset gets a folder of its name in it."""
    name: str = ""
    """Name for your own data; empty: that of the file or folder."""
    option: Annotated[tuple[str, ...], Repeated] = ()
    """A setting of the dataset's preparation as key=value; once for each setting."""
    overwrite: bool = False
    """Replace the dataset if it is there already; of a mix, its parts as well."""
    on_bad_row: Literal["error", "skip", "default"] = "default"
    """What happens to rows that cannot be used: error stops at the first one, skip leaves them out and counts them; default: skip for datasets by name, error for your own data."""
    mirror: str = ""
    """Address or folder that has the archives, instead of their publishers."""
    from_archives: Path | None = None
    """Folder in which you have the archives; nothing is downloaded, and nothing in it is changed."""
    keep_archives: bool = False
    """Keep downloads and what is extracted from them, in ROOT_DIR/.archives, for other datasets that need them."""
    workers: int | None = None
    """Processes that verify pictures; None: one for each CPU."""
    verify: Literal["decode", "header", "off"] = "decode"
    """How pictures are verified: decode reads every pixel, header only size and format, off only whether there is a file."""


def main(argv: Sequence[str]) -> None:
    """Prepare, and say what was written."""
    description = "Prepare a dataset for training: pictures, rows and a manifest."
    print_prepared(run(parse(Arguments, argv, prog="vlm preprocess", description=description)))


def run(arguments: Arguments) -> "Prepared":
    """Prepare, and show how far it is."""
    from vlm.data.preparation.prepare import needs, prepare

    options = _options(arguments)
    needed = needs(arguments.dataset_id, arguments.root_dir, overwrite=arguments.overwrite, from_archives=arguments.from_archives)
    if needed:
        _print_needs(needed, arguments)
    with ExitStack() as downloading:
        return prepare(
            arguments.dataset_id,
            arguments.root_dir,
            options=options,
            name=arguments.name,
            overwrite=arguments.overwrite,
            on_bad_row=None if arguments.on_bad_row == "default" else arguments.on_bad_row,
            mirror=arguments.mirror,
            from_archives=arguments.from_archives,
            keep_archives=arguments.keep_archives,
            workers=arguments.workers,
            verify=arguments.verify,
            progress=_after(downloading),
            meter=_meter(downloading) if needed else None,
        )


def _options(arguments: Arguments) -> Any:
    """The dataset's options with those of the command line, or None without any."""
    from vlm.data.datasets import DATASETS
    from vlm.data.preparation.dataset_options import options_from

    if not arguments.option:
        return None
    if arguments.dataset_id not in DATASETS and Path(arguments.dataset_id).exists():
        raise ConfigError(f"--option is for registered datasets; your own data {arguments.dataset_id} has none.")
    return options_from(arguments.option, DATASETS[arguments.dataset_id].options, dataset=arguments.dataset_id)


def _meter(downloading: ExitStack) -> Any:
    from vlm.commands.meter import RichMeter

    return downloading.enter_context(RichMeter())


def _after(downloading: ExitStack) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    """A progress bar that takes the place of those of the downloads: two displays would draw over each other."""

    def show(items: Iterable[Any], description: str) -> Iterable[Any]:
        downloading.close()
        return show_progress(items, description)

    return show


def _print_needs(needed: "Needs", arguments: Arguments) -> None:
    """What will be downloaded and extracted, before it is."""
    from rich.filesize import decimal

    width = max((len(archive.file) for archive in needed.downloads), default=0)
    for archive in needed.downloads:
        size = decimal(archive.size) if archive.size else "size not known"
        place = f"{arguments.mirror.rstrip('/')}/{archive.file}" if arguments.mirror else archive.url or archive.page or "no link"
        print(f"  {archive.file:{width}} {size:>14}  {place}")
    root = arguments.root_dir.absolute()
    free = decimal(shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free)
    unknown = sum(not archive.size for archive in needed.downloads)
    more = f" and {unknown} of unknown size" if unknown else ""
    what = f"to download: {len(needed.downloads)} file(s), {decimal(needed.download_bytes)}{more}; " if needed.downloads else ""
    disk = f"disk: {decimal(needed.disk_bytes)}{' and what is not known' if needed.disk_unknown else ' in all'}, {free} free"
    print(f"{what}to extract: {len(needed.extractions)} archive(s); {disk}", flush=True)


def print_prepared(prepared: "Prepared") -> None:
    """Splits, dropped rows, licence and place of a `Prepared` dataset, and what to run next."""
    for part in prepared.parts:
        _print_folder(part)
    _print_folder(prepared)
    if prepared.kept:
        print(f"  kept     {len(prepared.kept)} archive(s) and folder(s) extracted from them, in {prepared.kept[0].parent}")
    folder = shlex.quote(str(prepared.folder))
    print(f"  next     vlm data check {folder}\n           vlm data show {folder} --preset tiny/align -n 8   # or the preset that you will train")


def in_one_line(prepared: "Prepared") -> str:
    """What was prepared, for commands that prepare on the way to something else."""
    splits = ", ".join(f"{split} {file.rows:,}" for split, file in prepared.manifest.splits.items())
    dropped = sum(len(rows) for reasons in prepared.manifest.dropped.values() for rows in reasons.values())
    left_out = f", {dropped:,} dropped" if dropped else ""
    return f"{prepared.manifest.name}: {'prepared' if prepared.fresh else 'already prepared'} in {prepared.folder}: {splits} conversations{left_out}"


def _print_folder(prepared: "Prepared") -> None:
    manifest = prepared.manifest
    done = "prepared" if prepared.fresh else "already prepared with the same options"
    print(f"{manifest.name}: {done} in {prepared.folder}{' from ' + ', '.join(manifest.parts) if manifest.parts else ''}")
    for split, file in manifest.splits.items():
        repeated = f", {file.duplicate_ids:,} with the id of another" if file.duplicate_ids else ""
        print(f"  {split:8} {file.rows:>8,} conversations, {file.images:,} pictures{repeated}")
        for reason, dropped in manifest.dropped.get(split, {}).items():
            print(f"  {'':8} {len(dropped):>8,} dropped: {reason}")
            for row in dropped[:EXAMPLES]:
                print(f"  {'':17} {printable(row['id'])}{': ' + printable(row['detail']) if row['detail'] else ''}")
    print(f"  licence  {manifest.license}; from {'; '.join(manifest.sources)}")


def printable(text: str) -> str:
    """Text of the user's data on one line; line breaks and what steers a terminal are escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def show_progress(items: Iterable[Any], description: str) -> Iterable[Any]:
    """Pass items through under a progress bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    return track(items, description=description, transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty())
