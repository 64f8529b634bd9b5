"""Contexts beyond what a model's file says: memory, and the numbers of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Shape, config, make_checkpoint, weights, write_json, write_weights
from engine_runs import ENGINES, evaluated, torch_logprobs
from numpy.typing import NDArray

import convert
from localqwen import engines
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import Message, Request, Started
from localqwen.cli import main
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import NotEnoughMemory
from localqwen.formats import model_header
from localqwen.formats.yarn import Scaling
from localqwen.machine import this_machine
from localqwen.models import fit

HYBRID, BASE, JULY = 40_960, 32_768, 262_144

# Memory


def test_memory_is_predicted_for_the_stretched_context(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    write_json(folder / "config.json", config(Shape()) | {"max_position_embeddings": HYBRID})
    header = model_header.read(folder)
    machine = replace(this_machine(), memory=fit.needed_bytes(header, 65_536))
    granted = [
        fit.granted_context(header, asked, machine, max_runs=1, kv="f16", force=force)
        for asked, force in ((65_536, False), (131_072, True))
    ]
    assert granted == [65_536, 131_072]
    with pytest.raises(NotEnoughMemory, match="131,072"):
        fit.granted_context(header, 131_072, machine, max_runs=1, kv="f16", force=False)


def test_the_hint_is_the_context_that_fits_for_each_run(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    write_json(folder / "config.json", config(Shape()) | {"max_position_embeddings": HYBRID})
    header = model_header.read(folder)
    machine = replace(this_machine(), memory=fit.needed_bytes(header, 0) + header.kv_bytes_per_token * 4 * 100_000)
    with pytest.raises(NotEnoughMemory, match="for each of 4 runs") as caught:
        fit.granted_context(header, 131_072, machine, max_runs=4, kv="f16", force=False)
    fits = int(caught.value.hint.partition("--ctx ")[2].partition(";")[0])
    assert 99_000 < fits <= 100_000, "so many that attention goes without scores"
    assert fit.granted_context(header, fits, machine, max_runs=4, kv="f16", force=False) == fits


# The numbers. 64 tokens stand for the 32,768 that were trained, so that it costs nothing.

ORIGINAL = 64


def make_stretchable(folder: Path, shape: Shape, dtype: str) -> dict[str, Any]:
    """Queries so large that attention is sharp: what is turned wrongly then shows. Gives the config."""
    make_checkpoint(folder, shape, dtype=dtype)
    tensors = weights(shape, dtype)
    if dtype == "F32":
        tensors |= {name: 3 * values for name, values in tensors.items() if name.endswith("q_norm.weight")}
    write_weights(folder, tensors, dtype)
    torch_dtype = "float32" if dtype == "F32" else "bfloat16"
    written = config(shape) | {"max_position_embeddings": ORIGINAL, "torch_dtype": torch_dtype}
    write_json(folder / "config.json", written)
    return written


def scaled(factor: float, **more: float) -> dict[str, Any]:
    rope = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": ORIGINAL}
    return {"rope_scaling": rope | more, "max_position_embeddings": int(factor * ORIGINAL)}


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, 250, 120)]


def open_and_evaluate(path: Path, engine: str, ids: list[int], context: int) -> tuple[NDArray[np.float64], str]:
    opened = engines.open(path, engine=engine, context_length=context, threads=1)
    try:
        return evaluated(opened, ids), opened.backend_description
    finally:
        opened.close()


#: llama.cpp keeps keys and values in 16 bit, the rest is float32 on both: a thousand times less than YaRN changes.
TOLERANCE = {"llama.cpp": 0.03, "mlx": 0.001}


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "mixture"])
@pytest.mark.parametrize("name", ENGINES)
def test_yarn_gives_the_numbers_of_transformers(name: str, experts: int, ids: list[int], tmp_path: Path) -> None:
    """Below and beyond the original positions, the scaling of attention (0.1 ln(factor) + 1) included."""
    folder = tmp_path / "m"
    plain = make_stretchable(folder, Shape(experts=experts), "F32")
    path = folder
    if name == "llama.cpp":
        path = tmp_path / "m.gguf"
        convert.convert(folder, path, quant="f32", threads=1)
    found, setup = open_and_evaluate(path, name, ids, 2 * ORIGINAL)
    assert "YaRN 2" in setup
    write_json(folder / "config.json", plain | scaled(2))
    difference = np.abs(found - torch_logprobs(folder, ids))
    assert difference.max() < TOLERANCE[name]
    write_json(folder / "config.json", plain)
    unscaled = np.abs(found - torch_logprobs(folder, ids))
    assert unscaled[:ORIGINAL].max() > 0.5
    assert unscaled[ORIGINAL:].max() > 0.5


@pytest.mark.parametrize("name", ENGINES)
def test_stretched_when_opened_is_the_same_as_converted_so(name: str, ids: list[int], tmp_path: Path) -> None:
    """To the bit. `convert --yarn` writes it into the file, and then opening applies nothing more."""
    folder = tmp_path / "m"
    make_stretchable(folder, Shape(), "BF16")
    for made, options in (("plain", convert.Options()), ("stretched", convert.Options(yarn=4))):
        if name == "mlx":
            convert.convert_to_mlx(folder, tmp_path / made, bits=8, options=options)
        else:
            convert.convert(folder, tmp_path / made, quant="q8_0", threads=1, options=options)
    opened, converted = (
        open_and_evaluate(tmp_path / made, name, ids, 4 * ORIGINAL)[0] for made in ("plain", "stretched")
    )
    assert (opened == converted).all()


def test_mixtures_obey_the_scaling_of_their_folder_on_mlx(ids: list[int], tmp_path: Path) -> None:
    """mlx_lm reads it for dense models only. An attention_factor of its own goes before the usual one."""
    folder = tmp_path / "m"
    plain = make_stretchable(folder, Shape(experts=4), "F32")
    write_json(folder / "config.json", plain | scaled(2, attention_factor=1.5))
    found, setup = open_and_evaluate(folder, "mlx", ids, 2 * ORIGINAL)
    assert "YaRN 2" in setup
    assert np.abs(found - torch_logprobs(folder, ids)).max() < TOLERANCE["mlx"]


# What a user sees


def test_the_first_answer_warns_once() -> None:
    engine = ScriptedEngine(["a", "b"], warnings=(Scaling(2.0, BASE).warning,))
    model = LocalChatModel(engine, "m")
    told = [
        event.warnings
        for _ in range(2)
        for event in model.stream(Request([Message("user", "x")]))
        if isinstance(event, Started)
    ]
    assert told[1] == ()
    assert "shorter than 32,768" in " ".join(told[0])


@pytest.mark.parametrize("name", ENGINES)
def test_run_stretches_warns_and_says_the_factor(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    folder = tmp_path / "m"
    make_stretchable(folder, Shape(), "BF16")
    line = ["run", str(folder), "hi", "--engine", name, "--max-tokens", "2", "--stats", "--threads", "1"]
    assert main([*line, "--ctx", "200"]) == 0
    told = capsys.readouterr().err
    assert told.count("warning: the context is stretched by YaRN, factor 4") == 1
    assert "YaRN 4" in told.splitlines()[-2]
    assert main([*line, "--ctx", "64"]) == 0
    assert "YaRN" not in capsys.readouterr().err
    assert main([*line, "--ctx", "257"]) == 2
    told = capsys.readouterr().err
    assert "64, or 256 with YaRN" in told
    assert "--ctx 256" in told


def test_show_says_how_far_a_model_reaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    make_stretchable(folder, Shape(), "BF16")
    convert.convert(folder, tmp_path / "plain.gguf", quant="q8_0", threads=1)
    convert.convert(folder, tmp_path / "long.gguf", quant="q8_0", threads=1, options=convert.Options(yarn=2))

    def shown(model: str) -> dict[str, Any]:
        assert main(["show", model, "--json"]) == 0
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        return facts

    plain, long = shown(str(tmp_path / "plain.gguf")), shown(str(tmp_path / "long.gguf"))
    assert (plain["context_length"], plain["yarn_context"], plain["rope_scaling"]) == (64, 256, None)
    assert (long["context_length"], long["yarn_context"], long["rope_scaling"]) == (128, None, "YaRN 2")
    assert list(plain["memory"]) == ["64", "256"]
    assert "131072" in shown("qwen3:4b")["memory"]
