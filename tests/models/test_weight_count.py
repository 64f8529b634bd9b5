"""How many weights a token passes through, in every form that a model's files have."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from checkpoints import Shape, make_checkpoint, weights
from gguf_bytes import SHAPE, entry, head, info

import convert
from localqwen.errors import FormatError
from localqwen.models import metadata

MIXTURE = Shape(layers=2, experts=8, experts_used=2, tied=False)


def counted(shape: Shape) -> tuple[int, int]:
    """All weights of a checkpoint, and those of its experts, by the names that the makers give them."""
    sizes = {name: tensor.size for name, tensor in weights(shape, "F32").items()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if ".experts." in name)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One mixture: official, GGUF in one file and in parts, MLX in 4 bit and in 16."""
    folder = tmp_path_factory.mktemp("mixture")
    source = make_checkpoint(folder / "official", MIXTURE, shards=2)
    convert.convert(source, folder / "m-Q8_0.gguf", quant="q8_0", threads=1)
    options = convert.Options(part_bytes=1_000_000)
    first = convert.convert(source, folder / "parts-Q8_0.gguf", quant="q8_0", threads=1, options=options).path
    convert.convert_to_mlx(source, folder / "mlx", bits=4, group_size=32)
    convert.convert_to_mlx(source, folder / "mlx16")
    return {
        "official": source, "gguf": folder / "m-Q8_0.gguf", "parts": first, "mlx": folder / "mlx",
        "mlx16": folder / "mlx16",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["official", "gguf", "parts", "mlx", "mlx16"])
def test_a_token_passes_through_the_chosen_experts_and_all_the_rest(form: str, forms: dict[str, Path]) -> None:
    everything, of_experts = counted(MIXTURE)
    found = metadata.of(forms[form]).count
    assert found.parameters == everything
    assert found.active_parameters == everything - of_experts * 6 // 8


def test_the_share_is_that_of_the_bytes(forms: dict[str, Path]) -> None:
    """Experts and the rest may be stored in different types. In 16 bit the shares of weights and of bytes are one."""
    plain = metadata.of(forms["official"]).count
    assert plain.active_share == pytest.approx(plain.active_parameters / plain.parameters, abs=1e-9)
    everything, of_experts = counted(MIXTURE)
    packed = metadata.of(forms["mlx"]).count
    # 32 weights of 4 bits share a scale and a bias of 16 bits: 5 bits each; routers and norms take more.
    assert packed.active_share == pytest.approx(1 - of_experts * 6 / 8 / everything, abs=0.01)
    assert packed.active_share != pytest.approx(plain.active_share, abs=1e-6)


@pytest.mark.parametrize("shape", [Shape(), Shape(tied=False)], ids=["tied", "untied"])
def test_a_token_passes_through_all_of_a_dense_model(shape: Shape, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", shape, duplicate_head=shape.tied)
    convert.convert(folder, tmp_path / "m.gguf", quant="q8_0", threads=1)
    for path in (folder, tmp_path / "m.gguf"):
        found = metadata.of(path).count
        assert (found.parameters, found.active_parameters, found.active_share) == (*[counted(shape)[0]] * 2, 1.0)


@pytest.mark.parametrize(("used", "experts"), [(0, 8), (9, 8), (None, 8), (2, None)])
def test_experts_without_their_numbers_are_an_error(used: int | None, experts: int | None, tmp_path: Path) -> None:
    numbers = {"expert_used_count": used, "expert_count": experts}
    entries = [entry(f"qwen3.{key}", value) for key, value in numbers.items() if value is not None]
    table = [info("blk.0.ffn_up_exps.weight", [32, 4, 8], 0, 0)]
    written = head([*SHAPE, *entries], table)
    (tmp_path / "a.gguf").write_bytes(written + bytes(-len(written) % 32 + 4 * prod([32, 4, 8])))
    with pytest.raises(FormatError, match="experts are used"):
        metadata.of(tmp_path / "a.gguf")
