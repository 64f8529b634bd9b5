"""`localqwen serve`: one server for the clients of the OpenAI, Ollama and Anthropic APIs."""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from localqwen import units
from localqwen.cli import chat
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.loading import Loading, serving_options
from localqwen.errors import EngineUnavailable, UsageError

if TYPE_CHECKING:
    from localqwen.models.resolve import ResolvedModel
    from localqwen.serve.http.app import Settings


class Duration(click.ParamType[float]):
    """A length of time: `90s`, `5m`, `1h30m`, or a number of seconds; below 0: for ever."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds; inf for ever."""
        if isinstance(value, float):
            return value
        seconds = units.parse_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is not a duration: write 90s, 5m, 1h, or -1 for ever", param, ctx)
        return seconds if seconds >= 0 else float("inf")


class Size(click.ParamType[int]):
    """A number of bytes with its unit: `8MiB`, `64MB`, `1G`."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        size = value if isinstance(value, int) else units.parse_size(str(value))
        if size is None:
            self.fail(f"{value!r} is not a size: write 8MiB, 64MB, 1GiB", param, ctx)
        return size


@click.command("serve", cls=ConfiguredCommand)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Listen at this address.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Listen at this port; 0: any free one.",
)
@click.option("--api-key", metavar="KEY", help="Require this key (better: LOCALQWEN_API_KEY).")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Let web pages of this origin use the server; *: all.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Accept another host name of this server.")
@click.option(
    "--keep-alive",
    type=Duration(),
    default="5m",
    show_default=True,
    metavar="TIME",
    help="Unload a model that is idle for so long; -1: never.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    metavar="N",
    help="Let N requests wait, per model.",
)
@click.option(
    "--max-body",
    type=Size(),
    default="8MiB",
    show_default=True,
    metavar="SIZE",
    help="Refuse requests with a larger body.",
)
@click.option(
    "--reasoning-field",
    type=click.Choice(["reasoning_content", "reasoning", "both"]),
    default="both",
    show_default=True,
    help="Put the thinking into this field for OpenAI clients.",
)
@click.option(
    "--load-timeout",
    type=Duration(),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Give up loading a model after so long; -1: never.",
)
@click.option(
    "--prompt-timeout",
    type=Duration(),
    default="10s",
    show_default=True,
    metavar="TIME",
    help="Give up rendering, tokenizing or a grammar after so long; -1: never.",
)
@click.option("--no-prepare", is_flag=True, help="Do not prefill next turns while nobody waits.")
@serving_options
def command(models: tuple[str, ...], host: str, port: int, loading: Loading, **flags: Any) -> int:
    """Serve models to programs over HTTP: OpenAI's API at http://localhost:8000/v1.

    The first MODEL answers requests that name none; others on disk are loaded when a request names them. Without MODEL:
    the configured one, else the largest on disk that fits, else `demo`.
    """
    _need_extra()
    from localqwen.serve.http import server as http_server

    if loading.options.adapter and len(models) > 1:
        raise UsageError(
            "--adapter is for one model, but several are named", "serve only the model that it was trained for"
        )
    served = [loading.ensure(model) for model in _models(models, loading)]
    listener = http_server.bind(host, port)  # an address in use is an error before seconds of loading
    try:
        return _serve(served, listener, loading, host, flags)
    finally:
        listener.close()


def _models(named: Sequence[str], loading: Loading) -> list[ResolvedModel]:
    """Return the models of the command line, else the choice of `localqwen chat`, with the reason on stderr."""
    if named:
        return [loading.resolve(name) for name in named]
    choice = chat.choose(None, None, chat.largest, loading)
    sys.stderr.write(f"{choice.reason}\n")
    return [choice.model]


def _serve(models: Sequence[ResolvedModel], listener: Any, loading: Loading, host: str, flags: dict[str, Any]) -> int:
    from localqwen.serve.http import server as http_server
    from localqwen.serve.http.app import Service
    from localqwen.serve.model_names import Catalogue

    _log_to(sys.stderr)
    _warn_about_access(host, flags["api_key"], flags["cors"])
    service = Service(Catalogue(models, loading.options), _settings(host, flags))
    server = http_server.Listening(service, started=lambda: _announce(service, http_server.url(listener)))
    http_server.run(server, listener)
    return 0


def _settings(host: str, flags: dict[str, Any]) -> Settings:
    from localqwen.serve.http.app import REASONING_FIELDS, Settings
    from localqwen.serve.http.guard import Access, own_names
    from localqwen.serve.served_model import Limits

    field = flags["reasoning_field"]
    hosts = (*own_names(host), *(name.lower() for name in flags["allow_host"]))
    return Settings(
        Limits(
            flags["max_queue"],
            flags["keep_alive"],
            prefill_ahead=not flags["no_prepare"],
            stage=flags["prompt_timeout"],
            load=flags["load_timeout"],
        ),
        Access(flags["api_key"] or "", hosts, flags["cors"], flags["max_body"]),
        REASONING_FIELDS if field == "both" else (field,),
    )


def _announce(service: Any, url: str) -> None:
    for model in service.models.loaded():
        sys.stderr.write(
            f"{url}/v1 · {model.name} · {model.engine} · {model.max_runs} answers at once · "
            f"{model.context_length:,} tokens each\n"
        )
    sys.stderr.flush()


def _warn_about_access(host: str, key: str | None, origins: Sequence[str]) -> None:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not key:
        sys.stderr.write(f"warning: anyone who can reach {host} may use this server; set LOCALQWEN_API_KEY\n")
    if "*" in origins and not key:
        sys.stderr.write("warning: --cors '*' lets every page in your browser use this server; set LOCALQWEN_API_KEY\n")


def _log_to(stream: Any) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("localqwen.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if name == "localqwen.serve" else logging.WARNING)
        logger.propagate = False


def _need_extra() -> None:
    import importlib.util

    missing = [name for name in ("starlette", "uvicorn", "llguidance") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineUnavailable(f"the server needs {', '.join(missing)}", "pip install 'localqwen[serve]'")
