"""Importance matrices measured here: the sums are those of the model's own inputs, and llama.cpp takes the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from checkpoints import Shape, make_checkpoint, weights

import convert
from convert.imatrix import file as imatrix_file
from convert.imatrix.file import Importance

ROOT = Path(__file__).parents[2]
SENTENCE = "the other one and then the inner one again "
#: In a process of its own: the library's log and callbacks meet no other test.
MEASURES = """
import sys
from localqwen.cli import main
sys.exit(main(["imatrix", sys.argv[1], "--text", sys.argv[2], "--out", sys.argv[3], "--threads", "1", "--json"]))
"""


def run(model: Path, text: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MEASURES, str(model), str(text), str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def measured(model: Path, text: Path, out: Path) -> tuple[dict[str, Any], Importance]:
    done = run(model, text, out)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), imatrix_file.read(out)


def widened(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = (values.astype(np.uint32) << 16).view(np.float32)
    return result


def first_inputs(shape: Shape, ids: list[int]) -> np.ndarray[Any, Any]:
    """What reaches the first attention: embeddings, normalized to a mean square of one, times the norm's weights."""
    made = weights(shape)
    rows = widened(made["model.embed_tokens.weight"])[ids].astype(np.float64)
    rows /= np.sqrt((rows**2).mean(1, keepdims=True) + 1e-6)
    result: np.ndarray[Any, Any] = rows * widened(made["model.layers.0.input_layernorm.weight"])
    return result


def test_sums_are_those_of_the_models_inputs(tmp_path: Path) -> None:
    """Computed anew in numpy for the first attention; in a mixture every token counts for each of its experts."""
    from tokenizers import Tokenizer

    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 60)
    for shape in (Shape(), Shape(layers=1, experts=4, experts_used=2, tied=False)):
        folder = tmp_path / f"experts{shape.experts}"
        source = make_checkpoint(folder / "source", shape)
        convert.convert(source, folder / "model.gguf", quant="f32", threads=1)
        report, found = measured(folder / "model.gguf", text, folder / "a.imatrix.gguf")
        ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text.read_text()).ids
        read = report["tokens"]
        assert read == 512 * (len(ids) // 512) > 500
        expected = (first_inputs(shape, ids[:read]) ** 2).mean(0)
        for name in ("attn_q", "attn_k", "attn_v"):
            np.testing.assert_allclose(found.values[f"blk.0.{name}.weight"], expected, rtol=1e-4)
        assert (found.chunks, found.dataset, report["matrices"]) == (read // 512, "text.txt", len(found.values))
        kinds = {name.split(".")[2] for name in found.values}
        if not shape.experts:
            assert kinds == {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
            continue
        assert {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"} < kinds
        tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(folder / "a.imatrix.gguf").tensors}
        assert tensors["blk.0.ffn_up_exps.weight.counts"].sum() == read * shape.experts_used
        # Each token goes to two experts, so that the sums over all experts are twice those of the router's input.
        over_experts = tensors["blk.0.ffn_up_exps.weight.in_sum2"].sum(0)
        np.testing.assert_allclose(over_experts, 2 * tensors["blk.0.ffn_gate_inp.weight.in_sum2"][0], rtol=1e-4)


def test_the_matrix_makes_a_better_quantization(tmp_path: Path) -> None:
    """On the inputs that were measured, products with the weights are nearer to the true ones than without it."""
    source = make_checkpoint(tmp_path / "source", Shape(layers=1))
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 60)
    convert.convert(source, tmp_path / "model.gguf", quant="f32", threads=1)
    measured(tmp_path / "model.gguf", text, tmp_path / "a.imatrix.gguf")
    options = convert.Options(imatrix=tmp_path / "a.imatrix.gguf")
    convert.convert(source, tmp_path / "with.gguf", quant="q3_k_m", threads=1, options=options)
    convert.convert(source, tmp_path / "without.gguf", quant="q3_k_m", threads=1)
    importance = imatrix_file.read(tmp_path / "a.imatrix.gguf").values["blk.0.attn_q.weight"]
    errors = {}
    true = widened(weights(Shape(layers=1))["model.layers.0.self_attn.q_proj.weight"])
    for name in ("with", "without"):
        (tensor,) = (t for t in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors if t.name == "blk.0.attn_q.weight")
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        errors[name] = float(((numbers - true) ** 2 @ importance).sum())
    assert errors["with"] < errors["without"]


def test_texts_that_are_too_short_or_missing(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", Shape(layers=1))
    convert.convert(source, tmp_path / "model.gguf", quant="q8_0", threads=1)
    (tmp_path / "short.txt").write_text("hello")
    done = run(tmp_path / "model.gguf", tmp_path / "short.txt", tmp_path / "a.gguf")
    assert done.returncode == 2
    assert "fewer than 512" in done.stderr
    done = run(tmp_path / "model.gguf", tmp_path / "nowhere.txt", tmp_path / "a.gguf")
    assert done.returncode == 1
    assert "nowhere.txt cannot be read" in done.stderr
    assert not (tmp_path / "a.gguf").exists()
