"""Whether MLX computes on this machine, tried in a child process. MLX has no settings that could help where not."""

from __future__ import annotations

from localqwen.engines import child_process
from localqwen.errors import EngineUnavailable
from localqwen.models import converted


def probe() -> None:
    """Raise EngineUnavailable where MLX cannot load the built-in model and compute a few tokens."""
    code, words = child_process.run_module("localqwen.engines.mlx.probe_child", str(converted.demo_checkpoint()))
    if code:
        raise EngineUnavailable(
            f"MLX does not run on this machine: the probe ended by {child_process.reason(code, words)}",
            "pip install --force-reinstall mlx mlx-lm",
        )
