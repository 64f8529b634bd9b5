"""What a report says of the model that it measured."""

from pathlib import Path

import pytest
from checkpoints import Shape, config, make_checkpoint, write_json

import convert
from localqwen.bench import targets
from localqwen.engines import selection
from localqwen.models import metadata

MIXTURE = Shape(layers=2, experts=8, experts_used=2, tied=False)


@pytest.mark.parametrize(
    ("form", "engine", "quant"),
    [("m-Q8_0.gguf", "llama.cpp", "Q8_0"), ("4bit", "mlx", "4bit"), ("16bit", "mlx", "bf16")],
)
def test_the_bytes_that_a_token_of_a_mixture_reads(form: str, engine: str, quant: str, tmp_path: Path) -> None:
    """Of files that no entry knows: else a mixture seems to read its memory several times faster than it can."""
    source, path = make_checkpoint(tmp_path / "official", MIXTURE), tmp_path / form
    if engine == "mlx":
        convert.convert_to_mlx(source, path, bits=4 if form == "4bit" else None)
    else:
        convert.convert(source, path, quant="q8_0", threads=1)
    subject = targets.describe(selection.resolve(path, engine), label="m")
    count = metadata.of(path).count
    assert (subject.parameters, subject.quant) == (count.parameters, quant)
    assert count.active_parameters < count.parameters / 2
    assert subject.active_bytes / subject.bytes == pytest.approx(count.active_parameters / count.parameters, abs=0.02)
    assert subject.kv_bytes == 2 * MIXTURE.layers * MIXTURE.kv_heads * MIXTURE.head_dim * 2


@pytest.mark.parametrize("change", [{"head_dim": None}, {"num_key_value_heads": None}])
def test_a_folder_may_leave_the_length_of_its_heads_open(change: dict[str, None], tmp_path: Path) -> None:
    shape = Shape(layers=1, kv_heads=4)
    folder = make_checkpoint(tmp_path / "m", shape)
    before = targets.describe(selection.resolve(folder, "mlx"), label="m")
    write_json(folder / "config.json", config(shape) | change)
    assert targets.describe(selection.resolve(folder, "mlx"), label="m") == before
    assert before.active_bytes == before.bytes == (folder / "model.safetensors").stat().st_size
