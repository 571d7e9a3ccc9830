"""`vlm export dual|hf|gguf NAME OUT`: a trained model, or a published pair, in the format of another library, compared with it there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from vlm.conf.cli import Positional, parse
from vlm.conf.sources import sources_of
from vlm.errors import UnknownNameError

SUBCOMMANDS = {
    "dual": "A dual encoder for transformers (CLIPModel, SiglipModel) or open_clip (CustomTextCLIP).",
    "hf": "A model that answers for transformers and vLLM (LlavaForConditionalGeneration), or with code of its own.",
    "gguf": "A model that answers for llama.cpp: two GGUF files, language model and mmproj.",
}


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


@dataclass(frozen=True)
class AnswererArguments:
    """Which model, and where to."""

    name: Annotated[str, Positional]
    """Run folder, checkpoint folder, or unique prefix of a run's name."""
    out: Annotated[Path, Positional]
    """Folder to write; must not exist."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""
    vision_source: str = ""
    """Folder or hub id of the vision backbone, if it is no longer where the run found it."""
    language_source: str = ""
    """Folder or hub id of the language model, if it is no longer where the run found it."""


@dataclass(frozen=True)
class HFArguments(AnswererArguments):
    """Which model, where to, and in what form."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of the stored weights; the comparison is made in fp32 first."""
    with_code: bool = False
    """Write code beside the weights that computes exactly what the model does, for any composition; loads with trust_remote_code=True."""
    allow_lossy: bool = False
    """Keep an export that is not equal to the model, and say by how much it differs."""


@dataclass(frozen=True)
class GGUFArguments(AnswererArguments):
    """Which model, where to, and in what form."""

    dtype: Literal["f16", "f32"] = "f16"
    """Type of the stored matrices; vectors are always f32."""


def main(argv: Sequence[str]) -> None:
    """Export one model."""
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage: vlm export COMMAND [arguments]", "", *(f"  {name:10} {what}" for name, what in SUBCOMMANDS.items())]))
        return
    name, *rest = argv
    if name not in SUBCOMMANDS:
        raise UnknownNameError("command of `vlm export`", name, SUBCOMMANDS)
    exports: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
        "dual": (DualArguments, dual),
        "hf": (HFArguments, hf),
        "gguf": (GGUFArguments, gguf),
    }
    kind, run = exports[name]
    run(parse(kind, rest, prog=f"vlm export {name}", description=SUBCOMMANDS[name]))


def dual(arguments: DualArguments) -> None:
    """Export a dual encoder; print how equal it is, and the folder last."""
    from vlm.backbones.writing import refuse_existing
    from vlm.export.dual import export_dual
    from vlm.models.open import open_dual

    refuse_existing(arguments.out)
    model = open_dual(arguments.name, device="cpu", precision="fp32", run_root=arguments.run_root, **sources_of(arguments))
    done = export_dual(model, arguments.out, format=arguments.format)
    print("\n".join([f"format {done.format}", *done.parity.lines(), *done.notes, str(arguments.out)]))


def hf(arguments: HFArguments) -> None:
    """Export a model that answers to transformers; print how equal it is, and the folder last."""
    from vlm.export.hf import export_hf
    from vlm.export.model_card import write_card

    model, checkpoint, config = _answerer(arguments)

    def card(folder: Path, lines: Sequence[str]) -> None:
        tokens = model.tokens_per_tile
        name = arguments.out.absolute().name
        write_card(folder, checkpoint, config, name=name, template=model.template.name, tokens=tokens, lines=lines, code=arguments.with_code)

    done = export_hf(model, arguments.out, dtype=arguments.dtype, allow_lossy=arguments.allow_lossy, with_code=arguments.with_code, card=card)
    print("\n".join([*done.lines(), str(arguments.out)]))


def gguf(arguments: GGUFArguments) -> None:
    """Export a model that answers to llama.cpp; print what was compared, and the files last."""
    from vlm.export.gguf_files import export_gguf

    model, _, _ = _answerer(arguments)
    done = export_gguf(model, arguments.out, dtype=arguments.dtype, name=arguments.out.name)
    print("\n".join([*done.lines(), *map(str, done.files)]))


def _answerer(arguments: AnswererArguments) -> tuple[Any, Path, Any]:
    """The model in fp32, its checkpoint, and its composition."""
    from vlm.backbones.writing import refuse_existing
    from vlm.models import checkpoint

    refuse_existing(arguments.out)
    folder = checkpoint.find_checkpoint(arguments.name, run_root=arguments.run_root)
    model = checkpoint.load(folder, precision="fp32", sources=sources_of(arguments))
    return model, folder, checkpoint.read_manifest(folder).config
