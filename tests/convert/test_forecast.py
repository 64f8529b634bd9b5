"""--dry-run and --list: what is foretold is what is written, and nothing is written while it is foretold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape, make_checkpoint
from quantized_checkpoints import awq_checkpoint

import convert
from convert import Options
from convert.gguf import quants
from convert.mlx import schemes as mlx_schemes
from localqwen.cli import main
from localqwen.errors import CheckpointError

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "Tiny-2M", Shape(feed_forward=320))


@pytest.mark.parametrize(
    ("quant", "options"),
    [("q4_k_m", Options()), ("f16", Options()), ("q8_0", Options(part_bytes=500_000, tensor_types=("attn_v=q5_0",)))],
)
def test_gguf_files_have_the_foretold_sizes(quant: str, options: Options, source: Path, tmp_path: Path) -> None:
    forecast = convert.forecast_gguf(source, tmp_path / "a.gguf", quant=quant, options=options)
    assert list(tmp_path.iterdir()) == [source]
    report = convert.convert(source, tmp_path / "a.gguf", quant=quant, options=options, threads=1)
    written = {path.name: path.stat().st_size for path in tmp_path.glob("a*.gguf")}
    assert dict(forecast.files) == written
    assert forecast.bytes == forecast.disk == report.bytes
    assert sum(forecast.tensors.values()) == report.tensors


def test_the_foretold_size_includes_the_padding_between_tensors(tmp_path: Path) -> None:
    """Norms of 20 numbers end in the middle of GGUF's units of 32 bytes; every tensor begins with a unit."""
    source = make_checkpoint(tmp_path / "source", Shape(head_dim=20))
    forecast = convert.forecast_gguf(source, tmp_path / "a.gguf", quant="f16")
    convert.convert(source, tmp_path / "a.gguf", quant="f16", threads=1)
    assert forecast.bytes == (tmp_path / "a.gguf").stat().st_size


@pytest.mark.parametrize("options", [{"bits": 4}, {}, {"recipe": "mixed_3_6"}, {"mode": "mxfp4"}])
def test_mlx_folders_have_the_foretold_sizes(options: dict[str, Any], source: Path, tmp_path: Path) -> None:
    forecast = convert.forecast_mlx(source, tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == [source]
    pytest.importorskip("mlx.core")
    convert.convert_to_mlx(source, tmp_path / "a", **options)
    assert dict(forecast.files) == {
        path.name: path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors")
    }  # fmt: skip


MEASURES = """
import sys
from pathlib import Path
import convert
convert.convert(Path(sys.argv[1]), Path(sys.argv[1]) / "out.gguf", quant="q4_k_m", threads=2)
status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the process that started this one
print(1024 * int(status.partition("VmHWM:")[2].split()[0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system's own files for the peak")
def test_the_foretold_memory_is_enough_and_not_absurd(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", Shape(1024, 2048, 2, 8, 8, 128, 4096))
    forecast = convert.forecast_gguf(source, tmp_path / "a.gguf", quant="q4_k_m", threads=2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURES, str(source)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) <= forecast.memory <= 2.5 * int(done.stdout)


def test_a_forecast_raises_what_the_conversion_would(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        convert.forecast_gguf(source, tmp_path / "a.gguf", quant="q8_0")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        convert.forecast_mlx(source, tmp_path / "a", bits=4)


# The command line


def test_dry_run_on_the_command_line(run: Run, source: Path, tmp_path: Path) -> None:
    """As lines, and as JSON; nothing is written, notes go to stderr."""
    code, out, err = run("convert", str(source), "--quant", "mxfp4", "--dry-run")
    assert (code, out.splitlines()[0]) == (0, "would write  Tiny-2M-MXFP4.gguf")
    assert err == "note: mxfp4 is for the experts of a mixture, and this model has none: its matrices become Q8_0\n"
    code, out, _ = run("convert", str(source), "--to", "mlx", "--bits", "4", "--dry-run", "--json")
    found = json.loads(out)
    assert set(found) == {
        "path", "quant", "bytes", "disk_bytes", "memory_bytes", "files", "tensors", "notes",
    }  # fmt: skip
    assert (code, found["path"], found["quant"]) == (0, "Tiny-2M-MLX-4bit", "4bit")
    assert list(tmp_path.iterdir()) == [source]


def test_the_list_holds_everything_that_can_be_written(run: Run) -> None:
    code, out, err = run("convert", "--list", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert list(found["gguf"]) == [f"--quant {name}" for name in quants.QUANTIZATIONS]
    assert {f"--recipe {name}" for name in mlx_schemes.RECIPES} < found["mlx"].keys()
    lines = run("convert", "--list")[1].splitlines()
    assert lines[0] == "GGUF"
    assert all(any(line.startswith(flag) for line in lines) for flag in (*found["gguf"], *found["mlx"]))


def test_other_spellings_of_llama_quantize(run: Run, source: Path) -> None:
    """Q4_K is q4_k_m there and here; the file is named after what it is."""
    code, out, _ = run("convert", str(source), "--quant", "Q4_K", "--json")
    assert (code, json.loads(out)["path"]) == (0, "Tiny-2M-Q4_K_M.gguf")


def test_gguf_files_on_the_command_line(run: Run, source: Path, tmp_path: Path) -> None:
    """Requantized, cut and merged; the name loses the old quantization and the number of the part."""
    assert run("convert", str(source))[0] == 0
    code, out, err = run("convert", "Tiny-2M-Q8_0.gguf", "--quant", "q4_0")
    assert (code, out.partition(":")[0]) == (0, "Tiny-2M-Q4_0.gguf")
    assert err.startswith("note: the source is quantized already")
    assert run("convert", "Tiny-2M-Q8_0.gguf", "--merge", "--split", "0.5MB", "--out", "parts.gguf")[0] == 0
    first = min(tmp_path.glob("parts-*.gguf"))
    code, out, _ = run("convert", first.name, "--merge", "--json")
    assert (code, json.loads(out)["path"]) == (0, "parts-copy.gguf")
    assert (tmp_path / "parts-copy.gguf").read_bytes() == (tmp_path / "Tiny-2M-Q8_0.gguf").read_bytes()
    code, _, err = run("convert", str(source), "--split", "much")
    assert (code, err) == (2, "Error: 'much' is not a size\n\nhint: write it like 4GB or 500MB\n")


def test_quantized_folders_on_the_command_line(run: Run, tmp_path: Path) -> None:
    """What is made of AWQ says so; --dequantize writes the official layout."""
    source, _ = awq_checkpoint(tmp_path / "Tiny-AWQ")
    code, out, err = run("convert", str(source))
    assert (code, out.partition(":")[0]) == (0, "Tiny-AWQ-Q8_0.gguf")
    assert err.startswith("note: the checkpoint is quantized (awq)")
    code, out, _ = run("convert", str(source), "--dequantize")
    assert (code, out.partition(":")[0]) == (0, "Tiny-AWQ-16bit")
    assert run("convert", "Tiny-AWQ-16bit", "--quant", "bf16")[0] == 0


def test_names_on_the_command_line(run: Run) -> None:
    """The built-in model by its name; what is not here is pulled only after asking."""
    code, out, _ = run("convert", "demo", "--quant", "q4_0")
    assert (code, out.partition(":")[0]) == (0, "demo-Q4_0.gguf")
    for name in ("qwen3:4b", "hf:Qwen/Qwen3-4B", "ms:Qwen/Qwen3-4B"):
        code, out, err = run("convert", name, "--quant", "q5_k_m")
        assert (code, out) == (1, "")
        assert "Qwen/Qwen3-4B are not on this machine" in err
        assert "--yes" in err.partition("hint: ")[2]
    code, _, err = run("convert", "qwen3:4b-q8_0")
    assert code == 2
    assert err.endswith("hint: localqwen convert qwen3:4b --quant q8_0\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--merge", "--dequantize"], "--dequantize for folders"),
        (["--merge", "--yarn", "4"], "--yarn has no effect with --merge"),
        (["--dequantize", "--split", "4GB"], "--split has no effect with --dequantize"),
        (["--dequantize", "--tensor-type", "a=q8_0"], "--tensor-type has no effect with --dequantize"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags: list[str], words: str, run: Run, source: Path) -> None:
    code, out, err = run("convert", str(source), *flags)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize("flag", ["--merge", "--dequantize"])
def test_dry_run_is_for_quantizations(flag: str, run: Run, source: Path) -> None:
    code, _, err = run("convert", str(source), flag, "--dry-run")
    assert code == 2
    assert "--dry-run is for quantizations" in err
