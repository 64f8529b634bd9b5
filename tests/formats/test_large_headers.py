"""Headers that are as large as their numbers say, or say so only: read in linear time, and in little memory."""

import contextlib
import gc
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf_bytes
import pytest

from localqwen.errors import FormatError
from localqwen.formats import json_file, safetensors
from localqwen.formats.gguf import GgufFile
from localqwen.models import metadata

LIST = struct.pack("<II", gguf_bytes.ARRAY, gguf_bytes.STRING)


def texts(size: int) -> bytes:
    """A list of empty texts, 8 bytes each."""
    many = gguf_bytes.text("x") + LIST + struct.pack("<Q", size // 8) + bytes(size)
    return gguf_bytes.head([*gguf_bytes.SHAPE, many])


def short_texts(size: int) -> bytes:
    text = gguf_bytes.text("a")
    count = size // len(text)
    return gguf_bytes.head([*gguf_bytes.SHAPE, gguf_bytes.text("x") + LIST + struct.pack("<Q", count) + text * count])


def entries(size: int) -> bytes:
    """Keys as short as possible, with a byte each."""
    return gguf_bytes.head(
        [gguf_bytes.text(f"{number:x}") + struct.pack("<IB", 0, 1) for number in range(size // 17)],
    )


def tensors(size: int) -> bytes:
    return gguf_bytes.head([], [gguf_bytes.info(f"{number:x}", [1], 24, 32 * number) for number in range(size // 37)])


def one_text(size: int) -> bytes:
    return gguf_bytes.head([*gguf_bytes.SHAPE, gguf_bytes.entry("x", "é" * (size // 2))])


def read_gguf(path: Path) -> None:
    GgufFile(path).close()


def as_header(content: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The content as the header of a safetensors file."""
    return lambda size: len(content(size)).to_bytes(8, "little") + content(size)


def empty_lists(size: int) -> bytes:
    return b'{"a":[' + b"[]," * (size // 3) + b"[]]}"


def no_tensors(size: int) -> bytes:
    one = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(one % number for number in range(size // 57)) + b"}"


#: What is large -> its content by size in bytes, and what reads it.
LARGE: dict[str, tuple[Callable[[int], bytes], Callable[[Path], object]]] = {
    "empty texts": (texts, read_gguf),
    "short texts": (short_texts, read_gguf),
    "entries": (entries, read_gguf),
    "tensors": (tensors, read_gguf),
    "one text": (one_text, read_gguf),
    "metadata": (texts, metadata.of),
    "lists in JSON": (empty_lists, json_file.read_object),
    "lists in safetensors": (as_header(empty_lists), safetensors.read_header),
    "tensors in safetensors": (as_header(no_tensors), safetensors.read_header),
}


def take(read: Callable[[Path], object], path: Path) -> None:
    with contextlib.suppress(FormatError):
        read(path)


@pytest.mark.parametrize("what", LARGE)
def test_four_times_the_header_takes_about_four_times_as_long(what: str, tmp_path: Path) -> None:
    content, read = LARGE[what]

    def seconds(size: int) -> float:
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(content(size))
        gc.collect()
        gc.disable()  # its passes over all objects of the process are not the reader's work
        began = time.thread_time()
        take(read, path)
        seconds = time.thread_time() - began
        gc.enable()
        return seconds

    size = 200_000
    assert min(seconds(4 * size) for _ in range(3)) < 8 * min(seconds(size) for _ in range(3)) + 2e-3


@pytest.mark.parametrize("what", LARGE)
def test_a_header_takes_a_small_multiple_of_its_size(what: str, tmp_path: Path) -> None:
    """Beside what the most entries and tensors take, which is a fixed number of megabytes."""
    content, read = LARGE[what]
    size, path = 6_000_000, tmp_path / "large.gguf"
    path.write_bytes(content(size))
    tracemalloc.start()
    try:
        take(read, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * size + (32 << 20)


def test_a_hundred_megabytes_of_tiny_texts_are_refused_before_they_are_walked(tmp_path: Path) -> None:
    head = gguf_bytes.head([gguf_bytes.text("x") + LIST + struct.pack("<Q", 12_500_000)])
    with (tmp_path / "a.gguf").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="its lists have 12,500,000 texts"):
            GgufFile(tmp_path / "a.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (gguf_bytes.head([], [gguf_bytes.info("x", [2**62] * 20, 0, 0)]), "'x' has 20 dimensions"),
        (gguf_bytes.head([], [gguf_bytes.info("x", [1] * 60_000, 0, 0)]), "'x' has 60000 dimensions"),
        (gguf_bytes.head([], [gguf_bytes.info("x", [2**62] * 4, 0, 0)]), "does not lie in the file"),
        (gguf_bytes.head([], [gguf_bytes.info("x" * 65, [1], 0, 0)]), "a text of 65 bytes"),
        (gguf_bytes.head([gguf_bytes.entry("x" * 65_536, 1)]), "a text of 65,536 bytes"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 65_537) + bytes(2_000_000), "a count of 65,537"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 65_537, 0) + bytes(2_000_000), "a count of 65,537"),
        (gguf_bytes.head([gguf_bytes.text("x") + struct.pack("<If", 6, float("nan"))]), "nan"),
        (gguf_bytes.head([gguf_bytes.text("x") + struct.pack("<Id", 12, float("-inf"))]), "-inf"),
    ],
    ids=range(9),
)
def test_numbers_that_cannot_be_are_refused(head: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(head)
    with pytest.raises(FormatError, match=said):
        GgufFile(tmp_path / "a.gguf")


def test_a_header_beyond_its_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    """A list of numbers is passed over without a look, but what stands behind it is part of the header too."""
    numbers = gguf_bytes.text("x") + struct.pack("<IIQ", gguf_bytes.ARRAY, 0, 200_000_000)
    with (tmp_path / "a.gguf").open("wb") as file:
        file.write(gguf_bytes.head([numbers], more=1))
        file.seek(200_000_000, 1)
        file.write(gguf_bytes.entry("y", 1))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="more than 100,000,000 bytes"):
            GgufFile(tmp_path / "a.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
