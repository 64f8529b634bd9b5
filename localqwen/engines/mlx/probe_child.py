"""The program of the probe's child process: it computes, or dies.

`python -m localqwen.engines.mlx.probe_child FOLDER`
"""

from __future__ import annotations

import sys
from pathlib import Path

from localqwen.engines.engine import Sampling
from localqwen.engines.mlx import engine as mlx_engine


def compute(folder: Path) -> None:
    """Compute a prompt long enough for the large matrix products, and a few tokens."""
    engine = mlx_engine.open(folder, context_length=256, threads=None, max_runs=1)
    run = engine.start(engine.tokenize("7 " * 64, special=False), Sampling(temperature=0), max_tokens=4)
    while not run.finished:
        engine.step()


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
