"""`vlm export dual NAME OUT`: a trained model, or a published pair, in the format of another library, compared with it there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from vlm.conf.cli import Positional, parse
from vlm.errors import UnknownNameError

SUBCOMMANDS = {"dual": "A dual encoder for transformers (CLIPModel, SiglipModel) or open_clip (CustomTextCLIP)."}


@dataclass(frozen=True)
class DualArguments:
    """Which dual encoder, and where to."""

    name: Annotated[str, Positional]
    """Run folder, checkpoint folder, unique prefix of a run's name, or a published pair such as clip-b32-224."""
    out: Annotated[Path, Positional]
    """Folder to write; must not exist."""
    format: Literal["auto", "transformers", "open_clip", "llm2clip"] = "auto"
    """The library, or LLM2CLIP's layout; auto: the first that can hold the model."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""
    image_source: str = ""
    """Folder or hub id of the image encoder, if it is no longer where the run found it."""
    text_source: str = ""
    """Folder or hub id of the text encoder, if it is no longer where the run found it."""


def main(argv: Sequence[str]) -> None:
    """Export one model."""
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage: vlm export COMMAND [arguments]", "", *(f"  {name:10} {what}" for name, what in SUBCOMMANDS.items())]))
        return
    name, *rest = argv
    if name not in SUBCOMMANDS:
        raise UnknownNameError("command of `vlm export`", name, SUBCOMMANDS)
    exports: dict[str, tuple[type[Any], Callable[[Any], None]]] = {"dual": (DualArguments, dual)}
    kind, run = exports[name]
    run(parse(kind, rest, prog=f"vlm export {name}", description=SUBCOMMANDS[name]))


def dual(arguments: DualArguments) -> None:
    """Export a dual encoder; print how equal it is, and the folder last."""
    from vlm.export.dual import export_dual, refuse_existing
    from vlm.models.open import open_dual

    refuse_existing(arguments.out)
    sources = {name: getattr(arguments, name) for name in ("image_source", "text_source") if getattr(arguments, name)}
    model = open_dual(arguments.name, device="cpu", precision="fp32", run_root=arguments.run_root, **sources)
    done = export_dual(model, arguments.out, format=arguments.format)
    print("\n".join([f"format {done.format}", *done.parity.lines(), *done.notes, str(arguments.out)]))
