"""Where the picture is that a row of scores names: below a folder, in the file that stood for its URL, or in the cache that it was fetched to.

Opens none. What asks the network imports torch, so it is imported for URLs alone.
"""

from dataclasses import dataclass
from pathlib import Path

from vlm.data.formats.base import is_url


@dataclass(frozen=True)
class Pictures:
    """The places of the pictures of some scores.

    Attributes:
        root: Folder below which relative names lie.
        url_files: Patterns of the files below it that stand for URLs; see `vlm.score.job.Job.url_file`.
        caches: Folders that URLs were fetched to.
    """

    root: Path = Path()
    url_files: tuple[str, ...] = ()
    caches: tuple[Path, ...] = ()

    def file(self, name: str) -> Path | None:
        """The file of a picture, which may be missing; None for one that is at its URL alone."""
        if is_url(name):
            return next((path for path in self._kept(name) if path.is_file()), None)
        if name.startswith("~") or name.lower().startswith("file:"):
            from vlm.data.remote import local_path

            return self.root / local_path(name)
        return self.root / name

    def _kept(self, url: str) -> list[Path]:
        """Where a URL's file would be."""
        from vlm.data.fetched import cache_path

        return [*self._stand_ins(url), *(cache_path(folder, url) for folder in self.caches)]

    def _stand_ins(self, url: str) -> list[Path]:
        from vlm.data.remote import FetchError
        from vlm.score.pictures import stand_in

        try:
            return [self.root / stand_in(url, pattern) for pattern in self.url_files]
        except FetchError:
            return []
