"""GGUF headers: what is read and what is refused, and that running and converting accept and refuse the same."""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod
from pathlib import Path

import gguf
import pytest
from checkpoints import Shape, make_checkpoint
from gguf_bytes import ARRAY, SHAPE, STRING, entry, head, info, text

import convert
from convert.gguf import head as gguf_head
from convert.sources.gguf import GgufSource
from localqwen.errors import CheckpointError, FormatError, Unsupported
from localqwen.formats import dtypes, model_header
from localqwen.formats.gguf import GgufFile
from localqwen.models import metadata


def run_side(path: Path) -> object:
    return model_header.read(path)


def table(path: Path) -> object:
    return metadata.of(path)


def convert_side(path: Path) -> object:
    with GgufSource(path) as source:
        return source.tensors


@pytest.fixture(scope="module")
def eight_bit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "Tiny-2M")
    out = tmp_path_factory.mktemp("gguf") / "Tiny-2M-Q8_0.gguf"
    convert.convert(folder, out, quant="q8_0", threads=1)
    return out


def test_the_header_is_that_of_gguf_py(eight_bit: Path) -> None:
    """Values, and of each tensor its type, shape and place, as the format's own library reads them."""
    reader, file = gguf.GGUFReader(eight_bit), GgufFile(eight_bit)
    theirs = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(file.entries) == list(theirs)
    assert file.values == {
        key: field.contents() for key, field in theirs.items() if field.types[0] != gguf.GGUFValueType.ARRAY
    }
    assert [(each.name, each.type.name, each.shape, each.start, each.bytes) for each in file.tensors.values()] == [
        (each.name, each.tensor_type.name, tuple(each.shape.tolist()[::-1]), each.data_offset, each.n_bytes)
        for each in reader.tensors
    ]
    file.close()


def test_a_header_is_read_without_an_engine(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(head(SHAPE))
    header = model_header.read(file)
    assert (header.name, header.architecture, header.context_length) == ("Tiny", "qwen3", 40960)
    assert header.kv_bytes_per_token == 114_688  # the value of the 0.6B


def test_the_vocabulary_is_not_read_for_the_header(tmp_path: Path) -> None:
    """Reading stops at the tokenizer's keys: what follows may be damaged, and costs nothing. The table is behind it."""
    file = tmp_path / "m.gguf"
    broken = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, 1 << 60)
    file.write_bytes(head([*SHAPE, entry("tokenizer.ggml.model", "gpt2"), broken]))
    assert model_header.read(file).block_count == 28
    for read in (table, convert_side):
        with pytest.raises(FormatError, match="cannot be right"):
            read(file)


def test_keys_behind_the_vocabulary_are_found_where_they_are_needed(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, 2) + text("a") + text("bc")
    file.write_bytes(head([*SHAPE[:4], tokens, *SHAPE[4:]]))
    assert model_header.read(file).context_length == 40960


# Versions and layouts


def test_version_2_runs_and_converts_like_version_3(eight_bit: Path, tmp_path: Path) -> None:
    """The layouts are the same, byte for byte; what is written is version 3."""
    second = tmp_path / eight_bit.name
    data = bytearray(eight_bit.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    second.write_bytes(data)
    third = model_header.read(eight_bit)
    assert model_header.read(second) == model_header.ModelHeader(**{**vars(third), "path": second})
    assert metadata.of(second).count == metadata.of(eight_bit).count
    outs = [tmp_path / "from2.gguf", tmp_path / "from3.gguf"]
    for source, out in zip((second, eight_bit), outs, strict=True):
        convert.convert(source, out, quant="q4_0", threads=1)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def aligned(path: Path, out: Path, alignment: int) -> None:
    """The same model with its tensors at multiples of `alignment`."""
    file, data = GgufFile(path), path.read_bytes()
    infos, contents, offset = [], b"", 0
    for tensor in file.tensors.values():
        infos.append(info(tensor.name, tensor.shape[::-1], tensor.type.number or 0, offset))
        content = data[tensor.start : tensor.start + tensor.bytes]
        contents += content + bytes(-len(content) % alignment)
        offset = len(contents)
    written = head([*file.entries.values(), entry("general.alignment", alignment)], infos)
    out.write_bytes(written + bytes(-len(written) % alignment) + contents)
    file.close()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_tensors_lie_at_multiples_of_what_the_file_says(alignment: int, eight_bit: Path, tmp_path: Path) -> None:
    """A conversion lays them out anew: its bytes do not depend on the alignment of the source."""
    source = tmp_path / "aligned.gguf"
    aligned(eight_bit, source, alignment)
    assert [tensor.start % alignment for tensor in GgufFile(source).tensors.values()] == [0] * 24
    assert metadata.of(source).count == metadata.of(eight_bit).count
    convert.convert(source, tmp_path / "a.gguf", quant="q4_0", threads=1)
    convert.convert(eight_bit, tmp_path / "b.gguf", quant="q4_0", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# Lies

ARCHITECTURE = entry("general.architecture", "qwen3")
#: Headers that whoever reads any of them refuses.
OF_HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "an empty file"),
    "a part of the magic number": (b"GG", "begins with"),
    "the magic number alone": (b"GGUF", "ends inside its header"),
    "another format": (b"GGML" + bytes(60), "begins with"),
    "an old version": (head([], version=1), "version 1"),
    "a version to come": (head([], version=99), "version 99"),
    "another byte order": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
    "more entries than bytes": (head([], more=1 << 60), "cannot be right"),
    "an entry too many": (head([ARCHITECTURE], more=1) + bytes(12), "not a whole GGUF file"),
    "a key twice": (head([ARCHITECTURE, ARCHITECTURE]), "comes twice"),
    "a text without end": (head([struct.pack("<Q", 1 << 62) + b"x"]) + bytes(9), "ends inside a text"),
    "a key that is no UTF-8": (head([struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1)]), "utf-8"),
    "a list without end": (head([text("a") + struct.pack("<IIQ", ARRAY, 4, 1 << 61)]), "cannot be right"),
    "a list of lists": (head([text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1)]), "no type of a value"),
    "a type that is none": (head([text("a") + struct.pack("<I", 77)]), "no type of a value"),
}
#: Tables of tensors that are refused; whoever needs only the header does not read that far.
OF_TABLES: dict[str, tuple[list[bytes], str]] = {
    "beyond the file": ([info("a", [1 << 40], 0, 0)], "does not lie in the file"),
    "too many numbers": ([info("a", [1 << 62] * 4, 0, 0)], "does not lie in the file"),
    "an offset beyond the file": ([info("a", [1], 0, 1 << 40)], "does not lie in the file"),
    "no rows": ([info("a", [0], 0, 0)], "cannot be [0]"),
    "an unknown type": ([info("a", [1], 99, 0)], "the type 99"),
    "a type that was removed": ([info("a", [32], 4, 0)], "the type 4"),
    "a row that is no whole block": ([info("a", [31], 8, 0)], "Q8_0 cannot be [31]"),
    "no dimensions": ([info("a", [], 0, 0)], "0 dimensions"),
    "five dimensions": ([info("a", [1] * 5, 0, 0)], "5 dimensions"),
    "an offset between blocks": ([info("a", [1], 0, 4)], "no multiple of 32"),
    "a name twice": ([info("a", [1], 0, 0), info("a", [1], 0, 32)], "'a' comes twice"),
    "one place for two": ([info("a", [9], 0, 0), info("b", [1], 0, 32)], "'b' overlaps another tensor"),
}


@pytest.mark.parametrize("case", OF_HEADERS)
@pytest.mark.parametrize("read", [run_side, table, convert_side])
def test_headers_that_lie(case: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    """Every number is checked against the file before it is used, and every reader says the same."""
    content, words = OF_HEADERS[case]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read(tmp_path / "bad.gguf")
    assert words in caught.value.message
    assert "bad.gguf" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("case", OF_TABLES)
@pytest.mark.parametrize("read", [table, convert_side])
def test_tables_that_lie(case: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    infos, words = OF_TABLES[case]
    (tmp_path / "bad.gguf").write_bytes(head([ARCHITECTURE], infos) + bytes(128))
    with pytest.raises(FormatError) as caught:
        read(tmp_path / "bad.gguf")
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("value", [0, 1, 4, 48, 1 << 31])
def test_alignments_that_no_file_has(value: int, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(head([ARCHITECTURE, entry("general.alignment", value)]) + bytes(128))
    for read in (table, convert_side):
        with pytest.raises(FormatError, match=f"an alignment of {value}"):
            read(tmp_path / "a.gguf")


def test_every_cut_of_a_header_is_an_error(tmp_path: Path) -> None:
    data, file = head(SHAPE, [info("a", [1], 0, 0)]), tmp_path / "cut.gguf"
    for length in range(len(data)):
        file.write_bytes(data[:length])
        for read in (table, convert_side):
            with pytest.raises(FormatError):
                read(file)


def test_every_cut_of_what_tells_the_shape_is_an_error(tmp_path: Path) -> None:
    data, file = head(SHAPE), tmp_path / "cut.gguf"
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(FormatError):
            model_header.read(file)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("block_count", 0, "block_count is 0"),
        ("context_length", "long", "context_length is 'long'"),
        ("attention.key_length", -1.5, "key_length is -1.5"),
        ("rope.scaling.factor", -4.0, "factor is -4"),
        ("rope.scaling.factor", 4, "factor is 4"),
        ("rope.scaling.type", 2, "is no text"),
        ("rope.scaling.original_context_length", 0, "original_context_length is 0"),
    ],
)
def test_shapes_that_no_model_has(key: str, value: str | int | float, words: str, tmp_path: Path) -> None:
    sizes = {"context_length": 64, "block_count": 1, "embedding_length": 64, "attention.head_count": 1}
    values = sizes | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0} | {key: value}
    entries = gguf_head.entries(
        {"general.architecture": "qwen3", **{f"qwen3.{name}": each for name, each in values.items()}}
    )
    (tmp_path / "a.gguf").write_bytes(gguf_head.head(entries, []))
    with pytest.raises(FormatError, match=words):
        model_header.read(tmp_path / "a.gguf")


def test_a_header_without_a_shape_names_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(head(SHAPE[:5]))
    with pytest.raises(FormatError, match=r"lacks attention\.head_count, block_count, embedding_length"):
        model_header.read(tmp_path / "a.gguf")


def test_a_damaged_file_is_one_error_for_who_runs_and_who_converts() -> None:
    """So that no caller has to turn the one into the other."""
    assert issubclass(FormatError, Unsupported)
    assert issubclass(FormatError, CheckpointError)
    assert (FormatError.exit_code, FormatError.http_status) == (1, 400)


def test_types_that_are_run_but_not_converted_are_named(tmp_path: Path) -> None:
    """llama.cpp runs IQ2_XS; nothing is made of it, because what was dropped does not come back."""
    (tmp_path / "a.gguf").write_bytes(head([*SHAPE], [info("a", [256], dtypes.IQ2_XS.number or 0, 0)]) + bytes(160))
    assert metadata.of(tmp_path / "a.gguf").parameters == 256
    with pytest.raises(CheckpointError, match="'a' has the type IQ2_XS; converted are f32, f16"):
        convert_side(tmp_path / "a.gguf")


# Weights


def test_rows_are_views_on_the_file(tmp_path: Path) -> None:
    """Rows are counted along the last axis; blocks come as their bytes."""
    shape = Shape(layers=1)
    convert.convert(make_checkpoint(tmp_path / "m", shape), tmp_path / "m.gguf", quant="q8_0", threads=1)
    with GgufSource(tmp_path / "m.gguf") as source:
        norm, matrix = source.tensors["output_norm.weight"], source.tensors["blk.0.ffn_up.weight"]
        assert source.file_of(norm.name).rows(norm, 0, 1).shape == (1, shape.hidden)
        rows = source.file_of(matrix.name).rows(matrix, 3, 2)
        assert (matrix.rows, rows.shape) == (shape.feed_forward, (2, shape.hidden // 32 * 34))
        assert prod(matrix.shape) == shape.feed_forward * shape.hidden
        start = matrix.start + 3 * rows.shape[1]
        assert rows.tobytes() == (tmp_path / "m.gguf").read_bytes()[start : start + rows.nbytes]
