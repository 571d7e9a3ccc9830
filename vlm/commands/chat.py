"""`vlm chat RUN --image cat.png "What is this?"`: ask a trained model; without a question, a conversation line by line."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vlm.conf.cli import Positional, Repeated, parse
from vlm.conf.sources import sources_of

if TYPE_CHECKING:
    from vlm.models.sampling import Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """What to ask."""

    run: Annotated[str, Positional]
    """Run folder, checkpoint folder, a unique prefix of a run's name, or a hub id (owner/name)."""
    question: Annotated[str, Positional] = ""
    """The question; empty: read questions line by line (/help shows the commands)."""
    image: Annotated[tuple[str, ...], Repeated] = ()
    """Path or URL of a picture that the first question is about; once for each picture."""
    system: str = ""
    """System text of the conversation, if the model's chat template has a place for one; empty: the template's own."""
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
    top_p: float = 1.0
    """Share of the probability mass that is drawn from; needs a temperature."""
    top_k: int = 0
    """Number of the most likely tokens that are drawn from, 0 for all; needs a temperature."""
    repetition_penalty: float = 1.0
    """What scores of tokens that the answer has already are divided by; 1 for none."""
    seed: int | None = None
    """Makes draws repeatable; needs a temperature."""
    stop: Annotated[tuple[str, ...], Repeated] = ()
    """Text that ends an answer; once for each."""
    check: bool = False
    """First check that pictures reach the answer, by a black and a white one."""
    allow_private: bool = False
    """Also fetch pictures from addresses that are not public: this machine, the local network."""
    vision_source: str = ""
    """Folder or hub id of the vision backbone, if it is no longer where the run found it."""
    language_source: str = ""
    """Folder or hub id of the language model, if it is no longer where the run found it."""


def main(argv: Sequence[str]) -> None:
    """Load the model, then answer."""
    arguments = parse(Arguments, argv, prog="vlm chat", description="Ask a trained model about pictures.")
    from vlm.assets import cache_dir
    from vlm.commands.chat_session import Session, input_history, lines, show
    from vlm.data.remote import FetchRules, open_picture
    from vlm.infer.chat import Conversation
    from vlm.models.checkpoint import open_model

    rules = FetchRules(allow_private=arguments.allow_private)
    pictures = [(name, open_picture(name, rules)) for name in arguments.image]
    sampling = _sampling(arguments)
    model = open_model(arguments.run, device=arguments.device, precision=arguments.precision, run_root=arguments.run_root, **sources_of(arguments))
    conversation = Conversation(model, sampling=sampling, system=arguments.system)
    if arguments.check:
        print(model.check_image_use())
    if arguments.question:
        show(conversation.say(arguments.question, [picture for _, picture in pictures]))
        return
    session = Session(conversation, rules=rules, pictures=dict(pictures))
    with input_history(cache_dir() / "chat-history"):
        for line in lines():
            if not session.take(line):
                return


def _sampling(arguments: Arguments) -> "Sampling":
    from vlm.models.sampling import Sampling

    names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")
    sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    if sampling.idle:
        log.warning("Nothing is drawn at temperature 0, so %s changes nothing. Set --temperature.", ", ".join(sampling.idle))
    return sampling
