"""Describe what others rely on, as it is now: Python names, errors, commands, settings, JSON keys, HTTP paths.

    python tests/guards/public_surface.py     # writes public.json anew

`public.json` is a promise: a new version may add to it and takes nothing away. Run this when something was added, and
read the difference before it is committed: a line that vanished there is broken for somebody.

Everything is reached as a user reaches it: by the documented names, the entry point of the command line, and HTTP.
Where a module lies is nobody's business here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib
import inspect
import io
import json
import math
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import click

import localqwen
from localqwen import errors
from localqwen.cli import main

RECORD = Path(__file__).with_name("public.json")
Json = Any

#: Documented functions and methods, as MODULE:NAME.
FUNCTIONS = (
    "localqwen:load", "localqwen:parse_output", "localqwen.chat.template:ChatTemplate",
    "localqwen.chat.template:ChatTemplate.render", "localqwen.engines:open", "localqwen.errors:LocalqwenError",
    "convert:convert", "convert:convert_to_mlx", "convert:dequantise",
    "convert:merge", "convert:plan", "convert:forecast_gguf", "convert:forecast_mlx",
    "convert:adapter_for_llama_cpp", "convert:adapter_for_mlx",
)  # fmt: skip
#: Values that a user makes: their fields can be given in this order.
MADE_BY_USERS = (
    "localqwen:Message", "localqwen:Request", "localqwen:Overrides", "localqwen:Tool", "localqwen:ToolCall",
    "localqwen:JsonFormat", "convert:Options",
)  # fmt: skip
#: Values that a user gets: events may be matched by position.
MATCHED = (
    "localqwen:Started", "localqwen:Working", "localqwen:Thinking", "localqwen:Text", "localqwen:ToolCall",
    "localqwen:Finished",
)  # fmt: skip
READ_BY_USERS = (*MATCHED, "localqwen:ParsedOutput", "convert:Progress", "convert:Report")
#: What follows `bench` and is no model.
BENCH = ("list", "show", "compare", "plot")


# Python


def python_names() -> Json:
    return {
        "localqwen.__all__": sorted(localqwen.__all__),
        "convert.__all__": sorted(importlib.import_module("convert").__all__),
        "events": sorted(each.__name__ for each in get_args(localqwen.Event)),
        "functions": {name: parameters(name) for name in FUNCTIONS},
        "made": {name: parameters(name) for name in MADE_BY_USERS},
        "matched": {name: list(pkgutil.resolve_name(name).__match_args__) for name in MATCHED},
        "read": {name: attributes(pkgutil.resolve_name(name)) for name in READ_BY_USERS},
    }


def parameters(name: str) -> dict[str, list[str]]:
    """Return the names that can be given by position, in order, and those that can only be given by name."""
    found: dict[str, list[str]] = {"positional": [], "keyword": []}
    for parameter in inspect.signature(pkgutil.resolve_name(name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found["keyword"].append(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self":
            found["positional"].append(parameter.name)
    return found


def takes_any_keyword(name: str) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(pkgutil.resolve_name(name)).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def required(name: str) -> list[str]:
    """Return the parameters without a default."""
    found = inspect.signature(pkgutil.resolve_name(name)).parameters.values()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [each.name for each in found if each.default is each.empty and each.kind not in variadic]


def attributes(kind: type) -> list[str]:
    """Return the fields and properties of a class."""
    fields = [field.name for field in dataclasses.fields(kind)]
    return fields + [name for name, value in vars(kind).items() if isinstance(value, property)]


def error_classes() -> Json:
    """Return for each error its exit code, HTTP status, and the errors that catch it."""
    found = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and name[0].isupper()}
    return {
        name: {
            "exit_code": kind.exit_code,
            "http_status": kind.http_status,
            "is": [base.__name__ for base in kind.__mro__[1:] if issubclass(base, errors.LocalqwenError)],
        }
        for name, kind in found.items()
        if issubclass(kind, errors.LocalqwenError)
    }


# The command line


def call(*arguments: str | Path, stdin: str = "") -> tuple[int, str, str]:
    """Run the entry point in this process. Return exit code, stdout and stderr."""
    out, aside = io.StringIO(), io.StringIO()
    piped = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    with (
        mock.patch.object(sys, "stdin", piped),
        mock.patch.object(sys, "excepthook", sys.excepthook),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(aside),
    ):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), aside.getvalue()


def call_json(*arguments: str | Path, stdin: str = "") -> Json:
    """Run a command that must succeed. Return the object that it writes to stdout."""
    code, out, aside = call(*arguments, stdin=stdin)
    assert code == 0, f"localqwen {' '.join(map(str, arguments))} ends with {code}: {aside}"
    return json.loads(out)


def command_at(*path: str) -> tuple[click.Command, click.Context]:
    """Return the command that `localqwen PATH` runs, as its `--help` finds it."""
    found: list[tuple[click.Command, click.Context]] = []

    def keep(command: click.Command, context: click.Context) -> str:
        found.append((command, context))
        return ""

    with mock.patch.object(click.Command, "get_help", keep):
        code, _, aside = call(*path, "--help")
    assert code == 0, f"localqwen {' '.join(path)} --help ends with {code}: {aside}"
    return found[-1]


def command_paths() -> list[tuple[str, ...]]:
    group, context = command_at()
    assert isinstance(group, click.Group)
    return [*((name,) for name in group.list_commands(context)), *(("bench", name) for name in BENCH)]


def options_of(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option)]


def arguments_of(command: click.Command) -> list[click.Argument]:
    return [each for each in command.params if isinstance(each, click.Argument)]


def commands() -> Json:
    return {" ".join(path): command(command_at(*path)[0]) for path in command_paths()}


def command(found: click.Command) -> Json:
    return {
        "arguments": [{"count": each.nargs, "required": each.required} for each in arguments_of(found)],
        "flags": {each.opts[0]: flag(each) for each in options_of(found)},
    }


def flag(option: click.Option) -> Json:
    values = list(map(str, option.type.choices)) if isinstance(option.type, click.Choice) else []
    kind = "switch" if option.is_flag else "repeated" if option.multiple else "value"
    return {
        "names": [*option.opts],
        "off": [*option.secondary_opts],
        "kind": kind,
        "default": plain(option.default) if kind == "value" else None,
        "values": values,
    }


def plain(value: object) -> Json:
    """Return a value as JSON holds it; what has no such form, as a mark for "not given", is null."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) else None


def parsed(*arguments: str | Path) -> dict[str, Json]:
    """Return the value of every flag, by its first name, as the command gets it; the command does not run."""
    found: list[click.Context] = []

    def keep(command: click.Command, context: click.Context) -> int:
        found.append(context)
        return 0

    with mock.patch.object(click.Command, "invoke", keep):
        code, _, aside = call(*arguments)
    assert code == 0, aside
    context = found[-1]
    return {each.opts[0]: plain(context.params.get(each.name or "")) for each in options_of(context.command)}


# Settings


@dataclass(frozen=True)
class Setting:
    """A flag's default that stands in config.toml or the environment: `value` is as TOML has it."""

    command: str
    flag: str
    value: Any

    @property
    def key(self) -> str:
        return self.flag.lstrip("-")

    @property
    def toml(self) -> str:
        return f"{self.key} = {json.dumps(self.value)}\n"

    @property
    def text(self) -> str:
        """The value in an environment variable."""
        first = self.value[0] if isinstance(self.value, list) else self.value
        return str(first).lower() if isinstance(first, bool) else str(first)

    @property
    def own_variable(self) -> str:
        return f"LOCALQWEN_{self.command}_{self.key}".upper().replace("-", "_")

    @property
    def variable(self) -> str:
        return f"LOCALQWEN_{self.key}".upper().replace("-", "_")

    def without(self) -> list[str]:
        """Return a command line with all that the command requires, but for this flag."""
        found = command_at(self.command)[0]
        words = ["demo" for each in arguments_of(found) if each.required]
        flags = [each.opts[0] for each in options_of(found) if each.required and self.flag not in each.opts]
        return [self.command, *words, *(word for name in flags for word in (name, "x"))]

    def line(self) -> list[str]:
        """Return the command line that says the same as the setting."""
        (option,) = [each for each in options_of(command_at(self.command)[0]) if self.flag in each.opts]
        if option.is_flag:
            return [*self.without(), option.secondary_opts[0] if self.value is False else self.flag]
        values = self.value if isinstance(self.value, list) else [self.value]
        return [*self.without(), *(word for value in values for word in (self.flag, str(value)))]


_TRIED = (True, 2, 0.5, ["x", "y"], "x", "90s")


def settings(home: Path) -> Json:
    """Return for each command its keys in config.toml, with a value that the file may hold."""
    found: dict[str, dict[str, Any]] = {}
    for (name,) in [path for path in command_paths() if len(path) == 1]:
        for option in options_of(command_at(name)[0]):
            tried = [Setting(name, max(option.opts, key=len), value) for value in _tried(option)]
            good = next((each for each in tried if _takes(each, home)), None)
            if good is not None:
                found.setdefault(name, {})[good.flag] = good.value
    return found


def _tried(option: click.Option) -> list[Any]:
    first = [False] if option.secondary_opts else []
    if isinstance(option.type, click.Choice):
        first.append(str(next(iter(option.type.choices))))
    return [*first, *_TRIED, option.flag_value]


def _takes(setting: Setting, home: Path) -> bool:
    file = home / "config.toml"
    try:
        given = parsed(*setting.line())
        file.write_text(f"[{setting.command}]\n{setting.toml}")
        return parsed(*setting.without()) == given
    except AssertionError:
        return False
    finally:
        file.unlink(missing_ok=True)


# JSON


#: Objects whose keys are a model's, a machine's or an installation's own, by the name of the key.
_OPEN = ("packages", "files", "tensors", "memory", "outputs", "inputs", "versions")


def paths(value: Json, at: str = "") -> dict[str, str]:
    """Return the path of every value with its kind: `usage.prompt_tokens` is a number, `models[].name` a string."""
    if isinstance(value, dict) and value:
        open_ended = at.rpartition(".")[2] in _OPEN
        found = [paths(each, f"{at}.*" if open_ended else f"{at}.{key}".lstrip(".")) for key, each in value.items()]
        return merged(found)
    if isinstance(value, list) and value:
        return merged([paths(each, f"{at}[]") for each in value])
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", dict: "object", list: "list"}
    return {at: kinds.get(type(value), "null")}


def merged(several: Sequence[Mapping[str, str]]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for each in several:
        for path, kind in each.items():
            found.setdefault(path, set()).update(kind.split("|"))
    return {path: "|".join(sorted(kinds)) for path, kinds in sorted(found.items())}


def vanished(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return in words which recorded keys are missing or hold another kind of value.

    Null stands for a value that is not known at the moment, and an empty list or object for one with contents.
    """
    complaints = []
    for path, kind in recorded.items():
        if path not in now:
            if not any(parent in now and now[parent] in _EMPTY for parent in _parents(path)):
                complaints.append(f"the key {path} has vanished")
        elif not set(now[path].split("|")) <= {*kind.split("|"), "null", *_EMPTY} and kind != "null":
            complaints.append(f"the key {path} was a {kind} and is a {now[path]}")
    return complaints


_EMPTY = ("null", "list", "object")


def _parents(path: str) -> Iterator[str]:
    while path:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
        yield path


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FIXTURES = Path(__file__).with_name("fixtures")
TINY = FIXTURES / "home" / "models" / "tiny-Q8_0.gguf"
TINY_MLX = FIXTURES / "Tiny-MLX-4bit"
_RUN = ("run", "demo", "--json", "--threads", "1", "--ctx", "512", "--temperature", "0")
_FIRST, _SECOND = (str(FIXTURES / "home" / "bench" / f"{name}.jsonl") for name in (
    "20261128-114105-d1ba", "20261128-114108-9e22"
))  # fmt: skip
#: Label -> command line with --json. {out} is a fresh folder with the text and the tools that the lines name.
REPORTS: dict[str, tuple[str, ...]] = {
    "run": (*_RUN, "What is 2 + 3?"),
    "run, a tool call": (*_RUN, "--tools", "{out}/tools.json", "What is the weather in Paris?"),
    "list --all": ("list", "--all", "--json"),
    "show demo": ("show", "demo", "--json"),
    "show a named model": ("show", "qwen3:4b", "--json"),
    "show a file": ("show", str(TINY), "--json"),
    "recommend": ("recommend", "--for", "phone", "--json"),
    "doctor": ("doctor", "--json"),
    "verify": ("verify", str(TINY), "--json"),
    "convert --list": ("convert", "--list", "--json"),
    "convert --dry-run": ("convert", "demo", "--quant", "q4_k_m", "--dry-run", "--json"),
    "convert --to mlx --dry-run": ("convert", "demo", "--to", "mlx", "--bits", "4", "--dry-run", "--json"),
    "convert": ("convert", str(TINY), "--quant", "q4_0", "--out", "{out}/small.gguf", "--json"),
    "convert --dequantize": ("convert", str(TINY_MLX), "--dequantize", "--out", "{out}/back", "--json"),
    "imatrix": ("imatrix", str(TINY), "--text", "{out}/text.txt", "--out", "{out}/i.gguf", "--threads", "1", "--json"),
    "quality": ("quality", str(TINY), str(TINY), "--text", "{out}/text.txt", "--json"),
    "tune": ("tune", str(TINY), "--json"),
    "tune --show": ("tune", str(TINY), "--show", "--json"),
    "bench show": ("bench", "show", _SECOND, "--json"),
    "bench show --llama-bench": ("bench", "show", _SECOND, "--llama-bench"),
    "bench compare": ("bench", "compare", _FIRST, _SECOND, "--json"),
}


def report(label: str, out: Path) -> dict[str, str]:
    """Run one of the command lines. Return the keys of what it says."""
    (out / "tools.json").write_text(json.dumps([TOOL]))
    (out / "text.txt").write_text("the other one in the rain and then " * 60)
    return paths(call_json(*(word.replace("{out}", str(out)) for word in REPORTS[label])))


# HTTP


@dataclass(frozen=True)
class Server:
    """`localqwen serve demo`, running."""

    process: subprocess.Popen[str]
    first_line: str
    port: int

    def ask(self, method: str, path: str, body: Json = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def json(self, path: str, body: Json = None) -> Json:
        status, answer = self.ask("GET" if body is None else "POST", path, body)
        assert status == 200, f"{path} answers {status}: {answer.decode()}"
        return json.loads(answer)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Start a server on a free port. It must say where it listens, and end in order."""
    words = ["serve", "demo", "--port", "0", "--no-prepare", "--threads", "1", "--ctx", "1024"]
    process = subprocess.Popen(
        [sys.executable, "-m", "localqwen", *words], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1\b", line)
        assert found is not None, f"serve does not say where it listens: {line}"
        yield Server(process, line, int(found[1]))
        process.terminate()
        process.stderr.read()
        assert process.wait(30) == 0, f"serve ends with {process.returncode}"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


_ASKED = [{"role": "user", "content": "What is 2 + 3?"}]
_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
_GREEDY = {"model": "demo", "temperature": 0}
_COLD = {"options": {"temperature": 0}}
_THINKS = {"type": "enabled", "budget_tokens": 200}
_ANTHROPIC_TOOL = {"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}
#: Label -> path and body (None: GET) of requests whose answers have recorded keys.
REQUESTS: dict[str, tuple[str, Json]] = {
    "/": ("/", None),
    "/health": ("/health", None),
    "/v1/models": ("/v1/models", None),
    "/v1/models/{model}": ("/v1/models/demo", None),
    "/v1/chat/completions": ("/v1/chat/completions", {**_GREEDY, "messages": _ASKED}),
    "/v1/chat/completions, a tool call": (
        "/v1/chat/completions",
        {**_GREEDY, "messages": _WEATHER, "tools": [TOOL]},
    ),
    "/v1/chat/completions, logprobs": (
        "/v1/chat/completions",
        {**_GREEDY, "messages": _ASKED, "logprobs": True, "top_logprobs": 1, "reasoning_effort": "none"},
    ),
    "/v1/completions": ("/v1/completions", {**_GREEDY, "prompt": "2 + 3", "max_tokens": 3}),
    "/v1/responses": ("/v1/responses", {**_GREEDY, "input": "What is 2 + 3?"}),
    "/v1/messages": (
        "/v1/messages",
        {**_GREEDY, "max_tokens": 300, "messages": _ASKED, "thinking": _THINKS},
    ),
    "/v1/messages, a tool call": (
        "/v1/messages",
        {**_GREEDY, "max_tokens": 300, "messages": _WEATHER, "tools": [_ANTHROPIC_TOOL]},
    ),
    "/v1/messages/count_tokens": ("/v1/messages/count_tokens", {"model": "demo", "messages": _ASKED}),
    "/api/chat": ("/api/chat", {"model": "demo", "messages": _ASKED, "stream": False, "think": True, **_COLD}),
    "/api/chat, a tool call": (
        "/api/chat",
        {"model": "demo", "messages": _WEATHER, "stream": False, "tools": [TOOL], **_COLD},
    ),
    "/api/generate": ("/api/generate", {"model": "demo", "prompt": "What is 2 + 3?", "stream": False, **_COLD}),
    "/api/tags": ("/api/tags", None),
    "/api/ps": ("/api/ps", None),
    "/api/show": ("/api/show", {"model": "demo"}),
    "/api/version": ("/api/version", None),
}


def routes(server: Server) -> dict[str, list[str]]:
    """Return the methods of every path that the server describes."""
    described = server.json("/openapi.json")["paths"]
    own = {path: ["get"] for path in ("/", "/openapi.json") if server.ask("GET", path)[0] == 200}
    return own | {path: sorted(set(found) & {"get", "post", "delete", "put"}) for path, found in described.items()}


def metrics(server: Server) -> list[str]:
    """Return the names of the metrics with the names of their labels."""
    status, text = server.ask("GET", "/metrics")
    assert status == 200
    lines = [line.rpartition(" ")[0] for line in text.decode().splitlines() if line and not line.startswith("#")]
    return sorted({re.sub(r'="[^"]*"', "", line) for line in lines})


def answers(server: Server) -> dict[str, dict[str, str]]:
    return {label: paths(server.json(*asked)) for label, asked in REQUESTS.items()}


def record() -> Json:
    """Return everything that `public.json` holds."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"LOCALQWEN_HOME": folder}):
        home = Path(folder)
        python = {"python": python_names(), "errors": error_classes()}
        line = {"commands": commands(), "settings": settings(home)}
        reports = {}
        for label in REPORTS:
            with tempfile.TemporaryDirectory() as out:
                reports[label] = report(label, Path(out))
        with serving() as server:
            keys = answers(server)  # first: a metric has no line before something was counted
            served = {"routes": routes(server), "metrics": metrics(server), "answers": keys}
    return {**python, **line, "reports": reports, "server": served}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
