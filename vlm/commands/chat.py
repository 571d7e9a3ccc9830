"""`vlm chat RUN --image cat.png "What is this?"`: ask a trained model; without a question, a conversation line by line."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vlm.conf.cli import Positional, Repeated, parse
from vlm.errors import VLMError


@dataclass(frozen=True)
class Arguments:
    """What to ask."""

    run: Annotated[str, Positional]
    """Run folder, checkpoint folder, or a unique prefix of a run's name."""
    question: Annotated[str, Positional] = ""
    """The question; empty: read questions line by line."""
    image: Annotated[tuple[Path, ...], Repeated] = ()
    """A picture that the first question is about; once for each picture."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "auto"
    """fp32, bf16-mixed, bf16 or auto."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0: the most likely token each time; else the softmax temperature."""
    vision_source: str = ""
    """Folder or hub id of the vision backbone, if it is no longer where the run found it."""
    language_source: str = ""
    """Folder or hub id of the language model, if it is no longer where the run found it."""


def main(argv: Sequence[str]) -> None:
    """Load the model, then answer."""
    arguments = parse(Arguments, argv, prog="vlm chat", description="Ask a trained model about pictures.")
    from vlm.data.image import load_image
    from vlm.infer.chat import Conversation
    from vlm.models.checkpoint import open_model
    from vlm.models.generate import Sampling

    images = [load_image(path) for path in arguments.image]
    sampling = Sampling(max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature)
    sources = {name: getattr(arguments, name) for name in ("vision_source", "language_source") if getattr(arguments, name)}
    model = open_model(arguments.run, device=arguments.device, precision=arguments.precision, run_root=arguments.run_root, **sources)
    conversation = Conversation(model, sampling=sampling)
    if arguments.question:
        _print(conversation.say(arguments.question, images))
        return
    for line in _lines():
        try:
            _print(conversation.say(line, images))
            images = []
        except VLMError as error:  # a line that cannot be answered ends neither the program nor the conversation
            print(error, file=sys.stderr)


def _lines() -> Iterator[str]:
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _print(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
