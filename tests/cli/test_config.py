"""Where a flag's value comes from: the command line, the environment, config.toml; and what a wrong file is told."""

from pathlib import Path
from typing import Any

import pytest

from localqwen.cli import config, main, run
from localqwen.cli.bench import measure


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What `localqwen run` got, without running it."""
    values: dict[str, Any] = {}
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    monkeypatch.setattr(run.command, "callback", lambda **given: values.update(given))
    return values


def changed(seen: dict[str, Any]) -> dict[str, Any]:
    """The flags that have another value than without any configuration."""
    plain = {"model": "demo", "prompt": ("hi",), "system": "", "tools": None, "hide_thinking": False, "stop": ()}
    plain |= {"stats": False, "as_json": False, "yes": False, "force": False}
    return {name: value for name, value in seen.items() if value != plain.get(name)}


def write(folder: Path, text: str) -> None:
    (folder / "config.toml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "environment", "flags", "budget"),
    [
        ("", {}, [], None),
        ("budget = 1", {}, [], 1),
        ("budget = 1\n[run]\nbudget = 2", {}, [], 2),
        ("budget = 1\n[chat]\nbudget = 2", {}, [], 1),
        ("budget = 1\n[run]\nbudget = 2", {"LOCALQWEN_BUDGET": "3"}, [], 3),
        ("[run]\nbudget = 2", {"LOCALQWEN_BUDGET": "3", "LOCALQWEN_RUN_BUDGET": "4"}, [], 4),
        ("[run]\nbudget = 2", {"LOCALQWEN_CHAT_BUDGET": "3"}, [], 2),
        ("[run]\nbudget = 2", {"LOCALQWEN_BUDGET": ""}, [], 2),
        ("budget = 1\n[run]\nbudget = 2", {"LOCALQWEN_RUN_BUDGET": "4"}, ["--budget", "5"], 5),
    ],
)
def test_flag_before_environment_before_table_before_top(
    seen: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    environment: dict[str, str],
    flags: list[str],
    budget: int | None,
) -> None:
    write(tmp_path, file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "demo", "hi", *flags]) == 0
    assert seen["budget"] == budget


def test_every_kind_of_flag_can_stand_in_the_file(seen: dict[str, Any], tmp_path: Path) -> None:
    write(
        tmp_path,
        "think = false\nhide-thinking = true\nmax_tokens = 9\ntop-p = 1\nsystem = 'Be kind.'\n"
        "[run]\nstop = ['a', 'b']\nctx = 512\nengine = 'llama.cpp'\n",
    )
    assert main(["run", "demo", "hi"]) == 0
    assert changed(seen) == {
        "think": False, "hide_thinking": True, "max_tokens": 9, "top_p": 1.0, "system": "Be kind.",
        "stop": ("a", "b"), "context_length": 512, "engine": "llama.cpp",
    }  # fmt: skip


def test_every_kind_of_flag_can_stand_in_the_environment(seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"THINK": "no", "RUN_STOP": "###", "CTX": "64", "TEMPERATURE": "0.5", "STATS": "1"}.items():
        monkeypatch.setenv(f"LOCALQWEN_{name}", value)
    assert main(["run", "demo", "hi"]) == 0
    assert changed(seen) == {"think": False, "stop": ("###",), "temperature": 0.5, "stats": True, "context_length": 64}
    assert main(["run", "demo", "hi", "--think"]) == 0
    assert seen["think"] is True


@pytest.mark.parametrize(
    ("file", "environment", "model"),
    [
        ("", {}, None),
        ("model = 'a.gguf'", {}, "a.gguf"),
        ("model = 'a.gguf'\n[chat]\nmodel = 'b.gguf'", {}, "b.gguf"),
        ("model = 'a.gguf'", {"LOCALQWEN_MODEL": "c.gguf"}, "c.gguf"),
    ],
)
def test_the_model_of_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, environment: dict[str, str], model: str | None
) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    write(tmp_path, file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert config.default_model() == model


@pytest.mark.parametrize(
    ("file", "message", "hint"),
    [
        ("buget = 3", "config.toml: buget is unknown", "did you mean budget?"),
        ("zzz = 'red'", "config.toml: zzz is unknown", "possible: [bench], [chat], [completion]"),
        ("[run]\nbuget = 3", "config.toml: [run] buget is unknown", "did you mean budget?"),
        ("[chat]\nxyzzy = 3", "config.toml: [chat] xyzzy is unknown", "possible: "),
        ("[run]\nmodel = 'demo'", "config.toml: [run] model is unknown", "possible: "),
        ("[runn]\nbudget = 3", "config.toml: [runn] is unknown", "did you mean [run]?"),
        ("budget = 'many'", "config.toml: budget is 'many', it must be a whole number", "--help"),
        ("budget = 3.7", "config.toml: budget is 3.7, it must be a whole number", "--help"),
        ("budget = true", "config.toml: budget is True, it must be a whole number", "--help"),
        ("budget = -3", "config.toml: budget: -3 is not in the range x>=0", "--help"),
        ("think = 'yes'", "config.toml: think is 'yes', it must be true or false", "--help"),
        ("temperature = '1'", "config.toml: temperature is '1', it must be a number", "--help"),
        ("stop = [1]", "config.toml: stop is [1], it must be a text", "--help"),
        ("model = 3", "config.toml: model is not a text", 'model = "demo"'),
        ("[chat]\nbudget = 'x'", "config.toml: [chat] budget is 'x'", "--help"),  # also of a command that does not run
        ("a = 1\nb = = 2", "config.toml is not valid TOML", "put texts into quotes"),
    ],
)
def test_a_wrong_file_is_named_with_the_key_and_what_is_possible(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    message: str,
    hint: str,
) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    write(tmp_path, file)
    assert main(["run", "demo", "hi"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Error: {tmp_path}")
    assert message in err
    assert hint in err.partition("\n\nhint: ")[2]


def test_invalid_toml_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    write(tmp_path, "ctx = 1\nbudget = = 2")
    assert main(["run", "demo", "hi"]) == 2
    assert "line 2" in capsys.readouterr().err


def test_a_file_that_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_bytes(b"system = 'caf\xe9'")
    assert main(["run", "demo", "hi"]) == 2
    assert "config.toml is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LOCALQWEN_BUDGET", "many", "Error: LOCALQWEN_BUDGET: 'many' is not a valid integer"),
        ("LOCALQWEN_RUN_THINK", "perhaps", "Error: LOCALQWEN_RUN_THINK: 'perhaps' is not a valid boolean"),
        ("LOCALQWEN_TOP_P", "2", "Error: LOCALQWEN_TOP_P: 2.0 is not in the range 0<=x<=1"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["run", "demo", "hi"]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_help_works_with_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    write(tmp_path, "= nonsense")
    assert main(["run", "--help"]) == 0
    assert "--budget" in capsys.readouterr().out


def test_flags_of_several_values_take_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A default of raw speed's lengths does not ask for raw speed beside a conversation."""
    asked: list[measure.Asked] = []
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "run", lambda each: asked.append(each) or 0)
    write(tmp_path, 'threads = 2\n[bench]\nprompt = [64, 256]\nbatch = 4\nthreads = [1, 2]\nworkload = ["a", "b"]\n')
    assert main(["bench", "demo", "--chat"]) == 0
    assert main(["bench", "demo", "--depth", "0,64", "--threads", "3"]) == 0
    first, second = asked
    assert (first.prompt, first.batch, first.threads, first.workload) == ([64, 256], [4], [1, 2], "a,b")
    assert (first.speed_typed, second.speed_typed) == (False, True)
    assert (second.depth, second.threads) == ([0, 64], [3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads = [1, 2]", "threads is [1, 2], it must be a whole number"),  # other commands take one
        ("[bench]\nprompt = []", "[bench] prompt is [], it must be a whole number or a list of them"),
        ("[bench]\nprompt = [[1]]", "[bench] prompt is [[1]], it must be a whole number or a list of them"),
        ('[bench]\nprompt = ["1"]', "[bench] prompt is ['1'], it must be a whole number or a list of them"),
        ("[bench]\nbatch = [0]", "[bench] batch: [0] is not a list of whole numbers from 1 on"),
        ("[bench]\nworkload = [1]", "[bench] workload is [1], it must be a text in quotes or a list of them"),
    ],
)
def test_a_list_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    write(tmp_path, text)
    assert main(["bench", "demo"]) == 2
    assert message in capsys.readouterr().err
