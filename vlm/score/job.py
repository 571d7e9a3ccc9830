"""What is scored, with which model, how and where to: every setting once, as the command line takes it. Loads no torch, opens nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vlm.conf.cli import Repeated
from vlm.data.hosts import ANY, host_names
from vlm.errors import ConfigError

IMAGES = ("local", "url", "auto")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of one table of scores."""

    pairs: tuple[str, ...] = ()
    """Files of pairs: csv, tsv, json, jsonl, parquet, folders of Parquet files, or prepared datasets (FOLDER or FOLDER@SPLIT); several, and patterns such as
    'pairs-*.csv'."""
    model: str = "clip-b32-224"
    """A dual encoder: a published pair, the hub id of one, a run, or a checkpoint folder."""
    out: Path = Path("scores.parquet")
    """A Parquet file, or a folder (no .parquet at its end) that keeps one file a part."""
    image_col: str = "image"
    """Column of the pictures: paths, URLs, or the pictures themselves."""
    text_col: str = "caption"
    """Column of the captions."""
    refs_col: str = ""
    """Column of reference captions for refclipscore: a list, a JSON list as text, or one text."""
    carry: Annotated[tuple[str, ...], Repeated] = ()
    """Column of the input that is copied into the scores, as text; once for each."""
    images: str = "local"
    """local: pictures are files, and nothing is fetched; url: they are URLs; auto: either."""
    image_root: Path | None = None
    """Folder below which local pictures lie; None: that of the file that names them."""
    url_file: str = ""
    """With --images local, the file below --image-root that stands for a URL: '{4}.png' is the URL's fourth part between slashes, counted from 0."""
    allow_host: Annotated[tuple[str, ...], Repeated] = ()
    """Host that pictures may be fetched from; once for each. None, or `*`: any public one."""
    allow_private: bool = False
    """Also fetch from addresses that are not public, such as those of the local network."""
    timeout: float = 20.0
    """Seconds that one attempt to fetch a picture may take."""
    retries: int = 2
    """Further attempts after a fault that may pass."""
    connections: int = 16
    """Pictures that are fetched at a time."""
    cache: Path | None = None
    """Folder that keeps what was fetched, so that it is fetched once; None: nothing is kept."""
    max_bytes: int = 20 * 2**20
    """Longest file of a picture."""
    max_pixels: int = 50_000_000
    """Largest picture, width times height."""
    prefix: str = ""
    """Written before every caption and reference. The paper of CLIPScore has 'A photo depicts ', with the space."""
    batch_size: str = "auto"
    """Pictures that are encoded at once; auto: what the device's memory holds."""
    batch_tokens: int | None = None
    """Tokens of the texts that are encoded at once, padding included; None: 512 on a CPU, 65,536 on a GPU."""
    workers: int = 4
    """Threads that read and decode pictures ahead of the model."""
    remember: int = 65_536
    """Distinct pictures, and as many texts, whose vectors are remembered; one that is met again is not encoded again."""
    part_rows: int = 10_000
    """Rows of a part: what is written at once, skipped whole when a run goes on, and given to one process."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "auto"
    """fp32, bf16-mixed, bf16 or auto: bf16 where the device has units for it."""
    compile: bool = False
    """Compile both encoders first; worth it for very many pairs."""
    image_source: str = ""
    """Folder or hub id of the image encoder's weights, if they are not where the model's name says."""
    text_source: str = ""
    """The same of the text encoder's."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""

    def __post_init__(self) -> None:
        if self.images not in IMAGES:
            raise ConfigError(f"--images {self.images} is not one of {', '.join(IMAGES)}.")
        least = {"connections": 1, "workers": 1, "part_rows": 1, "remember": 1, "max_bytes": 1, "max_pixels": 1, "retries": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"--{name.replace('_', '-')} is at least {lowest}; got {getattr(self, name)}.")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ConfigError(f"--batch-tokens is at least 1; got {self.batch_tokens}.")
        if self.timeout <= 0:
            raise ConfigError(f"--timeout is above 0 seconds; got {self.timeout:g}.")
        if self.batch_size != "auto" and not (self.batch_size.isdecimal() and int(self.batch_size) > 0):
            raise ConfigError(f"--batch-size is auto or a whole number above 0; got {self.batch_size}.")
        self._refuse_idle()
        host_names(self.allow_host, "--allow-host")

    def _refuse_idle(self) -> None:
        """Refuse settings that would have no effect."""
        if self.images == "local" and (self.allow_host or self.allow_private or self.cache):
            raise ConfigError(
                "--allow-host, --allow-private and --cache are about pictures of URLs, and nothing is fetched: add --images url or auto."
            )
        if self.url_file and (self.images != "local" or self.image_root is None):
            raise ConfigError("--url-file names files that stand for URLs: it needs --images local and --image-root.")

    @property
    def hosts(self) -> frozenset[str] | None:
        """The only hosts that are asked; None for all."""
        names = host_names(self.allow_host, "--allow-host")
        return None if ANY in names or not names else names

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the input that are read."""
        return tuple(dict.fromkeys(name for name in (self.image_col, self.text_col, self.refs_col, *self.carry) if name))


def files_of(pairs: tuple[str, ...]) -> list[Path]:
    """The files that names and patterns stand for: in the order in which they are named, those of a pattern by name.

    Raises:
        ConfigError: If nothing is named, a name stands for nothing, or a file is there twice.
        UnknownNameError: If a prepared dataset lacks a split.
    """
    from vlm.score.pairs import prepared_split

    if not pairs:
        raise ConfigError("Say which pairs: --pairs FILE [FILE ...].")
    found: list[Path] = []
    for name in pairs:
        path = prepared_split(name) or Path(name)
        matching = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not matching:
            raise ConfigError(f"--pairs {name}: there is no such file or folder, and nothing fits it as a pattern.")
        found += matching
    if len({path.resolve() for path in found}) < len(found):
        raise ConfigError(f"--pairs names a file twice: {', '.join(map(str, found))}.")
    return found
