"""`vlm chat RUN --image cat.png "What is this?"`: ask a trained model; without a question, a conversation line by line."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vlm.conf.cli import Positional, parse


@dataclass(frozen=True)
class Arguments:
    """What to ask."""

    run: Annotated[str, Positional]
    """Run folder, checkpoint folder, or a unique prefix of a run's name."""
    question: Annotated[str, Positional] = ""
    """The question; empty: read questions line by line."""
    image: tuple[Path, ...] = ()
    """Pictures that the first question is about."""
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


def main(argv: Sequence[str]) -> None:
    """Load the model, then answer."""
    arguments = parse(Arguments, argv, prog="vlm chat", description="Ask a trained model about pictures.")
    from vlm.data.image import load_image
    from vlm.infer.chat import Conversation
    from vlm.models.checkpoint import open_model
    from vlm.models.generate import Sampling

    images = [load_image(path) for path in arguments.image]
    model = open_model(arguments.run, device=arguments.device, precision=arguments.precision, run_root=arguments.run_root)
    sampling = Sampling(max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature)
    conversation = Conversation(model, sampling=sampling)
    for question in [arguments.question] if arguments.question else _lines():
        _print(conversation.say(question, images))
        images = []


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
