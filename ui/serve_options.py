"""The options of `nightschool serve`. Imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from assistant.command_line import data_option, model_option
from assistant.environment import AUTO, FORMATS

ENGINE_URL = "http://127.0.0.1:8000"  # vLLM's own default


@dataclass(frozen=True)
class ServeOptions:
    """The options that the server runs with."""

    data: Path
    model: str
    host: str
    port: int
    trusted_proxy: tuple[str, ...]
    root_path: str
    grace: float  # seconds
    side_by_side: float | None
    dtype: str
    memory: int  # bytes
    engine: str
    engine_url: str | None


class Gibibytes(click.ParamType):
    """A size in bytes, typed in GiB."""

    name = "gib"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = int(float(value) * (1 << 30))
        except (ValueError, OverflowError):
            size = 0
        if size <= 0:
            self.fail(f"a number of GiB above 0, not {value!r}", param, ctx)
        return size


OPTIONS = (
    data_option,
    model_option,
    click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on."),
    click.option(
        "--port", type=int, default=7860, show_default=True, help="The port to listen on; 0 picks a free one."
    ),
    click.option(
        "--trusted-proxy",
        multiple=True,
        metavar="ADDRESS",
        help="A TLS proxy, by address or network, whose X-Forwarded headers are trusted; repeatable.",
    ),
    click.option(
        "--root-path",
        default="",
        metavar="PATH",
        help="The path at which a proxy serves it, such as /ns (docs/proxy.md).",
    ),
    click.option(
        "--grace",
        type=click.FloatRange(0, 3600),
        default=7,
        show_default=True,
        metavar="SECONDS",
        help="How long replies being written may go on when the server is told to stop; Docker kills it after 10.",
    ),
    click.option(
        "--side-by-side",
        type=float,
        metavar="SHARE",
        help="The share of turns that show two replies, 0 to 1; kept as a setting.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(FORMATS),
        default=AUTO,
        show_default=True,
        help="The number format; auto measures once which are fastest here (README).",
    ),
    click.option(
        "--memory",
        type=Gibibytes(),
        default="1",
        show_default=True,
        metavar="GIB",
        help="Memory for the KV cache of all chats, in GiB.",
    ),
    click.option(
        "--engine",
        type=click.Choice(("local", "vllm")),
        default="local",
        show_default=True,
        help="Where the model runs: here, or in a vLLM server (docs/vllm.md).",
    ),
    click.option("--engine-url", metavar="URL", help=f"Where vLLM answers; {ENGINE_URL} unless given."),
)


def serve_command(start: Callable[[ServeOptions], int]) -> click.Command:
    """The command `serve`, which calls `start` with its options."""

    def serve(**asked: Any) -> int:
        return start(ServeOptions(**asked))

    for option in reversed(OPTIONS):
        serve = option(serve)
    return click.command("serve", help="Serve the pages and the HTTP API.")(serve)
