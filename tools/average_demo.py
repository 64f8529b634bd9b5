"""Average the weights of two checkpoints of the demo model into a third.

    python tools/average_demo.py build/two build/three localqwen/demo

Two passes of one training are so close to each other that the mean of their weights keeps what both learnt: sums
without thinking from one pass, tool calls and ended thinking from the other. Needs safetensors and torch.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def average(first: Path, second: Path, out: Path) -> None:
    """Write the mean of two checkpoints to `out`, in the official layout; everything but the weights comes from
    `second`."""
    left, right = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    mean = {name: ((left[name].float() + right[name].float()) / 2).to(torch.bfloat16) for name in right}
    shutil.copytree(second, out, dirs_exist_ok=True)
    save_file(mean, out / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    average(arguments.first, arguments.second, arguments.out)
