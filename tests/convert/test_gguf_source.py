"""Existing GGUF files as sources: requantized, split, merged. llama.cpp itself is the reference. And lies in them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from checkpoints import Shape, make_checkpoint
from gguf_bytes import text

import convert
from convert.gguf import quants
from convert.sources.gguf import GgufSource
from localqwen.errors import CheckpointError, ConversionError, OutputError, UsageError

ROOT = Path(__file__).parents[2]

REQUANTIZES = """
import ctypes, json, sys
from llama_cpp import llama_cpp
silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
for source, target, file_type in json.loads(sys.argv[1]):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = file_type, 1, True
    assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) == 0
"""
LOADS = """
import ctypes, sys
from llama_cpp import llama_cpp
silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
params = llama_cpp.llama_model_default_params()
params.use_extra_bufts = False
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params)
print(llama_cpp.llama_model_n_params(model))
"""


def in_child(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "Tiny-2M")


@pytest.fixture(scope="module")
def eight_bit(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "Tiny-2M-Q8_0.gguf"
    convert.convert(source, out, quant="q8_0", threads=1)
    return out


@pytest.mark.parametrize(
    ("shape", "before", "after"),
    [
        (Shape(), "q8_0", ["q6_k", "q5_0", "q4_k_m", "iq4_xs", "q2_k"]),
        (Shape(layers=1, experts=3, tied=False), "bf16", ["q8_0", "f16", "q4_0", "mxfp4"]),
        (Shape(layers=1, experts=3, tied=False), "q5_k_m", ["q4_k_s", "q3_k_m"]),
    ],
)
def test_requantized_files_are_llama_cpps(shape: Shape, before: str, after: list[str], tmp_path: Path) -> None:
    """The bytes of `llama-quantize --allow-requantize`: metadata, order, types, blocks."""
    base = tmp_path / "base.gguf"
    convert.convert(make_checkpoint(tmp_path / "source", shape), base, quant=before, threads=1)
    jobs = [[str(base), str(tmp_path / f"{quant}.theirs"), quants.QUANTIZATIONS[quant].file_type] for quant in after]
    in_child(REQUANTIZES, json.dumps(jobs))
    for quant in after:
        report = convert.convert(base, tmp_path / f"{quant}.gguf", quant=quant, threads=2)
        assert (tmp_path / f"{quant}.gguf").read_bytes() == (tmp_path / f"{quant}.theirs").read_bytes(), quant
        assert bool(report.notes) == (before not in ("bf16", "f16")), "a note says that it is quantized twice"


def test_upwards_needs_force_and_says_why(eight_bit: Path, tmp_path: Path) -> None:
    """What was dropped does not come back; the same quantization is no conversion at all."""
    out = tmp_path / "a.gguf"
    with pytest.raises(ConversionError, match="does not come back") as caught:
        convert.convert(eight_bit, out, quant="bf16")
    assert "--force" in caught.value.hint
    with pytest.raises(ConversionError, match="is q8_0 already"):
        convert.convert(eight_bit, out, quant="q8_0")
    assert list(tmp_path.iterdir()) == []
    assert convert.convert(eight_bit, out, quant="bf16", force=True, threads=1).path == out


def test_a_gguf_file_of_any_name_is_one(eight_bit: Path, tmp_path: Path) -> None:
    """Some caches name files by their digests."""
    unnamed = tmp_path / "sha256-0123"
    unnamed.write_bytes(eight_bit.read_bytes())
    convert.convert(unnamed, tmp_path / "a.gguf", quant="q4_0", threads=1)
    convert.convert(eight_bit, tmp_path / "b.gguf", quant="q4_0", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_gguf_file_is_never_written_onto_itself(eight_bit: Path) -> None:
    with pytest.raises(OutputError, match="part of the model"):
        convert.convert(eight_bit, eight_bit, quant="q4_0", force=True)


def test_what_only_a_checkpoint_can_give_is_refused(eight_bit: Path, tmp_path: Path) -> None:
    """YaRN, adapters and MLX need official weights."""
    with pytest.raises(UsageError, match=r"--yarn needs a checkpoint folder, .* is a GGUF"):
        convert.convert(eight_bit, tmp_path / "a.gguf", quant="q4_0", options=convert.Options(yarn=4))
    with pytest.raises(CheckpointError, match="MLX needs a checkpoint"):
        convert.convert_to_mlx(eight_bit, tmp_path / "a", bits=4)
    with pytest.raises(CheckpointError, match="is a folder, not a GGUF file"):
        convert.merge(tmp_path, tmp_path / "a.gguf")


# Parts


def test_parts_have_llama_cpps_names_and_keys_and_merge_to_the_same_file(source: Path, tmp_path: Path) -> None:
    """Cut while converting; llama.cpp loads the first part with all others; merged, the bytes are those of one file."""
    whole = tmp_path / "whole.gguf"
    convert.convert(source, whole, quant="q8_0", name="Tiny", threads=1)
    report = convert.convert(
        source,
        tmp_path / "Tiny.gguf",
        quant="q8_0",
        name="Tiny",
        threads=2,
        options=convert.Options(part_bytes=400_000),
    )
    parts = sorted(tmp_path.glob("Tiny-*.gguf"))
    count = len(parts)
    assert count > 2
    assert [part.name for part in parts] == [f"Tiny-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    assert (report.path, report.bytes) == (parts[0], sum(part.stat().st_size for part in parts))
    for number, part in enumerate(parts):
        reader = gguf.GGUFReader(part)
        keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert (keys["split.no"], keys["split.count"]) == (number, count)
        assert keys["split.tensors.count"] == report.tensors
        assert (len(keys) > 3) == (number == 0)
        assert sum(tensor.n_bytes for tensor in reader.tensors) <= 400_000
    assert int(in_child(LOADS, str(parts[0]))) == int(in_child(LOADS, str(whole)))

    convert.merge(parts[0], tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == whole.read_bytes()
    convert.convert(parts[0], tmp_path / "small.gguf", quant="q4_0", threads=1)
    convert.convert(whole, tmp_path / "small2.gguf", quant="q4_0", threads=1)
    assert (tmp_path / "small.gguf").read_bytes() == (tmp_path / "small2.gguf").read_bytes()
    convert.merge(whole, tmp_path / "Tiny.gguf", part_bytes=400_000, force=True)
    assert sorted(tmp_path.glob("Tiny-*.gguf")) == parts

    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 of \d+ parts are missing, such as Tiny-00002"):
        convert.merge(parts[0], tmp_path / "again.gguf")


def test_a_part_under_another_name_is_told(source: Path, tmp_path: Path) -> None:
    convert.convert(source, tmp_path / "a.gguf", quant="q8_0", options=convert.Options(part_bytes=400_000))
    first = min(tmp_path.glob("a-*.gguf"))
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match="is one of"):
        GgufSource(tmp_path / "renamed.gguf")


# What is not converted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.replace(text("qwen3"), text("llama"), 1), "the architecture is llama"),
        (lambda data: data.replace(b"qwen3.block_count", b"qwen3.block_c0unt", 1), "has None for block_count"),
    ],
)
def test_models_that_are_not_ours(
    change: Callable[[bytes], bytes], words: str, eight_bit: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").write_bytes(change(eight_bit.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        convert.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="q4_0")
    assert words in caught.value.message


def test_numbers_that_are_none_are_named(eight_bit: Path, tmp_path: Path) -> None:
    """A factor of a block that is NaN is found when the tensor is read, and nothing is left."""
    data = bytearray(eight_bit.read_bytes())
    with GgufSource(eight_bit) as source:
        start = source.tensors["blk.1.ffn_up.weight"].start
    data[start : start + 2] = b"\x00\x7e"
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight holds weights that are NaN"):
        convert.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="q4_0", threads=1)
    assert not (tmp_path / "b.gguf").exists()


def metadata(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def test_metadata_stay(eight_bit: Path, tmp_path: Path) -> None:
    """All but the kind of file: name, tokenizer, template and sampling are those of the source."""
    convert.convert(eight_bit, tmp_path / "a.gguf", quant="q4_0", threads=1)
    before, after = metadata(eight_bit), metadata(tmp_path / "a.gguf")
    assert after == before | {"general.file_type": 2}
