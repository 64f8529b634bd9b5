"""One table of types, against the libraries of the formats."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from localqwen.formats import dtypes
from localqwen.formats import safetensors as reader


def test_blocks_and_ids_are_those_of_gguf_py() -> None:
    """Every type that gguf-py knows, with its number and its sizes."""
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: (each.name, each.block, each.block_bytes) for number, each in dtypes.GGUF.items()} == theirs


@pytest.mark.parametrize(
    "kind",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.complex64,
    ],
)  # fmt: skip
def test_a_type_that_safetensors_writes_is_known(kind: torch.dtype, tmp_path: Path) -> None:
    """By the name and with the bytes that the library gives it."""
    safetensors.torch.save_file({"a": torch.zeros(3, 2).to(kind)}, tmp_path / "a.safetensors")
    (tensor,) = reader.read_header(tmp_path / "a.safetensors").values()
    assert (tensor.shape, tensor.bytes) == ((3, 2), 6 * kind.itemsize)
    assert dtypes.BY_NAME[tensor.dtype].block_bytes == kind.itemsize


def test_numpy_reads_elements_of_the_right_size() -> None:
    for each in dtypes.BY_NAME.values():
        assert np.dtype(each.numpy).itemsize == (1 if each.quantized else each.block_bytes), each.name


def test_names_of_config_json_are_those_of_torch() -> None:
    assert {name: each.name for name, each in dtypes.TORCH.items()} == {
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
    }
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in dtypes.TORCH)


def test_rows_are_whole_blocks() -> None:
    assert (dtypes.Q4_K.fits(512), dtypes.Q4_K.fits(300)) == (True, False)
    assert (dtypes.Q4_K.row_bytes(512), dtypes.BF16.row_bytes(5)) == (288, 10)
