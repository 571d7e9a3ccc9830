"""The `vlm` command (also `python -m vlm`): finds the subcommand, turns errors that a user can cause into one line and exit code 2."""

import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Sequence

from vlm.errors import WEIGHTS_REMEDY, Preempted, UnknownNameError, VLMError

COMMANDS = {
    "demo": "Prepare real data, train a small model in two stages and a contrastive one, evaluate them, write a report.",
    "list": "List vision backbones, language models, image and text encoders, connectors, chat templates, datasets and presets.",
    "inspect": "Show what a part or a preset is made of, without loading weights.",
    "preprocess": "Prepare a dataset, or your own data.",
    "data": "Check data, or see what a model gets from it: `vlm data check DIR`, `vlm data show DIR`.",
    "pretrain": "Run one stage of training: align, finetune.",
    "chat": "Ask a trained model about pictures.",
    "serve": "Serve a trained model: OpenAI's chat completions over HTTP, and a page to chat.",
    "evaluate": "Measure models: VQAv2, GQA, POPE, captions and others, your own questions; zero-shot classification, retrieval.",
    "color": "Colors and concepts: ask dual encoders, compare them with people's ratings, choose palettes that people can read.",
    "score": "Score how well pictures and captions fit: a table of pairs in, a table of numbers out.",
    "curate": "Keep the best of scored pairs as a dataset.",
    "embed": "Write the vectors of a dataset into the cache that training and search read.",
    "search": "Find pictures by a text or by a picture.",
    "report": "Write one HTML page about a run, or about several compared.",
    "import": "Write a checkpoint of Prismatic, LLaVA, transformers or xtuner as one of ours.",
    "export": "Write a trained model for other libraries: transformers, open_clip, vLLM, llama.cpp.",
    "merge": "Fold a trained model's adapters into its weights.",
}

SECONDS_FOR_RANK_0 = 5.0
FLAGS_OF_ITS_OWN = {"chat", "evaluate", "export", "import", "merge", "serve"}  # --vision-source here, where training has --model.vision-source
OF_PAIRS = {"color", "embed", "score", "search"}  # contrastive models alone
PAIRS_REMEDY = "Name a local folder with --image-source and --text-source, or check the network and your login to the hub."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code: 0, 2 for an error that the user can mend, 130 when interrupted, 143 when told to end."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        from vlm import __version__

        print(f"vlm {__version__}")
        return 0
    return run_command(argv[0], argv[1:])


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run one subcommand; `--debug` anywhere shows the traceback of an error."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads collapse when anything else runs; must be set before torch is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the hub's library sets its level by this when it is imported; "Retrying in 8s" is a warning
    argv, debug = [word for word in argv if word != "--debug"], "--debug" in argv
    logging.basicConfig(level=logging.WARNING if _rank() else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "datasets", "filelock", "huggingface_hub", "urllib3", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        if name not in COMMANDS:
            raise UnknownNameError("command", name, COMMANDS)
        return importlib.import_module(f"vlm.commands.{name}").main(argv) or 0
    except Preempted as stop:
        _report(f"vlm {name}: {stop}")
        return 143  # 128 + SIGTERM, as schedulers expect
    except VLMError as error:
        if debug:
            raise
        _report(f"vlm {name}: {_with_flags_of(name, str(error))}")
        _end_before_others_notice(2)
        return 2
    except KeyboardInterrupt:
        print(f"vlm {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `vlm list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes standard output once more when it ends
        return 141


def _with_flags_of(name: str, line: str) -> str:
    """An error about weights, which names the flags of training, with those of another command."""
    if name in OF_PAIRS:
        line = line.replace(WEIGHTS_REMEDY, PAIRS_REMEDY)
    return re.sub(r"--model\.(?=\w+-source)", "--", line) if name in FLAGS_OF_ITS_OWN | OF_PAIRS else line


def _report(line: str) -> None:
    """Print an error on one line; of several processes with the same error, the first one prints it.

    The others wait a little: torchrun ends them as soon as the first has failed. Where only another one has failed, it speaks after that time.
    """
    if _rank():
        time.sleep(SECONDS_FOR_RANK_0)
        line = f"[rank {_rank()}] {line}"
    print(line, file=sys.stderr, flush=True)


def _end_before_others_notice(code: int) -> None:
    """End this process at once if it is another than the first of several at work; everything has been closed but the process group.

    That would be closed first and the process end a while later; the others, which fail at the lost connection, could be faster, and torchrun names the fastest.
    """
    if _rank() and "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))  # torchrun's


def _usage() -> str:
    lines = [f"  {name:12} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: vlm COMMAND [arguments]", "", *lines, "", "vlm COMMAND --help shows the arguments; --debug shows the traceback of an error."]
    )


if __name__ == "__main__":
    sys.exit(main())
