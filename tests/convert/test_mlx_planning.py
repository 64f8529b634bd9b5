"""The plan of an MLX folder: which type the numbers have that no packing changes. MLX itself is not needed."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Shape, config, make_checkpoint, weights, write_json
from quantized_checkpoints import write_mixed

from convert.mlx import schemes
from convert.mlx.planning import Plan, make_plan
from convert.sources.checkpoint import Checkpoint
from localqwen.errors import CheckpointError

SHAPE = Shape(64, 64, 1, 1, 1, 64)


def plan(folder: Path, stored: str, declared: str | None, bits: int | None) -> Plan:
    make_checkpoint(folder, SHAPE, dtype=stored)
    write_json(folder / "config.json", config(SHAPE) | {"torch_dtype": declared})
    with Checkpoint(folder) as checkpoint:
        return make_plan(checkpoint, schemes.scheme(bits))


def types(found: Plan, *endings: str) -> set[str]:
    return {tensor.dtype for part in found.shards.values() for tensor in part if tensor.name.endswith(endings)}


@pytest.mark.parametrize(
    ("stored", "declared", "expected"),
    [
        ("F32", None, "BF16"),
        ("F32", "float32", "BF16"),
        ("BF16", "float32", "BF16"),
        ("F32", "float16", "F16"),
        ("F16", None, "F16"),
        ("F16", "bfloat16", "BF16"),
        ("BF16", "bfloat16", "BF16"),
    ],
)
def test_a_plain_copy_has_the_declared_type_and_at_most_16_bit(
    stored: str, declared: str | None, expected: str, tmp_path: Path
) -> None:
    """config.json's torch_dtype decides, otherwise the stored type; every tensor of a copy takes two bytes a number."""
    found = plan(tmp_path, stored, declared, bits=None)
    assert types(found, "") == {expected}
    assert {each.dtype for each in found.weights} == {expected}
    assert found.size == 2 * sum(prod(each.weight.shape) for each in found.weights)


@pytest.mark.parametrize(
    ("stored", "declared", "expected"),
    [
        ("F32", None, "F32"),
        ("F32", "float32", "F32"),
        ("F32", "bfloat16", "BF16"),
        ("F16", None, "F16"),
        ("BF16", "float16", "F16"),
    ],
)
def test_a_quantization_keeps_32_bit_where_nothing_is_packed(
    stored: str, declared: str | None, expected: str, tmp_path: Path
) -> None:
    """As in mlx-lm, vectors and the scales of packed weights stay in float32 if the checkpoint is."""
    found = plan(tmp_path, stored, declared, bits=4)
    assert types(found, "norm.weight") == {expected}
    assert types(found, ".scales", ".biases") == {expected}
    assert types(found, "proj.weight") == {"U32"}


def mixture_with_an_odd_expert(folder: Path, declared: dict[str, str]) -> Path:
    """One matrix of one expert is stored as F16, everything else as BF16."""
    shape = Shape(64, 64, 1, 1, 1, 64, experts=2, experts_used=1, expert_feed_forward=64)
    make_checkpoint(folder, shape)
    tensors = {name: ("BF16", values) for name, values in weights(shape).items()}
    odd = "model.layers.0.mlp.experts.1.up_proj.weight"
    tensors[odd] = ("F16", np.zeros(tensors[odd][1].shape, np.float16))
    write_mixed(folder / "model.safetensors", tensors)
    described = {key: value for key, value in config(shape).items() if key != "torch_dtype"}
    write_json(folder / "config.json", described | declared)
    return folder


def test_experts_of_different_types_become_the_declared_one(tmp_path: Path) -> None:
    with Checkpoint(mixture_with_an_odd_expert(tmp_path, {"torch_dtype": "bfloat16"})) as checkpoint:
        assert types(make_plan(checkpoint, schemes.scheme()), "") == {"BF16"}


def test_experts_of_different_types_without_a_declared_one_are_refused(tmp_path: Path) -> None:
    """A stack has one type; the error names it and both types."""
    stack = r"model\.layers\.0\.mlp\.switch_mlp\.up_proj"
    with (
        Checkpoint(mixture_with_an_odd_expert(tmp_path, {})) as checkpoint,
        pytest.raises(CheckpointError, match=f"{stack} are stored as BF16 and F16"),
    ):
        make_plan(checkpoint, schemes.scheme())
