"""safetensors headers: running and converting refuse the same, and memory stays small."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import Shape, make_checkpoint, write_raw_safetensors

from convert.sources.checkpoint import Checkpoint
from localqwen.errors import FormatError
from localqwen.formats import safetensors as reader
from localqwen.formats.safetensors import SafetensorsFile
from localqwen.models import metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "m", Shape(layers=1))


def run_side(folder: Path) -> object:
    return metadata.of(folder)


def convert_side(folder: Path) -> object:
    with Checkpoint(folder) as checkpoint:
        return checkpoint.tensors


def refused(folder: Path, *words: str) -> None:
    for read in (run_side, convert_side):
        with pytest.raises(FormatError) as caught:
            read(folder)
        assert all(word in caught.value.message for word in ("model.safetensors", *words))
        assert caught.value.hint


def test_names_types_and_numbers_are_those_of_the_format_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    numbers = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(4, dtype=np.float16)}
    safetensors.numpy.save_file(numbers, path, {"format": "pt"})
    file = SafetensorsFile(path)
    assert {name: (each.dtype, each.shape) for name, each in file.tensors.items()} == {
        "a": ("F16", (4,)),
        "b": ("F32", (2, 3)),
    }
    assert file.rows(file.tensors["b"], 1, 1).tolist() == [[3.0, 4.0, 5.0]]
    assert file.rows(file.tensors["a"], 0, 1).tolist() == [[0.0, 1.0, 2.0, 3.0]]
    file.close()


def test_rows_of_a_stack_run_along_its_last_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    numbers = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    safetensors.numpy.save_file({"a": numbers}, path)
    file = SafetensorsFile(path)
    tensor = file.tensors["a"]
    assert (tensor.rows, tensor.row_bytes) == (6, 16)
    assert file.rows(tensor, 2, 3).tolist() == numbers.reshape(6, 4)[2:5].tolist()
    file.close()


# Lies


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "offsets beyond the file": ({"a": entry([4], 0, 16)}, b"", "truncated"),
    "data that no tensor owns": ({"a": entry([1], 0, 4)}, bytes(8), "no tensor owns"),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), "overlaps"),
    "gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), "gap"),
    "length of another shape": ({"a": entry([3], 0, 4)}, bytes(4), "needs 12 bytes"),
    "offsets the wrong way": ({"a": entry([1], 4, 0)}, bytes(4), "hold -4"),
    "negative sizes": ({"a": entry([-1, -1], 0, 4)}, bytes(4), "malformed"),
    "sizes that are no numbers": ({"a": entry(["1"], 0, 4)}, bytes(4), "malformed"),
    "sizes that are truth values": ({"a": entry([True], 0, 4)}, bytes(4), "malformed"),
    "too many dimensions": ({"a": entry([2**60] * 100_000, 0, 4)}, bytes(4), "malformed"),
    "unknown dtype": ({"a": entry([1], 0, 4, "F7")}, bytes(4), "malformed"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4), "lacks"),
    "entry without offsets": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "lacks"),
    "entry that is a list": ({"a": [1, 2]}, b"", "lacks"),
    "no object": ([1], b"", "not a JSON object"),
    "no JSON": (b"{nonsense", b"", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not JSON"),
    "nested without end": (b"[" * 100_000, b"", "not JSON"),
    "a key twice": (b'{"a": 1, "a": 2}', b"", "twice"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", b"", "not JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(case: str, folder: Path) -> None:
    """Every number of a header is checked against the file before it is used."""
    header, data, words = HEADERS[case]
    write_raw_safetensors(folder / "model.safetensors", header, data)
    refused(folder, words)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 100, (10**6).to_bytes(8, "little") + b"{}"]
)
def test_files_shorter_than_they_say(content: bytes, folder: Path) -> None:
    """An empty file, a cut length, a header longer than the file: nothing of that size is allocated."""
    (folder / "model.safetensors").write_bytes(content)
    refused(folder)


def test_an_oversized_header_is_not_read(folder: Path) -> None:
    """A header of 1 GB, in a file that really is so long, is refused by its length."""
    with (folder / "model.safetensors").open("wb") as file:
        file.write((10**9).to_bytes(8, "little"))
        file.truncate(2 * 10**9)
    refused(folder, "1,000,000,000", "25,000,000")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (reader.read_header, SafetensorsFile):
        with pytest.raises(FormatError, match=r"nothing\.safetensors cannot be read"):
            read(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("read", [lambda path: SafetensorsFile(path).close(), reader.read_header])
def test_random_damage_never_surprises(read: Callable[[Path], object], folder: Path, tmp_path: Path) -> None:
    """Whatever bytes of a header are changed, it is read or refused with our error."""
    original = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(original[:8], "little")
    damaged = tmp_path / "damaged.safetensors"
    dice = random.Random(7)
    hints = []
    for _ in range(300):
        data = bytearray(original)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(8 + length)] = dice.randrange(256)
        damaged.write_bytes(data)
        try:
            read(damaged)
        except FormatError as error:
            hints.append(error.hint)
    assert len(hints) > 200
    assert all(hints)
