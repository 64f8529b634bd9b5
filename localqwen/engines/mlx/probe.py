"""What the probe's child process does: `python -m localqwen.engines.mlx.probe FOLDER` computes, or dies trying."""

from __future__ import annotations

import sys
from pathlib import Path

from localqwen.engines.engine import Sampling
from localqwen.engines.mlx import engine as mlx_engine


def compute(folder: Path) -> None:
    """A prompt long enough for the large matrix products, and a few tokens."""
    engine = mlx_engine.open(folder, context_length=256, threads=None, max_runs=1)
    run = engine.start(engine.tokenize("7 " * 64, special=False), Sampling(temperature=0), max_tokens=4)
    while not run.finished:
        engine.step()
    engine.close()


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
