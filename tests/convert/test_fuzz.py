"""Headers, indexes and metadata from strangers: whatever they say, only our errors come out, and memory stays small.

Two kinds of input: bytes, and well-formed structures that lie. A few seconds here; FUZZ_EXAMPLES=20000 goes on.
"""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape, config, make_checkpoint, weights, write_json, write_raw_safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.gguf import requantizing
from convert.gguf.quants import QUANTIZATIONS, Recipe
from convert.imatrix import file as imatrix_file
from convert.sources import adapters, quantized
from convert.sources.checkpoint import Checkpoint
from convert.sources.gguf import GgufSource
from localqwen.errors import LocalqwenError
from localqwen.formats import model_header, qwen3_config
from localqwen.formats.safetensors import SafetensorsFile
from localqwen.models import metadata

quick = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
#: Far more than any of these inputs deserves, far less than what their numbers ask for.
MOST = 30_000_000


@contextmanager
def small_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def survives(read: Callable[[], object]) -> None:
    """Our error or none; it has a message and a hint."""
    refused = None
    with small_memory():
        try:
            read()
        except LocalqwenError as error:
            refused = error
    assert refused is None or (refused.message and refused.hint)


numbers = st.one_of(
    st.integers(-2, 40), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**70]), st.booleans(), st.none()
)
anything = st.recursive(
    st.one_of(numbers, st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
entry = st.one_of(
    anything,
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "BF16", "F16", "I32", "U32", "F8_E4M3", "F7"]), anything),
            "shape": st.one_of(st.lists(numbers, max_size=5), anything),
            "data_offsets": st.one_of(st.tuples(numbers, numbers), anything),
        }
    ),
)


@quick
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: len(b).to_bytes(8, "little") + b)))
def test_any_bytes_as_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    survives(lambda: SafetensorsFile(path).close())


@quick
@given(st.dictionaries(st.text(max_size=12), entry, max_size=4), st.integers(0, 100))
def test_headers_of_any_content(tmp_path: Path, header: dict[str, Any], size: int) -> None:
    path = tmp_path / "a.safetensors"
    try:
        text = json.dumps(header).encode()
    except UnicodeEncodeError:
        return
    write_raw_safetensors(path, text, bytes(size))
    survives(lambda: SafetensorsFile(path).close())


@quick
@given(st.dictionaries(st.sampled_from([*config(Shape(experts=4)), "rope_parameters", "num_local_experts"]), anything))
def test_configs_of_any_content(change: dict[str, Any]) -> None:
    survives(lambda: qwen3_config.parse(config(Shape(experts=4)) | change))
    survives(lambda: qwen3_config.stretched(config(Shape()) | change, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("fuzz") / "sharded", Shape(64, 64, 1, 1, 1, 64), shards=2)


names = st.sampled_from([*weights(Shape(64, 64, 1, 1, 1, 64)), "extra"])
files = st.one_of(
    st.sampled_from(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "../x.safetensors", "/"]),
    st.text(max_size=10), numbers,
)  # fmt: skip


@quick
@given(st.one_of(anything, st.fixed_dictionaries({"weight_map": st.one_of(anything, st.dictionaries(names, files))})))
def test_indexes_of_any_content(folder: Path, index: Any) -> None:
    write_json(folder / "model.safetensors.index.json", json.loads(json.dumps(index)))
    survives(lambda: Checkpoint(folder).close())


@quick
@given(st.one_of(anything, st.fixed_dictionaries(
    {"quant_method": st.sampled_from(["fp8", "awq", "gptq", "other"])},
    optional={"bits": st.one_of(st.sampled_from([3, 4, 8]), anything), "group_size": anything,
              "weight_block_size": anything, "version": anything, "checkpoint_format": anything},
)), st.lists(st.tuples(st.sampled_from(quantized.PARTS), st.sampled_from(["I32", "F16", "BF16", "F8_E4M3"]),
                       st.lists(st.integers(0, 9), max_size=3)), max_size=6))  # fmt: skip
def test_quantized_checkpoints_of_any_content(
    tmp_path: Path, quantization: Any, parts: list[tuple[str, str, list[int]]]
) -> None:
    """Settings and parts that were never meant for each other, read to the last row where they are taken."""
    header: dict[str, Any] = {}
    offset = 0
    for part, dtype, shape in parts:
        size = {"I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}[dtype]
        for side in shape:
            size *= side
        if f"a.{part}" not in header:
            header[f"a.{part}"] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
    write_raw_safetensors(tmp_path / "model.safetensors", header, bytes(offset))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))

    def read() -> None:
        with Checkpoint(tmp_path) as checkpoint:
            for name, tensor in checkpoint.tensors.items():
                if tensor.dtype == "F32" and len(tensor.shape) == 2:
                    checkpoint.file_of(name).rows(tensor, 0, tensor.rows)

    survives(read)


@quick
@given(anything)
def test_adapters_of_any_settings(folder: Path, tmp_path: Path, settings_of: Any) -> None:
    write_raw_safetensors(tmp_path / "adapter_model.safetensors", {}, b"")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings_of))
    checkpoint = object.__new__(Checkpoint)
    checkpoint.notes = ()
    survives(lambda: adapters.apply(checkpoint, tmp_path))


# GGUF


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


lengths = st.one_of(st.integers(0, 5), st.sampled_from([2**20, 2**40, 2**63, 2**64 - 1]))
scalars = st.sampled_from([(0, "B"), (4, "I"), (5, "i"), (6, "f"), (7, "B"), (10, "Q")]).flatmap(
    lambda kind: st.integers(0, 100).map(lambda value: struct.pack(f"<I{kind[1]}", kind[0], value))
)
lists = st.tuples(st.integers(0, 13), lengths, st.binary(max_size=30)).map(
    lambda parts: struct.pack("<IIQ", 9, parts[0], parts[1]) + parts[2]
)
values = st.one_of(
    scalars, lists, st.binary(max_size=12).map(lambda value: struct.pack("<I", 8) + text(value)),
    st.sampled_from([b"qwen3", b"qwen3moe"]).map(lambda value: struct.pack("<I", 8) + text(value)),
    st.integers(0, 2**32 - 1).map(lambda kind: struct.pack("<I", kind)),
    # Lists of lists of lists: what counts the nesting by calling itself ends badly.
    st.integers(1, 3000).map(lambda depth: struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth),
)  # fmt: skip
WANTED = (
    b"general.architecture", b"general.name", b"general.file_type", b"split.count", b"split.tensors.count",
    *(b"qwen3." + key for key in (
        b"block_count", b"context_length", b"embedding_length", b"attention.head_count", b"attention.head_count_kv",
        b"attention.key_length")),
)  # fmt: skip
entries = st.lists(st.tuples(st.one_of(st.sampled_from(WANTED), st.binary(max_size=9)), values), max_size=14).map(
    lambda pairs: [text(key) + value for key, value in pairs]
)
infos = st.lists(
    st.tuples(
        st.sampled_from([b"output.weight", b"blk.0.attn_v.weight", b"a.in_sum2", b"a.counts", b"\xff"]),
        st.lists(lengths, max_size=5),
        st.sampled_from([0, 1, 2, 8, 12, 30, 39, 99]),
        st.sampled_from([0, 4, 32, 2**40, 2**64 - 1]),
    ),
    max_size=3,
).map(lambda found: [
    text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    for name, shape, kind, offset in found
])  # fmt: skip


def all_readers(path: Path) -> None:
    survives(lambda: model_header.read(path))
    survives(lambda: metadata.of(path))
    survives(lambda: imatrix_file.read(path))

    def requantize() -> None:
        with GgufSource(path) as source:
            requantizing.make_plan(source, Recipe(QUANTIZATIONS["q4_0"]), {}, None, force=True)

    survives(requantize)


@quick
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda tail: b"GGUF\x03\0\0\0" + tail)))
def test_any_bytes_as_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    all_readers(tmp_path / "a.gguf")


@quick
@given(entries, infos, st.sampled_from([0, 0, 0, 1, 2**60]), st.integers(0, 200))
def test_gguf_files_of_any_content(
    tmp_path: Path, keys: list[bytes], tensors: list[bytes], more: int, size: int
) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys) + more)
    (tmp_path / "a.gguf").write_bytes(head + b"".join(keys) + b"".join(tensors) + bytes(size))
    all_readers(tmp_path / "a.gguf")


@quick
@given(st.data())
def test_damaged_gguf_files(tmp_path: Path, data: st.DataObject) -> None:
    """A whole, sound header with some of its bytes changed, or cut."""
    keys = [text(b"general.architecture") + struct.pack("<I", 8) + text(b"qwen3")]
    keys += [text(key) + struct.pack("<II", 4, 2) for key in WANTED[5:]]
    tensor = text(b"output.weight") + struct.pack("<IQQIQ", 2, 32, 1, 0, 0)
    sound = bytearray(b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor)
    sound += bytes(-len(sound) % 32 + 128)
    for _ in range(data.draw(st.integers(0, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.gguf").write_bytes(sound[: data.draw(st.integers(0, len(sound)))] or b"G")
    all_readers(tmp_path / "a.gguf")


def test_the_sound_file_of_the_fuzz_tests_is_read(tmp_path: Path) -> None:
    """Else the test above would only ever see refusals."""
    keys = [text(b"general.architecture") + struct.pack("<I", 8) + text(b"qwen3")]
    keys += [text(key) + struct.pack("<II", 4, 2) for key in WANTED[5:]]
    tensor = text(b"output.weight") + struct.pack("<IQQIQ", 2, 32, 1, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    (tmp_path / "a.gguf").write_bytes(head + bytes(-len(head) % 32 + 128))
    assert model_header.read(tmp_path / "a.gguf").block_count == 2
    with GgufSource(tmp_path / "a.gguf") as source, suppress(LocalqwenError):
        plan = requantizing.make_plan(source, Recipe(QUANTIZATIONS["q8_0"]), {}, None, force=True)
        assert plan.types == {"Q8_0": 1}
