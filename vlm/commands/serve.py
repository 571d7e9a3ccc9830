"""`vlm serve RUN`: a trained model behind OpenAI's chat completions, and a page to chat with it; ends gracefully on SIGINT and SIGTERM."""

import ipaddress
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from vlm.conf.cli import Positional, Repeated, parse
from vlm.conf.sources import sources_of
from vlm.data.hosts import host_names
from vlm.errors import ConfigError, MissingPackageError

log = logging.getLogger(__name__)

KEY_VARIABLE = "VLM_API_KEY"


@dataclass(frozen=True)
class Arguments:
    """What to serve, where, and for whom."""

    run: Annotated[str, Positional]
    """Run folder, checkpoint folder, a unique prefix of a run's name, or a hub id (owner/name)."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's, which other machines can reach."""
    port: int = 8000
    """Port to listen at; 0 for any that is free."""
    name: str = ""
    """What clients call the model; empty for the run's name."""
    api_key: str = ""
    """Key that clients must send; empty for the environment's VLM_API_KEY, or none. Other users of this machine can see a command line, but no environment."""
    allow_host: Annotated[tuple[str, ...], Repeated] = ()
    """Host from which pictures are fetched by their address; once for each host, `*` for all. Data URLs need none."""
    allow_private: bool = False
    """Also fetch pictures from addresses that are not public, such as those of the local network."""
    trusted_host: Annotated[tuple[str, ...], Repeated] = ()
    """Name beside localhost that this server answers to, such as a proxy's; once for each, `*` for all. Without any: none, or all if there is a key or --host is not local."""
    temperature: float = 0.0
    """Where a request says nothing: 0 for the most likely token each time; else the softmax temperature."""
    top_p: float = 1.0
    """Where a request says nothing: share of the probability mass that is drawn from."""
    max_new_tokens: int = 1024
    """Longest answer that may be asked for, in tokens, and how long it may be where nothing is said."""
    max_prompt_tokens: int = 1_000_000
    """Longest conversation, in tokens, those of pictures included; the language model's context holds in any case."""
    max_pictures: int = 8
    """Pictures of a conversation."""
    max_pixels: int = 50_000_000
    """Pixels of all pictures of a conversation together."""
    max_body_bytes: int = 20 * 2**20
    """Largest request, its pictures as base64 included."""
    max_held_bytes: int = 256 * 2**20
    """Bytes of all requests that are being received or read; what comes beyond is told to come again."""
    max_batch: int = 32
    """Answers generated at a time."""
    max_batch_tokens: int = 32_768
    """Places of a batch, rows times the longest prompt and answer: what the cache of keys and values takes."""
    max_queue: int = 256
    """Requests that may wait; what comes beyond is told to come again."""
    timeout: float = 300.0
    """Seconds from a request's first byte to the end of its answer."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "auto"
    """fp32, bf16-mixed, bf16 or auto."""
    vision_source: str = ""
    """Folder or hub id of the vision backbone, if it is no longer where the run found it."""
    language_source: str = ""
    """Folder or hub id of the language model, if it is no longer where the run found it."""


def main(argv: Sequence[str]) -> None:
    """Load the model, then serve it until told to end."""
    arguments = parse(Arguments, argv, prog="vlm serve", description="Serve a trained model: OpenAI's chat completions, and a page to chat.")
    for package in ("fastapi", "uvicorn"):
        _require(package)
    from vlm.infer.server.app import create_app
    from vlm.infer.server.hosts import answered_names
    from vlm.infer.server.limits import Limits
    from vlm.infer.server.running import run_until_signal

    limits = Limits(**{name: getattr(arguments, name) for name in Limits.__dataclass_fields__})
    key = arguments.api_key or os.environ.get(KEY_VARIABLE, "")
    trusted = host_names(arguments.trusted_host, "--trusted-host")
    with _listen(arguments.host, arguments.port) as listening:
        names = answered_names(listening.getsockname()[0], trusted, has_key=bool(key))
        service = _service(arguments, limits)
        _say(service.name, listening, has_key=bool(key))
        run_until_signal(create_app(service, api_key=key, names=names), service, listening)


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(package, needed_for="vlm serve", extra="serve")


def _listen(host: str, port: int) -> socket.socket:
    """The socket, taken before the model is loaded, so that a port in use is noticed at once.

    Raises:
        ConfigError: If it cannot be had.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port is {port}; it must be 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        said = str(error.strerror or error).partition(" (while")[0]  # Python says the address once more
        raise ConfigError(f"Cannot listen at {host} port {port}: {said}. Choose another --host or --port.") from None


def _service(arguments: Arguments, limits: Any) -> Any:
    from vlm.infer.server.pictures import fetch_from
    from vlm.infer.server.service import Service
    from vlm.models.checkpoint import open_model
    from vlm.models.sampling import Sampling

    default = Sampling(max_new_tokens=limits.max_new_tokens, temperature=arguments.temperature, top_p=arguments.top_p)
    fetch = fetch_from(arguments.allow_host, max_bytes=limits.max_body_bytes, allow_private=arguments.allow_private)
    model = open_model(arguments.run, device=arguments.device, precision=arguments.precision, run_root=arguments.run_root, **sources_of(arguments))
    return Service(model.eval(), _name(arguments), limits=limits, default=default, fetch=fetch)


def _name(arguments: Arguments) -> str:
    """As stated, or that of the run or the checkpoint folder; of a hub id, the id."""
    from vlm.models.checkpoint import find_checkpoint

    if arguments.name:
        return arguments.name
    checkpoint = find_checkpoint(arguments.run, run_root=arguments.run_root).resolve()
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parents[1].name
    return checkpoint.name if Path(arguments.run).is_dir() else arguments.run  # the hub's cache names folders by commits


def _say(name: str, listening: socket.socket, *, has_key: bool) -> None:
    """Where the server is, and a warning if anybody may use it."""
    host, port = listening.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    print(f"{name}: chat at http://{address}:{port}/, OpenAI's API at http://{address}:{port}/v1; Ctrl-C ends it.", flush=True)
    if not has_key and not ipaddress.ip_address(host).is_loopback:
        log.warning("Other machines can reach this server, and it asks for no key: set %s, or listen at 127.0.0.1.", KEY_VARIABLE)
