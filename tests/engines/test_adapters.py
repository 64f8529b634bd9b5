"""LoRA adapters at run time: the numbers of the merged checkpoint on both engines, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Shape, config, make_adapter, make_checkpoint, weights, write_json, write_weights
from engine_runs import ENGINES, answer, evaluated
from numpy.typing import NDArray

import convert
from localqwen import engines
from localqwen.chat.load_options import LoadOptions
from localqwen.cli import main
from localqwen.engines import selection
from localqwen.errors import CheckpointError, EngineError
from localqwen.model_process import child
from localqwen.models import converted
from localqwen.serve.model_names import Catalogue

LAYER = "model.layers.0"
ATTENTION = {
    f"{LAYER}.self_attn.q_proj": (256, 256),
    f"{LAYER}.self_attn.k_proj": (128, 256),
    "model.layers.1.self_attn.v_proj": (128, 256),
    "model.layers.1.self_attn.o_proj": (256, 256),
}
DENSE = {
    f"{LAYER}.mlp.gate_proj": (512, 256),
    "model.layers.1.mlp.up_proj": (512, 256),
    "model.layers.1.mlp.down_proj": (256, 512),
}
#: Experts 1 of each layer have no adapter: the stack has zeros there.
MIXTURE = {
    f"{LAYER}.mlp.gate": (4, 256),
    **{f"{LAYER}.mlp.experts.{expert}.{name}": (256, 256) for expert in (0, 2, 3) for name in ("gate_proj", "up_proj")},
    **{f"model.layers.1.mlp.experts.{expert}.down_proj": (256, 256) for expert in (0, 3)},
}
#: Weights get scales of their own: alpha of the pattern over the rank.
SETTINGS: dict[str, Any] = {"alpha_pattern": {"up_proj": 16, "v_proj": 3}}


@dataclass(frozen=True)
class Case:
    """A checkpoint, an adapter, and the checkpoint with the adapter merged in float32, each as the engine opens it."""

    base: Path
    adapter: Path
    merged: Path


def make_case(folder: Path, engine: str, shape: Shape, dtype: str, targets: Mapping[str, tuple[int, int]]) -> Case:
    folder.mkdir()
    base, merged, adapter = folder / "base", folder / "merged", folder / "lora"
    make_checkpoint(base, shape, dtype=dtype)
    write_json(base / "config.json", config(shape) | {"torch_dtype": "float32" if dtype == "F32" else "bfloat16"})
    added = make_adapter(adapter, targets, **SETTINGS)
    tensors = {name: _numbers(values, dtype) for name, values in weights(shape, dtype).items()}
    for name, delta in added.items():
        alpha = next((alpha for key, alpha in SETTINGS["alpha_pattern"].items() if f".{key}." in name), 8)
        tensors[name] = (tensors[name] + delta * alpha / 8).astype(np.float32)
    make_checkpoint(merged, shape, dtype="F32")
    write_weights(merged, tensors, "F32")
    write_json(merged / "config.json", config(shape) | {"torch_dtype": "float32"})
    if engine == "mlx":
        return Case(base, adapter, merged)
    convert.convert(base, folder / "base.gguf", quant="f32" if dtype == "F32" else "bf16", threads=1)
    convert.convert(merged, folder / "merged.gguf", quant="f32", threads=1)
    return Case(folder / "base.gguf", adapter, folder / "merged.gguf")


def _numbers(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, 250, 80)]


def numbers(path: Path, engine: str, ids: list[int], adapter: Path | None = None) -> NDArray[np.float64]:
    opened = engines.open(path, engine=engine, context_length=128, threads=1, adapter=adapter)
    try:
        assert ("adapter lora" in opened.backend_description) == (adapter is not None)
        return evaluated(opened, ids)
    finally:
        opened.close()


#: Of log-probabilities, mean and largest. In float32 the order of sums is left, and llama.cpp's 16 bits of keys and
#: values; in bf16 the rounding of activations, which the merged weights in float32 do not have.
TOLERANCE = {
    ("llama.cpp", "F32"): (2e-4, 5e-3),
    ("mlx", "F32"): (1e-5, 1e-3),
    ("llama.cpp", "BF16"): (0.02, 0.2),
    ("mlx", "BF16"): (0.04, 0.4),
}


@pytest.mark.parametrize(
    ("shape", "dtype", "targets"),
    [
        (Shape(), "F32", ATTENTION | DENSE),
        (Shape(tied=False), "BF16", ATTENTION | DENSE | {"lm_head": (320, 256)}),
        (Shape(experts=4), "F32", ATTENTION | MIXTURE),
    ],
    ids=["dense", "bf16 with a head", "mixture"],
)
@pytest.mark.parametrize("name", ENGINES)
def test_applied_at_run_time_it_gives_the_numbers_of_the_merged_checkpoint(
    name: str, shape: Shape, dtype: str, targets: dict[str, tuple[int, int]], ids: list[int], tmp_path: Path
) -> None:
    case = make_case(tmp_path / "c", name, shape, dtype, targets)
    found, merged = numbers(case.base, name, ids, case.adapter), numbers(case.merged, name, ids)
    difference = np.abs(found - merged)
    average, most = TOLERANCE[name, dtype]
    assert difference.mean() < average
    assert difference.max() < most
    assert np.abs(found - numbers(case.base, name, ids)).mean() > 0.5


@pytest.mark.parametrize("name", ENGINES)
def test_quantized_weights_stay_as_they_are_below_it(name: str, ids: list[int], tmp_path: Path) -> None:
    """What it changes is what it changes above the unquantized weights, but for their own error."""
    case = make_case(tmp_path / "c", name, Shape(), "BF16", ATTENTION | DENSE)
    small, plain = tmp_path / "small", tmp_path / "c" / "base"
    if name == "mlx":
        convert.convert_to_mlx(plain, small, bits=8)
    else:
        convert.convert(plain, small, quant="q8_0", threads=1)
    with_it = np.abs(numbers(small, name, ids, case.adapter) - numbers(case.base, name, ids, case.adapter)).mean()
    without = np.abs(numbers(small, name, ids) - numbers(case.base, name, ids)).mean()
    assert with_it < 3 * without
    assert np.abs(numbers(small, name, ids, case.adapter) - numbers(small, name, ids)).mean() > 0.5


@pytest.mark.parametrize("name", ENGINES)
def test_prefixes_are_reused_as_without_it(name: str, ids: list[int], tmp_path: Path) -> None:
    case = make_case(tmp_path / "c", name, Shape(), "F32", ATTENTION)
    engine = engines.open(case.base, engine=name, context_length=128, threads=1, max_runs=2, adapter=case.adapter)
    fresh = answer(engine, ids[:40], max_tokens=10)
    run = engine.start([*ids[:40], *fresh[:5]], engines.Sampling(temperature=0), max_tokens=5)
    assert run.cached_tokens >= 40
    again = []
    while not run.finished:
        again += [token for _, piece in engine.step() for token in piece.tokens]
    engine.close()
    assert again == fresh[5:10]


def test_the_files_for_the_engines_are_gone_when_the_model_is_open(
    tmp_path: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path / "c", "llama.cpp", Shape(), "BF16", ATTENTION)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    numbers(case.base, "llama.cpp", ids, case.adapter)
    with pytest.raises(CheckpointError), converted.adapted(tmp_path / "temporary", case.base, for_mlx=False):
        pass
    assert list((tmp_path / "temporary").iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    ("targets", "settings", "words"),
    [
        ({f"{LAYER}.mlp.up_proj": (256, 256)}, {}, "the weight [512, 256]"),
        ({"model.layers.7.mlp.up_proj": (512, 256)}, {}, "model.layers.7.mlp.up_proj.weight, which the model"),
        ({f"{LAYER}.mlp.experts.0.up_proj": (256, 256)}, {}, "which the model does not have"),
        ({"model.embed_tokens": (320, 256)}, {}, "model.embed_tokens.weight, which the model"),
        (ATTENTION, {"use_dora": True}, "use_dora"),
        (ATTENTION, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (ATTENTION, {"peft_type": "IA3"}, "'IA3', not LORA"),
    ],
)
@pytest.mark.parametrize("name", ENGINES)
def test_adapters_of_another_model_or_kind_are_refused(
    name: str, targets: dict[str, tuple[int, int]], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "m")
    make_adapter(tmp_path / "lora", targets, **settings)
    with pytest.raises(CheckpointError) as caught:
        engines.open(base, engine=name, context_length=64, threads=1, adapter=tmp_path / "lora")
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ENGINES)
def test_a_head_that_a_tied_model_does_not_have(name: str, tmp_path: Path) -> None:
    """Of GGUF files llama.cpp itself must say so."""
    base = make_checkpoint(tmp_path / "m")
    make_adapter(tmp_path / "lora", {"lm_head": (320, 256)})
    with pytest.raises(CheckpointError if name == "mlx" else EngineError, match=r"lm_head|output\.weight"):
        engines.open(base, engine=name, context_length=64, threads=1, adapter=tmp_path / "lora")


def test_pickled_and_half_adapters_are_refused(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "m")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for engine in ENGINES:
        with pytest.raises(CheckpointError, match="never loaded"):
            engines.open(base, engine=engine, context_length=64, adapter=tmp_path / "lora")
    make_adapter(tmp_path / "half", ATTENTION)
    (tmp_path / "half" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        engines.open(base, engine="mlx", context_length=64, adapter=tmp_path / "half")


@pytest.mark.parametrize("said", ["https://x.org/lora", "hf:owner/lora", "MS:owner/lora", "nowhere", "README.md"])
def test_an_adapter_that_is_no_folder_here_is_wrong_usage(
    said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["run", "demo", "hi", "--adapter", said]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "save_pretrained" in told


# Where it can be given


def test_run_answers_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    base = make_checkpoint(tmp_path / "m")
    make_adapter(tmp_path / "lora", ATTENTION | DENSE)
    line = ["run", str(base), "hi", "--max-tokens", "8", "--temperature", "0", "--stats", "--threads", "1"]
    assert main([*line, "--adapter", str(tmp_path / "lora")]) == 0
    with_it = capsys.readouterr()
    assert "adapter lora" in with_it.err
    assert main(line) == 0
    assert capsys.readouterr().out != with_it.out


def test_a_server_applies_it_to_the_model_of_its_command_line(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "m")
    make_adapter(tmp_path / "lora", ATTENTION)
    options = LoadOptions(context_length=8192, threads=1, adapter=str(tmp_path / "lora"))
    catalogue = Catalogue([selection.resolve(base)], options)
    setups, warnings = {}, {}
    for asked in (catalogue.served[0], "demo"):
        opened = child.open_named(catalogue.spec(catalogue.resolve(asked)).to_json()).loaded
        setups[asked], warnings[asked] = opened.engine.backend_description, opened.engine.warnings
        opened.engine.close()
    assert "adapter lora" in setups[catalogue.served[0]]
    assert "adapter" not in setups["demo"]
    assert any("stretched by YaRN, factor 2" in warning for warning in warnings[catalogue.served[0]])


def test_bench_measures_with_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_checkpoint(tmp_path / "m")
    make_adapter(tmp_path / "lora", ATTENTION)
    line = ["bench", str(base), "--prompt", "16", "--generate", "4", "--repeats", "1", "--threads", "1", "--no-save"]
    assert main([*line, "--adapter", str(tmp_path / "lora")]) == 0
    assert f"with the adapter {tmp_path / 'lora'}" in capsys.readouterr().out
    make_adapter(tmp_path / "wrong", {"model.layers.9.mlp.up_proj": (512, 256)})
    assert main([*line, "--adapter", str(tmp_path / "wrong")]) == 1
    assert "layers.9" in capsys.readouterr().err
    assert main([*line, "--quality", "--adapter", str(tmp_path / "lora")]) == 2


def test_serve_takes_it_for_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "demo", "qwen3:4b", "--adapter", "x"]) == 2
    assert "--adapter is for one model" in capsys.readouterr().err
