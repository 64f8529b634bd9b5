"""Write the README's table of conversions by trying each; `--check` only says whether the table is up to date.

python tools/conversion_table.py

Every cell is the result of converting a small random model.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from checkpoints import Shape, make_checkpoint  # noqa: E402
from quantized_checkpoints import awq_checkpoint, fp8_checkpoint, gptq_checkpoint  # noqa: E402

import convert  # noqa: E402
from convert.mlx import schemes as mlx_schemes  # noqa: E402
from localqwen.errors import LocalqwenError  # noqa: E402

README = ROOT / "README.md"
_TABLE = re.compile(r"(?<=<!-- conversions: tools/conversion_table.py -->\n).*?(?=<!-- /conversions -->)", re.DOTALL)
_SMALL = Shape(feed_forward=256, layers=1, heads=1, kv_heads=1)

Output = Callable[[Path, Path], object]


def inputs(folder: Path) -> dict[str, Path]:
    """Return a source of each format, by its name in the table's header."""
    official = make_checkpoint(folder / "bf16", _SMALL)
    convert.convert(official, folder / "bf16.gguf", quant="bf16", threads=1)
    convert.convert(official, folder / "q8_0.gguf", quant="q8_0", threads=1)
    convert.convert_to_mlx(official, folder / "mlx", bits=8)
    return {
        "bf16": official,
        "f16": make_checkpoint(folder / "f16", _SMALL, dtype="F16"),
        "f32": make_checkpoint(folder / "f32", _SMALL, dtype="F32", shards=2),
        "FP8": fp8_checkpoint(folder / "fp8", _SMALL)[0],
        "AWQ": awq_checkpoint(folder / "awq", _SMALL)[0],
        "GPTQ Int4": gptq_checkpoint(folder / "gptq4", _SMALL)[0],
        "GPTQ Int8": gptq_checkpoint(folder / "gptq8", _SMALL, bits=8)[0],
        "GGUF bf16": folder / "bf16.gguf",
        "GGUF q8_0": folder / "q8_0.gguf",
        "MLX": folder / "mlx",
    }


def outputs() -> dict[tuple[str, str], Output]:
    """Return a function that writes each output format, by family and name."""

    def gguf(quant: str) -> Output:
        return lambda source, out: convert.convert(source, out, quant=quant, threads=1)

    def mlx(**wanted: object) -> Output:
        return lambda source, out: convert.convert_to_mlx(source, out, **wanted)  # type: ignore[arg-type]

    result: dict[tuple[str, str], Output] = {("GGUF", quant): gguf(quant) for quant in convert.QUANTIZATIONS}
    result[("MLX", "16 bit")] = mlx()
    result |= {("MLX", f"{bits} bit"): mlx(bits=bits, group_size=32) for bits in mlx_schemes.BITS}
    result |= {("MLX", mode): mlx(mode=mode) for mode in mlx_schemes.FIXED_MODES}
    result |= {("MLX", recipe): mlx(recipe=recipe, group_size=32) for recipe in mlx_schemes.RECIPES}
    result[("official layout", "16 bit")] = convert.dequantize
    return result


def cells(folder: Path) -> dict[tuple[str, str], dict[str, bool]]:
    """Return whether each input converts to each output, after trying each conversion."""
    sources = inputs(folder)
    out = folder / "out"
    out.mkdir()
    return {
        kind: {name: _works(make, source, out / f"{'-'.join(kind)} of {name}") for name, source in sources.items()}
        for kind, make in outputs().items()
    }


def _works(make: Output, source: Path, out: Path) -> bool:
    try:
        make(source, out)
    except LocalqwenError:
        return False
    return out.exists()


def table(found: Mapping[tuple[str, str], Mapping[str, bool]]) -> str:
    """Return the markdown table: one row for all outputs of a family that accept the same inputs."""
    rows: dict[tuple[str, tuple[bool, ...]], list[str]] = {}
    for (family, name), by_input in found.items():
        rows.setdefault((family, tuple(by_input.values())), []).append(name)
    heads = next(iter(found.values()))
    lines = ["| to \\ from | " + " | ".join(heads) + " |", "| --- |" + " :-: |" * len(heads)]
    for (family, works), names in rows.items():
        marks = " | ".join("yes" if each else "–" for each in works)
        lines.append(f"| {family} {', '.join(names)} | {marks} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table into the README; with `--check` exit with an error if it is out of date."""
    with tempfile.TemporaryDirectory() as folder:
        made = table(cells(Path(folder)))
    text = README.read_text(encoding="utf-8")
    new, count = _TABLE.subn(lambda _: made, text)
    if count != 1:
        sys.exit("README.md has no place for the table of conversions")
    if "--check" in sys.argv:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
