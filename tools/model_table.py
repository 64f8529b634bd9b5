"""Write the README's table of models from models.toml; `--check` only says whether the table is up to date.

python tools/model_table.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from localqwen.models import catalogue, fit, registry
from localqwen.models.registry import Model

README = Path(__file__).parents[1] / "README.md"
_TABLE = re.compile(r"(?<=<!-- models: tools/model_table.py -->\n).*?(?=<!-- /models -->)", re.DOTALL)
_HEAD = (
    "| name | parameters | download | memory at 4k | context | thinking | official GGUF |\n"
    "| --- | ---: | ---: | ---: | ---: | --- | --- |"
)


def table() -> str:
    """Return the markdown table of models.toml."""
    return "\n".join([_HEAD, *(_row(model) for model in registry.models().values() if model.quants)]) + "\n"


def _row(model: Model) -> str:
    parameters = f"{model.parameters / 1e9:.1f} B" + (f" ({model.active / 1e9:.1f} B active)" if model.mixture else "")
    memory = fit.model_need(model, model.default, catalogue.CONTEXT_LENGTH).total
    official = ", ".join(model.gguf) or "none: converted here"
    return (
        f"| `{model.name}` | {parameters} | {_gigabytes(model.download_bytes(model.default))} | {_gigabytes(memory)} | "
        f"{model.longest:,} | {model.thinking} | {official} |"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def main() -> int:
    """Write the table into the README; with `--check` exit with an error if it is out of date."""
    text = README.read_text(encoding="utf-8")
    new, count = _TABLE.subn(lambda _: table(), text)
    if count != 1:
        sys.exit("README.md has no place for the table of models")
    if "--check" in sys.argv:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
