"""`vlm search DATA-or-CACHE --model M --text "a red car" -k 10`: the nearest pictures of texts and of pictures, as a table and a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlm.commands.embed import Options, config_of, encoders_of
from vlm.conf.cli import Positional, Repeated, parse
from vlm.conf.sources import sources_of
from vlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from vlm.data.feature_cache import FeatureCache
    from vlm.score.gallery import Item
    from vlm.score.search import Nearest
    from vlm.score.search_page import Query
    from vlm.types import World

PAGE = Path("runs/search.html")
SHORT = {"-k": "--num-nearest"}
SHOWN_CAPTION = 200  # characters in the table
MOST_ON_PAGE = 1_000  # pictures: each is some 10 KB of the page


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What is searched, and what for."""

    data: Annotated[str, Positional]
    """Pictures as `vlm embed` takes them, which are encoded if they are not yet; or a folder of vectors that it wrote."""
    text: Annotated[tuple[str, ...], Repeated] = ()
    """A text whose nearest pictures are wanted; once for each."""
    image: Annotated[tuple[Path, ...], Repeated] = ()
    """A picture whose nearest pictures are wanted; once for each."""
    num_nearest: int = 10
    """How many pictures each of them gets; also `-k`."""
    out: Path = PAGE
    """The page of pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_nearest < 1 or (len(self.text) + len(self.image)) * self.num_nearest > MOST_ON_PAGE:
            raise ConfigError(f"-k is at least 1, and for all queries together at most {MOST_ON_PAGE:,} pictures are shown; got {self.num_nearest}.")


def main(argv: Sequence[str]) -> None:
    """Search, print the table and write the page."""
    argv = [SHORT.get(word, word) for word in argv]
    arguments = parse(Arguments, argv, prog="vlm search", description="Find pictures by a text or by a picture.")
    if not arguments.text and not arguments.image:
        raise ConfigError('Say what to look for: --text "a red car" or --image FILE, or several of them.')
    import torch

    from vlm.data.image import load_image
    from vlm.distributed.launch import launch
    from vlm.models.open import open_dual
    from vlm.score.search import nearest
    from vlm.score.search_page import Query
    from vlm.tracking import counting

    config_of(arguments)  # a wrong name is an error before anything is loaded
    asked = [load_image(path) for path in arguments.image]
    world = launch(arguments.device)
    cache, items = _gallery(arguments, world)
    model = open_dual(
        arguments.model, device=arguments.device, precision=arguments.precision, run_root=arguments.run_root, **sources_of(arguments)
    ).to(world.device)
    _refuse_other_encoder(cache, model, arguments.model)
    queries = [*(Query(text=text) for text in arguments.text), *(Query(image=path) for path in arguments.image)]
    vectors = [model.encode_text(arguments.text)] if arguments.text else []
    vectors += [model.encode_image(asked)] if asked else []
    head: Any = {} if model.heads is None else {"head": model.heads.image_head}
    progress = partial(counting, what="searching")
    found = nearest(cache, torch.cat(vectors), arguments.num_nearest, device=model.device, world=world, progress=progress, **head)
    if world.is_main:
        _print(queries, found, items)
        print(_write(arguments, queries, found, items))


def _gallery(arguments: Arguments, world: "World") -> "tuple[FeatureCache, Sequence[Item]]":
    """The vectors that are searched, and the pictures that they are of."""
    from vlm.data.feature_cache import FeatureCache
    from vlm.score.gallery import is_cache, items_of, open_gallery, read_names, write_names

    if is_cache(Path(arguments.data)):
        cache = FeatureCache(Path(arguments.data))
        return cache, read_names(cache)
    data = open_gallery(arguments.data, data_root=arguments.data_root, split=arguments.split)
    cache = encoders_of(arguments, world).image_vectors(data.pictures)
    items = items_of(data)
    write_names(cache, items)
    return cache, items


def _refuse_other_encoder(cache: "FeatureCache", model: Any, name: str) -> None:
    from vlm.backbones.fingerprint import fingerprint

    seen, expected = cache.manifest.key.get("weights"), fingerprint(model.image, adapters=True)
    if seen != expected:
        raise CheckpointError(
            f"The vectors in {cache.folder} are of {cache.manifest.key.get('encoder')} with the fingerprint {str(seen)[:12]}; the image encoder of {name} has "
            f"{expected[:12]}. Name the model that they are of, or the data instead of the folder."
        )


def _print(queries: "Sequence[Query]", found: "Nearest", items: "Sequence[Item]") -> None:
    from vlm.commands.terminal import console
    from vlm.evaluate.report import Table

    for query, numbers, cosines in zip(queries, found.items.tolist(), found.cosines.tolist(), strict=True):
        hits = [(items[number], cosine) for number, cosine in zip(numbers, cosines, strict=True)]
        rows = [[f"{cosine:.4f}", item.caption[:SHOWN_CAPTION], str(item.file)] for item, cosine in hits]
        console().print(Table(str(query), ("cosine", "caption", "file"), rows).for_terminal())


def _write(arguments: Arguments, queries: "Sequence[Query]", found: "Nearest", items: "Sequence[Item]") -> Path:
    from vlm.evaluate.run_report import small_picture
    from vlm.pages import filled, write_whole
    from vlm.score.search_page import TEMPLATE, search_values

    facts = (f"pictures: {arguments.data}", f"model: {arguments.model}")
    values = search_values(queries, found, items, facts=facts, shrink=small_picture)
    return write_whole(arguments.out, filled(TEMPLATE, values), remedy="Name another file with --out.")
