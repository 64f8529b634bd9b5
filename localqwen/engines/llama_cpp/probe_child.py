"""The program of the probe's child process: it computes, or dies.

`python -m localqwen.engines.llama_cpp.probe_child MODEL 1|0`
"""

from __future__ import annotations

import sys
from pathlib import Path

from localqwen.engines.engine import Sampling
from localqwen.engines.llama_cpp.engine import OwnModelEngine
from localqwen.engines.llama_cpp.settings import Settings


def compute(model: Path, *, use_extra_bufts: bool) -> None:
    """Compute a prompt long enough for the large matrix products, and a few tokens."""
    engine = OwnModelEngine(model, Settings(use_extra_bufts=use_extra_bufts), context_length=256)
    run = engine.start(engine.tokenize("7 " * 64, special=False), Sampling(temperature=0), max_tokens=4)
    while not run.finished:
        engine.step()
    engine.close()


if __name__ == "__main__":
    compute(Path(sys.argv[1]), use_extra_bufts=sys.argv[2] == "1")
