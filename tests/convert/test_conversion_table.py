"""The README's table of conversions says what happens when each of them is tried."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_cell_of_the_table_is_tried(tmp_path: Path) -> None:
    """All inputs by all outputs, on a small model: `tools/conversion_table.py` would write what stands there."""
    pytest.importorskip("mlx.core")
    spec = importlib.util.spec_from_file_location("conversion_table", ROOT / "tools" / "conversion_table.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.table(tool.cells(tmp_path)) in (ROOT / "README.md").read_text(encoding="utf-8")
