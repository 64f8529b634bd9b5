"""convert, doctor, show, list and completion: what they print, as text and as JSON, and how they fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape, make_checkpoint

import localqwen
from localqwen.cli import main
from localqwen.cli.convert import command as convert
from localqwen.cli.format import aligned, readable_bytes
from localqwen.engines import selection
from localqwen.engines.llama_cpp import probe
from localqwen.engines.mlx import probe as mlx_probe
from localqwen.errors import EngineUnavailable
from localqwen.models import converted

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_convert_writes_a_file_and_says_what_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("convert", str(converted.demo_checkpoint()))
    assert (code, err) == (0, "")
    assert out.startswith("demo-Q8_0.gguf: ")
    assert " tensors, q8_0, " in out
    assert (tmp_path / "demo-Q8_0.gguf").read_bytes()[:4] == b"GGUF"


def test_convert_as_json(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    code, out, _ = run("convert", str(converted.demo_checkpoint()), "--quant", "bf16", "--out", str(target), "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["path"], report["bytes"], report["quant"]) == (str(target), target.stat().st_size, "bf16")
    assert set(report) == {"path", "bytes", "tensors", "quant", "seconds", "notes"}


def test_convert_replaces_a_file_only_with_force(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_text("precious")
    arguments = ("convert", str(converted.demo_checkpoint()), "--out", str(target))
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {target}")
    assert "--force" in err.partition("\n\nhint: ")[2]
    assert target.read_text() == "precious"
    assert run(*arguments, "--force")[0] == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_convert_to_mlx_writes_a_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The makers' layout; the folder's name says format and bits, and so does the line."""
    pytest.importorskip("mlx.core")
    monkeypatch.chdir(tmp_path)
    arguments = ("convert", str(converted.demo_checkpoint()), "--to", "mlx", "--bits", "4", "--group-size", "128")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("demo-MLX-4bit: 104 tensors, 4bit, ")
    config = json.loads((tmp_path / "demo-MLX-4bit" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 128, "bits": 4, "mode": "affine"}
    code, out, _ = run(*arguments, "--force", "--json")
    report = json.loads(out)
    assert (code, report["path"], report["quant"], report["left_whole"]) == (0, "demo-MLX-4bit", "4bit", [])


def test_convert_to_mlx_says_what_stays_unquantized(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("mlx.core")
    source = make_checkpoint(tmp_path / "source", Shape(feed_forward=320))
    code, _, err = run("convert", str(source), "--to", "mlx", "--bits", "4", "--group-size", "128", "--out",
                       str(tmp_path / "out"))  # fmt: skip
    assert code == 0
    assert err.startswith("left unquantized, because the groups do not divide the rows: model.layers.0.mlp.down_proj")
    assert err.endswith(" and 1 more\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--to", "mlx", "--quant", "q4_k_m"], "--to mlx --bits 4"),
        (["--to", "mlx", "--quant", "bf16"], "--to mlx --bits 16"),
        (["--bits", "4"], "--quant q4_k_m, or --to mlx --bits 4"),
        (["--to", "gguf", "--bits", "8"], "--quant q8_0, or --to mlx --bits 8"),
        (["--group-size", "32"], "--quant q4_k_m, or --to mlx --bits 4 --group-size 32"),
        (["--mode", "mxfp4"], "--quant q4_k_m, or --to mlx --mode mxfp4"),
        (["--recipe", "mixed_3_6"], "--quant q4_k_m, or --to mlx --recipe mixed_3_6"),
        (["--to", "mlx", "--bits", "7"], "--bits is one of 2, 3, 4, 5, 6, 8, or 16 for a copy"),
    ],
)
def test_flags_of_the_other_format_name_the_right_ones(arguments: list[str], hint: str, run: Run) -> None:
    code, out, err = run("convert", "nowhere", *arguments)
    assert (code, out) == (2, "")
    assert err.partition("\n\nhint: ")[2] == f"{hint}\n"


def test_configured_flags_of_the_other_format_do_no_harm(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may hold defaults for both formats; only what is typed must fit."""
    monkeypatch.setenv("LOCALQWEN_CONVERT_BITS", "4")
    monkeypatch.setenv("LOCALQWEN_CONVERT_QUANT", "q4_0")
    code, out, _ = run("convert", str(converted.demo_checkpoint()), "--out", str(tmp_path / "a.gguf"), "--json")
    assert (code, json.loads(out)["quant"]) == (0, "q4_0")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["convert"], 2, "SOURCE is missing"),
        (["convert", "nowhere"], 1, "nowhere"),
        (["convert", ".", "--quant", "q9"], 1, "q9"),
        (["show", "dmeo"], 1, "there is no model 'dmeo'"),
        (["show", "./nothing.gguf"], 1, "there is no file or folder ./nothing.gguf"),
        (["show"], 2, "NAME is missing"),
        (["list", "extra"], 2, "Got unexpected extra argument (extra)"),
        (["doctor", "--jsn"], 2, "there is no option --jsn of localqwen doctor"),
        (["completion", "tcsh"], 2, "SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_bad_input_gets_a_message_and_a_hint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("Error: ")
    assert message in err
    assert err.partition("\n\nhint: ")[2].strip()


def test_show_is_honest_about_the_demo(run: Run) -> None:
    code, out, _ = run("show", "demo")
    assert code == 0
    assert "toy" in out
    assert "adds, subtracts, counts letters, greets and calls a tool, and nothing else" in out
    facts = json.loads(run("show", "demo", "--json")[1])
    assert (facts["name"], facts["architecture"]) == ("demo", "qwen3")


def test_list_shows_the_models_on_disk(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    assert run("list")[:2] == (0, "")
    assert json.loads(run("list", "--json")[1]) == []
    models = tmp_path / "models"
    models.mkdir()
    (models / "Qwen3-4B-Q4_K_M.gguf").write_bytes(bytes(2500))
    head, row = run("list")[1].splitlines()
    assert head.split() == ["NAME", "ENGINE", "QUANT", "SIZE", "LAST", "USED", "PATH"]
    assert row.split()[:5] == ["Qwen3-4B", "llama.cpp", "Q4_K_M", "2.5", "kB"]
    entry = json.loads(run("list", "--json")[1])[0]
    assert (entry["name"], entry["bytes"]) == ("Qwen3-4B", 2500)


def answer(**fields: Any) -> Callable[[], probe.ProbeResult]:
    return lambda: probe.ProbeResult(**{"ok": True, "use_extra_bufts": True, "detail": "runs", **fields})


def test_doctor_reports_the_machine_the_engines_and_the_choice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "probe", answer())
    monkeypatch.setattr(mlx_probe, "probe", lambda: None)
    code, out, _ = run("doctor")
    assert code == 0
    lines = {line.partition("  ")[0]: line for line in out.splitlines()}
    assert localqwen.__version__ in lines["localqwen"]
    assert "cores" in lines["machine"]
    assert "available" in lines["memory"]
    assert lines["engine llama.cpp"].endswith("probe: passed")
    assert lines["engine mlx"].endswith("probe: passed")
    assert "llama.cpp: runs GGUF files on" in lines["chosen"]
    assert "free)" in lines["home"]
    findings = json.loads(run("doctor", "--json")[1])
    assert (findings["ok"], findings["chosen"]) == (True, "llama.cpp")
    assert findings["engines"]["llama.cpp"]["probe"]["use_extra_bufts"] is True


def test_doctor_tells_that_announced_instructions_do_not_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    detail = "runs without weight repacking; with it the probe ended by SIGILL"
    monkeypatch.setattr(probe, "probe", answer(use_extra_bufts=False, detail=detail))
    monkeypatch.setattr(mlx_probe, "probe", lambda: None)
    code, out, _ = run("doctor")
    assert code == 0
    assert "announces instructions (AMX) that do not work," in out
    assert "SIGILL" in out


def test_doctor_fails_with_a_hint_where_no_engine_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> probe.ProbeResult:
        raise EngineUnavailable("this build does not run on this CPU: SIGILL", "build it again")

    monkeypatch.setattr(probe, "probe", fails)
    monkeypatch.setattr(mlx_probe, "probe", fails)
    code, out, err = run("doctor")
    assert code == 1
    assert "probe: failed; this build does not run on this CPU: SIGILL" in out
    assert err == "Error: no engine runs on this machine\n\nhint: build it again\n"
    assert json.loads(run("doctor", "--json")[1])["ok"] is False


def test_doctor_fails_with_a_hint_where_no_engine_is_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "installed", lambda: {"llama.cpp": False})
    code, out, err = run("doctor")
    assert code == 1
    assert "not installed" in out
    assert "hint: pip install llama-cpp-python" in err


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_prints_the_shells_script(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert f"_LOCALQWEN_COMPLETE={shell}_complete" in out


def test_completion_knows_commands_flags_and_quantizations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offered(words: str, number: int) -> list[str]:
        monkeypatch.setenv("_LOCALQWEN_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(number))
        with pytest.raises(SystemExit):
            main([])
        return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]

    assert offered("localqwen co", 1) == ["convert", "completion"]
    assert offered("localqwen run --top", 2) == ["--top-p", "--top-k"]
    assert "q4_k_m" in offered("localqwen convert x --quant q4", 4)
    assert offered("localqwen convert x --to m", 4) == ["mlx"]
    assert offered("localqwen convert x --bits ", 4) == ["2", "3", "4", "5", "6", "8", "16"]
    assert offered("localqwen convert x --group-size 1", 4) == ["128"]
    assert offered("localqwen convert x --mode mx", 4) == ["mxfp4", "mxfp8"]
    assert offered("localqwen convert x --recipe mixed_4", 4) == ["mixed_4_6"]


def test_convert_knows_its_default_quantization() -> None:
    """The default of the flag is one that the converter has."""
    options = {option.name: option for option in convert.command.params}
    assert options["quant"].default in converted.converter().QUANTIZATIONS


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_497_280_256, "2.5 GB"), (999_960, "1.0 MB")],
)
def test_sizes(count: int, text: str) -> None:
    assert readable_bytes(count) == text


def test_columns() -> None:
    assert aligned([("a", "bb", "c"), ("aaa", "b", "")]) == "a    bb  c\naaa  b"
