"""From a name and flags to an engine, through every door: the name is parsed once, and every option arrives."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_adapter, make_checkpoint
from recording_engine import Opening, Recorder

import localqwen
from localqwen import engines
from localqwen.bench import runner, worker_main
from localqwen.bench.samples import Sample, Test
from localqwen.bench.worker import Target
from localqwen.chat.load_options import OPTIONS, LoadOptions
from localqwen.cli import main
from localqwen.engines.llama_cpp import settings
from localqwen.errors import UsageError
from localqwen.model_process import child
from localqwen.models import fit, names, registry, resolve
from localqwen.serve.http import server as http_server

MODULE = "model.layers.0.self_attn.q_proj"


class NearWorker:
    """A worker of the benchmark in this process: what it is told goes through JSON all the same."""

    def __init__(self, target: Target) -> None:
        self.target, self.pid = target, 0
        self._bench = worker_main.Bench(**json.loads(json.dumps(target.to_json())))
        self.facts = self._bench.facts()

    def measure(self, test: Test, repeat: int, **options: Any) -> Iterator[Sample]:
        yield from self._bench.measure(test, repeat, json.loads(json.dumps(options)))

    def peak_memory(self) -> int | None:
        return None

    def __enter__(self) -> NearWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._bench.close()


class NoSpeed:
    """Raw speed of an engine that has none."""

    def __init__(self, engine: Any, subject: str) -> None:
        self._subject = subject

    def warm_up(self) -> None:
        pass

    def measure(self, test: Test, repeat: int) -> Sample:
        return Sample(self._subject, test, {"tokens_per_second": 1.0})


def load_nearby(server: http_server.Listening, listener: socket.socket) -> None:
    """Load a server's models as their processes would, in this process: what they are told goes through JSON."""
    catalogue = server._service.catalogue
    for name in catalogue.served:
        child.open_named(json.loads(json.dumps(catalogue.spec(name).to_json()))).loaded.engine.close()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Every engine is recorded, the server does not listen, and the benchmark stays in this process."""
    found = Recorder()
    found.install(monkeypatch)
    monkeypatch.setattr(http_server, "run", load_nearby)
    monkeypatch.setattr(runner, "Worker", NearWorker)
    monkeypatch.setattr(worker_main, "SpeedBench", NoSpeed)
    return found


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    yield
    for name in ("localqwen.serve", "uvicorn.error"):  # their handlers write to the stream of this test
        logging.getLogger(name).handlers.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    make_adapter(folder, {MODULE: (256, 256)})
    return folder


def call(*arguments: str | Path, stdin: str = "") -> None:
    line = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        assert main(line) in (0, None), line


def flags(options: Mapping[str, Any]) -> list[str]:
    """As a person types them."""
    typed: list[str] = []
    for name, value in options.items():
        typed += [OPTIONS[name].flag] if value is True else [OPTIONS[name].flag, str(value)]
    return typed


def run(model: Path, options: Mapping[str, Any]) -> None:
    call("run", model, "hi", *flags(options))


def chat(model: Path, options: Mapping[str, Any]) -> None:
    call("chat", model, *flags(options), stdin="/bye\n")


def serve(model: Path, options: Mapping[str, Any]) -> None:
    call("serve", model, "--port", "0", *flags(options))


def bench(model: Path, options: Mapping[str, Any]) -> None:
    """It takes the context that its tests need, and as many answers at once as the largest of its batches."""
    own = dict(options)
    tests = ["--prompt", str(own.pop("context_length", 20) - 4), "--generate", "0", "--repeats", "1", "--no-save"]
    if batch := own.pop("parallel", 0):
        tests += ["--generate", "2", "--batch", str(batch)]
    call("bench", model, *tests, *flags(own))


def load(model: Path, options: Mapping[str, Any]) -> None:
    localqwen.load(model, **options).close()


def open_engine(model: Path, options: Mapping[str, Any]) -> None:
    named = {OPTIONS[name].parameter or name: value for name, value in options.items()}
    engines.open(model, **named).close()


#: Every door -> the fields of LoadOptions that it does not offer, because it answers one request at a time.
DOORS: dict[Callable[[Path, Mapping[str, Any]], None], set[str]] = {
    run: {"parallel"}, chat: {"parallel"}, serve: set(), bench: set(), load: set(), open_engine: set(),
}  # fmt: skip
#: Field -> a value that is no door's default. A new field needs one here, and then every door.
VALUES = {
    "engine": "mlx", "context_length": 512, "threads": 3, "parallel": 2, "kv_quant": 8, "adapter": "", "force": True,
}  # fmt: skip


def test_every_field_is_tried() -> None:
    assert list(VALUES) == [each.name for each in dataclasses.fields(LoadOptions)] == list(OPTIONS)


@pytest.mark.parametrize(
    ("door", "name"),
    [(door, name) for door, missing in DOORS.items() for name in VALUES if name not in missing],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_an_option_reaches_the_engine(
    recorder: Recorder, model: Path, adapter: Path, door: Callable[..., None], name: str
) -> None:
    value = adapter if name == "adapter" else VALUES[name]
    door(model, {})
    door(model, {name: value})
    before, after = map(opened_as, recorder.openings)
    expected = adapter.name if name == "adapter" else value
    assert after[name] == expected
    assert before[name] != expected
    assert {key: seen for key, seen in after.items() if key != name} == {
        key: seen for key, seen in before.items() if key != name
    }


def opened_as(opening: Opening) -> dict[str, Any]:
    """What an engine was told, by the fields of LoadOptions; an adapter by the name of its file."""
    lora = opening.options["adapter"]
    told = {name: opening.options[option.parameter] for name, option in OPTIONS.items() if option.parameter}
    return {**told, "engine": opening.engine, "adapter": lora.stem if lora else None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context_length": 0}, "context_length is 0, it must be 1 or more"),
        ({"threads": "2"}, "threads is '2', it must be a whole number"),
        ({"threads": True}, "threads is True, it must be a whole number"),
        ({"parallel": 0}, "parallel is 0, it must be 1 or more"),
        ({"parallel": None}, "parallel is None, it must be a whole number"),
        ({"kv_quant": 5}, "kv_quant is 5, it must be 8 or 4"),
        ({"force": 1}, "force is 1, it must be true or false"),
        ({"engine": 3}, "engine is 3, it must be a text"),
    ],
)
def test_a_value_that_no_engine_takes_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        localqwen.load("demo", **values)
    assert error.value.message == message
    assert "--" in error.value.hint


def test_an_option_that_does_not_exist_is_no_option_of_load() -> None:
    with pytest.raises(TypeError, match="temperature"):
        localqwen.load("demo", temperature=1)


def test_options_survive_the_way_into_another_process() -> None:
    options = LoadOptions(engine="mlx", kv_quant=4, adapter="lora", force=True)
    assert LoadOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


# A name is understood once


class Counted:
    """How often a name was parsed, and looked up in the registry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parsed: list[str] = []
        self.found: list[str] = []
        parse, find = names.parse, registry.find
        monkeypatch.setattr(names, "parse", lambda name: (self.parsed.append(name), parse(name))[1])
        monkeypatch.setattr(registry, "find", lambda name: (self.found.append(name), find(name))[1])


ONCE = [
    (["run", "demo", "hi"], ["demo"]),
    (["chat", "demo"], ["demo"]),
    (["chat"], ["demo"]),
    (["serve", "demo", "--port", "0"], ["demo"] * 2),
    (["bench", "demo", "--generate", "0", "--repeats", "1", "--no-save"], ["demo"] * 2),
    (["bench", "demo", "demo", "--chat", "--engine", "gguf,mlx", "--repeats", "1", "--no-save"], ["demo"] * 6),
    (["show", "demo"], ["demo"]),
    (["tune", "demo", "--show"], ["demo"]),
    (["rm", "nothing.gguf"], ["nothing.gguf"]),
]


@pytest.mark.parametrize(("line", "expected"), ONCE, ids=" ".join)
def test_a_name_is_parsed_once(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, line: list[str], expected: list[str]
) -> None:
    """A model of the server or the benchmark has a process of its own, which parses its name once more."""
    monkeypatch.setattr("localqwen.cli.chat.largest", lambda: None)
    monkeypatch.setattr(settings, "tuned", lambda path, base: base)  # it would probe the engine
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/bye\n" if line[0] == "chat" else b"")))
    counted = Counted(monkeypatch)
    main(line)
    assert counted.parsed == expected
    assert counted.found == [name for name in expected if name == "demo"] + (
        ["nothing.gguf"] if line[0] == "rm" else []
    )


# What an entry says of sampling


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's own entry of the demo: other temperatures than its makers'."""
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    (tmp_path / "models.toml").write_text(
        '["demo"]\ndescription = "mine"\nthinking = "switch"\nlicence = "MIT"\n'
        "sampling = { thinking = { temperature = 0.11 }, not_thinking = { temperature = 0.22 } }\n"
    )
    registry.models.cache_clear()
    yield
    registry.models.cache_clear()


LINES = {
    "run": ["run", "demo", "hi", "--no-think", "--engine", "mlx"],
    "chat": ["chat", "demo", "--no-think", "--engine", "mlx"],
    "bench": ["bench", "demo", "--chat", "--engine", "mlx", "--repeats", "1", "--no-save"],
}


@pytest.mark.parametrize("command", LINES)
def test_the_users_presets_are_used(recorder: Recorder, warm: None, command: str) -> None:
    call(*LINES[command], stdin="hi\n" if command == "chat" else "")
    used = {run.sampling.temperature for run in recorder.openings[0].opened.runs if run.max_tokens}
    assert used == ({0.11, 0.22} if command == "bench" else {0.22})


def test_the_users_presets_reach_a_server(recorder: Recorder, warm: None) -> None:
    from localqwen.engines import selection
    from localqwen.serve.model_names import Catalogue

    catalogue = Catalogue([selection.resolve("demo", "mlx")], LoadOptions())
    info = child.open_named(catalogue.spec(catalogue.resolve("")).to_json()).loaded.info
    assert (info.presets.thinking.temperature, info.presets.not_thinking.temperature) == (0.11, 0.22)


# What --kv-quant changes beside the engine


def measured(model: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    line = ["bench", str(model), "--prompt", "64", "--generate", "0", "--repeats", "1", "--no-save", "--json", *more]
    assert main(line) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_benchmark_counts_keys_and_values_as_they_are_kept(
    recorder: Recorder, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, four = (measured(model, *more, capsys=capsys) for more in ((), ("--kv-quant", "4")))
    sizes = [run["subjects"][0]["kv_bytes"] for run in (plain, four)]
    assert sizes[1] / sizes[0] == fit.KV_BYTES["q4_0"] / fit.KV_BYTES["f16"]
    assert "keys and values in 4 bits" in four["notes"]
    assert four["settings"]["kv_quant"] == 4
    assert "kv_quant" not in plain["settings"]


def test_keys_and_values_in_fewer_bits_may_fit_a_memory_that_16_bit_do_not(
    recorder: Recorder, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from localqwen.engines import selection
    from localqwen.formats import model_header

    header = model_header.read(selection.resolve(model, "mlx").path())
    needed = [fit.needed_bytes(header, 256, kv) for kv in ("f16", "q4_0")]
    here = dataclasses.replace(runner.this_machine(), memory=sum(needed) // 2)
    monkeypatch.setattr(runner, "this_machine", lambda: here)
    assert main(["bench", str(model), "--prompt", "64", "--generate", "0", "--engine", "mlx", "--no-save"]) == 1
    assert "this machine has" in capsys.readouterr().err
    measured(model, "--engine", "mlx", "--kv-quant", "4", capsys=capsys)


def test_a_server_cannot_be_told_how_to_keep_its_keys_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:9/v1", "--chat", "--kv-quant", "8"]) == 2
    assert "--kv-quant with --url" in capsys.readouterr().err


def test_the_worker_opens_what_the_parent_chose() -> None:
    """Within limits the machine looks smaller, and a family would mean another size there."""
    model = resolve.of_reference(names.parse("qwen3"), lambda wanted, files: resolve.Choice("mlx", ""))
    told = Target(model, "label", LoadOptions(threads=2)).to_json()
    assert told["name"] == names.parse("qwen3").text != "qwen3"
    assert told["options"]["engine"] == "mlx"
