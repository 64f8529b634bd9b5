"""Checkpoints that their makers have quantized: FP8, AWQ, GPTQ. The numbers they stand for, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import programs
import pytest
from checkpoints import Shape, config, write_json
from quantized_checkpoints import Exact, awq_checkpoint, fp8_checkpoint, gptq_checkpoint, write_mixed

import convert
from convert.sources.checkpoint import Checkpoint
from convert.sources.fp8 import e4m3
from convert.sources.pieces import Piece
from convert.sources.quantized import decoded
from localqwen.errors import CheckpointError
from localqwen.formats.safetensors import SafetensorsFile

ROOT = Path(__file__).parents[2]
MIXTURE = Shape(layers=1, experts=3, tied=False)
#: Widths that blocks of 128 and groups of 64 do not divide evenly among slices.
ODD = Shape(hidden=192, feed_forward=320, heads=3, kv_heads=1, layers=1)
Make = Callable[[Path], tuple[Path, Exact]]
CHECKPOINTS: dict[str, Make] = {
    "fp8": fp8_checkpoint,
    "fp8, blocks that are cut": lambda folder: fp8_checkpoint(folder, ODD),
    "fp8, mixture": lambda folder: fp8_checkpoint(folder, MIXTURE),
    "awq": awq_checkpoint,
    "awq, mixture": lambda folder: awq_checkpoint(folder, MIXTURE),
    "gptq int4": gptq_checkpoint,
    "gptq int8": lambda folder: gptq_checkpoint(folder, ODD, bits=8),
    "gptq in the order of activations": lambda folder: gptq_checkpoint(folder, act_order=True),
    "gptq_v2": lambda folder: gptq_checkpoint(folder, second=True),
    "gptq int4, mixture": lambda folder: gptq_checkpoint(folder, MIXTURE),
}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def in_gguf(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Float tensors by their official name; experts apart."""
    result = {}
    for tensor in gguf.GGUFReader(path).tensors:
        _, layer, name = (*tensor.name.split("."), "", "")[:3]
        official = next((key for key, value in GGUF_NAMES.items() if value == name.removesuffix("_exps")), None)
        if official is None:
            continue
        stack = tensor.data if tensor.data.ndim == 3 else [tensor.data]
        for expert, values in enumerate(stack):
            path_in_layer = official if tensor.data.ndim == 2 else official.replace("mlp.", f"mlp.experts.{expert}.")
            result[f"model.layers.{layer}.{path_in_layer}.weight"] = values
    return result


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_numbers_are_those_that_the_makers_formats_stand_for(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed integer by integer by their documents, unpacked in slices of few rows: the float32 next to the number."""
    monkeypatch.setattr("convert.gguf.encoding.SLICE", 5000)
    source, exact = CHECKPOINTS[case](tmp_path / "source")
    report = convert.convert(source, tmp_path / "a.gguf", quant="f32", threads=2)
    assert any("is quantized" in note for note in report.notes)
    found = in_gguf(tmp_path / "a.gguf")
    assert found.keys() == exact.keys()
    for name, numbers in exact.items():
        assert (found[name] == numbers.astype(np.float32)).all(), name


def test_eight_bit_floats_are_torchs() -> None:
    """All 256 codes of float8_e4m3fn, NaN where torch has it."""
    torch = pytest.importorskip("torch")
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3(), theirs)


#: What config.json says of each case of vectors/quantized.safetensors.
FOREIGN: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "gptq_int4": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "gptq_int8": {"quant_method": "gptq", "bits": 8, "group_size": 32},
    "gptq_act_order": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16]},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_programs_read_the_same_numbers_from_what_they_packed(case: str) -> None:
    """AutoAWQ 0.2.9, AutoGPTQ 0.7.1 and transformers 5.23 made the file: tools/quantized_vectors.py. To the bit."""
    file = SafetensorsFile(ROOT / "tests" / "vectors" / "quantized.safetensors")
    stored = {name: Piece(file, tensor) for name, tensor in file.tensors.items() if name.startswith(f"{case}.matrix.")}
    tensor, matrix = decoded(FOREIGN[case], stored)[f"{case}.matrix.weight"]
    expected = file.rows(file.tensors[f"{case}.expected"], 0, tensor.rows)
    assert tensor.shape == expected.shape
    np.testing.assert_array_equal(matrix.rows(tensor, 0, tensor.rows), expected)


LLAMA_CPP_CONVERTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.argv = ["convert", sys.argv[2], "--outtype", "f32", "--outfile", sys.argv[3]]
sys.path.insert(1, sys.path[0] + "/gguf-py")
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


@pytest.mark.parametrize("case", ["fp8, blocks that are cut", "gptq int8", "gptq in the order of activations"])
def test_llama_cpps_converter_reads_the_same_numbers(case: str, tmp_path: Path) -> None:
    """Where it reads the format at all. Its source comes with llama-cpp-python's archive: LLAMA_CPP_SOURCE names it."""
    folder = os.environ.get("LLAMA_CPP_SOURCE")
    if not folder:
        pytest.skip(f"needs {programs.SOURCE_TREE}: LLAMA_CPP_SOURCE names none")
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source, exact = CHECKPOINTS[case](tmp_path / "source")
    command = [sys.executable, "-c", LLAMA_CPP_CONVERTS, folder, str(source), str(tmp_path / "theirs.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    convert.convert(source, tmp_path / "ours.gguf", quant="f32", threads=1)
    ours, theirs = in_gguf(tmp_path / "ours.gguf"), in_gguf(tmp_path / "theirs.gguf")
    assert ours.keys() == theirs.keys() == exact.keys()
    assert all((ours[name] == theirs[name]).all() for name in exact)


@pytest.mark.parametrize("case", ["fp8", "awq, mixture", "gptq int4"])
def test_mlx_folders_are_made_from_the_same_numbers(case: str, tmp_path: Path) -> None:
    """From a quantized checkpoint, and from its numbers written out as an official one: equal tensors and config."""
    pytest.importorskip("mlx.core")
    source, _ = CHECKPOINTS[case](tmp_path / "source")
    convert.dequantize(source, tmp_path / "plain")
    convert.convert_to_mlx(source, tmp_path / "direct", bits=4, group_size=32)
    convert.convert_to_mlx(tmp_path / "plain", tmp_path / "twice", bits=4, group_size=32)
    names = ("model.safetensors", "config.json", "model.safetensors.index.json")
    assert all((tmp_path / "direct" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes() for name in names)


@pytest.mark.parametrize("case", ["fp8", "awq", "gptq int4"])
def test_quantizations_of_quantized_checkpoints(case: str, tmp_path: Path) -> None:
    """q4_k_m of a stored quantization is q4_k_m of its float32 numbers."""
    source, _ = CHECKPOINTS[case](tmp_path / "source")
    convert.convert(source, tmp_path / "source.gguf", quant="f32", threads=1)
    convert.convert(source, tmp_path / "a.gguf", quant="q4_k_m", threads=2)
    convert.convert(tmp_path / "source.gguf", tmp_path / "b.gguf", quant="q4_k_m", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# What is refused


def changed(source: Path, change: Callable[[dict[str, tuple[str, Any]]], None]) -> None:
    """Rewrites the weights after `change` to its tensors (type, values) by name."""
    data = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    numpy_types = {"BF16": "<u2", "F16": "<f2", "I32": "<i4", "F8_E4M3": "u1"}
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[begin:end], numpy_types[entry["dtype"]]).reshape(entry["shape"])
            tensors[name] = (entry["dtype"], values.copy())
    change(tensors)
    write_mixed(source / "model.safetensors", tensors)


UP = "model.layers.0.mlp.up_proj"
DAMAGES: dict[str, tuple[Make, Callable[[dict[str, Any]], object], str]] = {
    "no factors": (fp8_checkpoint, lambda t: t.pop(f"{UP}.weight_scale_inv"), f"{UP}.weight is stored as F8_E4M3"),
    "factors of another shape": (
        fp8_checkpoint,
        lambda t: t.update({f"{UP}.weight_scale_inv": ("BF16", np.zeros((3, 2), np.uint16))}),
        "has shape [3, 2], the other parts make it [4, 2]",
    ),
    "no zero points": (awq_checkpoint, lambda t: t.pop(f"{UP}.qzeros"), f"{UP}.qzeros is missing"),
    "zero points of another type": (
        awq_checkpoint,
        lambda t: t.update({f"{UP}.qzeros": ("F16", np.zeros((4, 64), np.float16))}),
        "qzeros is F16, not I32",
    ),
    "scales of another shape": (
        gptq_checkpoint,
        lambda t: t.update({f"{UP}.scales": ("F16", np.zeros((4, 8), np.float16))}),
        "scales has shape [4, 8], the other parts make it [4, 512]",
    ),
    "groups beyond those there are": (
        gptq_checkpoint,
        lambda t: t.update({f"{UP}.g_idx": ("I32", np.full(256, 4, np.int32))}),
        "names groups beyond the 4 there are",
    ),
    "a factor that is no number": (
        awq_checkpoint,
        lambda t: t[f"{UP}.scales"][1].fill(np.nan),
        f"{UP}.weight holds weights that are NaN",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_parts_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    make, change, words = DAMAGES[case]
    source, _ = make(tmp_path / "source")
    changed(source, change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError) as caught:
        convert.convert(source, tmp_path / "a.gguf", quant="q8_0", threads=1)
    assert words in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (awq_checkpoint, {"version": "gemv"}, "quantized (awq); supported are FP8"),
        (awq_checkpoint, {"bits": 3}, "quantized (awq); supported are FP8"),
        (gptq_checkpoint, {"bits": 3}, "quantized (gptq); supported are FP8"),
        (gptq_checkpoint, {"group_size": 48}, "groups of 48 do not divide"),
        (gptq_checkpoint, {"group_size": "all"}, "groups of 'all' do not divide"),
        (fp8_checkpoint, {"weight_block_size": None}, "weight_block_size is None"),
        (fp8_checkpoint, {"quant_method": "compressed-tensors"}, "quantized (compressed-tensors)"),
    ],
)
def test_settings_that_are_not_read(make: Make, change: dict[str, Any], words: str, tmp_path: Path) -> None:
    source, _ = make(tmp_path / "source")
    settings = json.loads((source / "config.json").read_text())["quantization_config"]
    write_json(source / "config.json", config(Shape()) | {"quantization_config": settings | change})
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(source)
    assert words in caught.value.message
