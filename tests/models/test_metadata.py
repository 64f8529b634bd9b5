"""What a model's files say of it, in every form that they have."""

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import Shape, make_checkpoint, weights
from quantized_checkpoints import DENSE, awq_checkpoint, fp8_checkpoint, gptq_checkpoint

import convert
from localqwen.errors import ModelNotFound, Unsupported
from localqwen.models import converted, metadata


def size(shape: Shape) -> int:
    return sum(tensor.size for tensor in weights(shape, "F32").values())


@pytest.mark.parametrize("shape", [Shape(), Shape(tied=False), Shape(experts=4)], ids=["tied", "untied", "mixture"])
def test_weights_are_counted_alike_in_every_form(tmp_path: Path, shape: Shape) -> None:
    folder = make_checkpoint(tmp_path / "plain", shape, duplicate_head=shape.tied, shards=2)
    gguf = converted.convert(folder, tmp_path / "Some-Q8_0.gguf", quant="q8_0", name="Some")
    convert.convert_to_mlx(folder, tmp_path / "mlx", bits=4, group_size=32)
    cards = [metadata.of(place) for place in (folder, gguf, tmp_path / "mlx")]
    assert [each.parameters for each in cards] == [size(shape)] * 3
    assert [each.info["general.parameter_count"] for each in cards] == [size(shape)] * 3
    assert [(each.form, each.quant) for each in cards] == [
        ("safetensors", "BF16"),
        ("gguf", "Q8_0"),
        ("safetensors", "4bit"),
    ]
    assert len({each.template for each in cards}) == 1
    shared = ("general.architecture", f"{cards[0].info['general.architecture']}.context_length")
    assert all(each.info[key] == cards[0].info[key] for each in cards for key in shared)


@pytest.mark.parametrize(
    ("make", "quant"), [(awq_checkpoint, "4bit"), (gptq_checkpoint, "4bit"), (fp8_checkpoint, "FP8")]
)
def test_packed_weights_are_counted_one_by_one(
    tmp_path: Path, make: Callable[[Path], tuple[Path, object]], quant: str
) -> None:
    found = metadata.of(make(tmp_path / "packed")[0])
    assert (found.parameters, found.quant) == (size(DENSE), quant)


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a")
    file = converted.convert(folder, tmp_path / "a.gguf", quant="q8_0", name="A")
    before = metadata.of(file).parameters
    untied = make_checkpoint(tmp_path / "b", Shape(tied=False))
    converted.convert(untied, tmp_path / "b.gguf", quant="q8_0", name="B").replace(file)
    assert metadata.of(file).parameters > before


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        metadata.of(tmp_path / "nothing")
    folder = make_checkpoint(tmp_path / "cut")
    next(folder.glob("*.safetensors")).write_bytes(b"\x00" * 4)
    with pytest.raises(Unsupported, match="too few for a safetensors file"):
        metadata.of(folder)
