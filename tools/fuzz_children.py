"""Let a model's process load each file of a folder, as the server does, and count what came of it.

    python tools/fuzz_headers.py 50000 --keep FOLDER --most 1000
    python tools/fuzz_children.py FOLDER

A file may be opened, refused, or end its process; this program and the next file must not notice. It ends with 1 if a
process outlives its file, or if anything but an error of localqwen comes back.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

import psutil

from localqwen.chat.load_options import LoadOptions
from localqwen.errors import LocalqwenError
from localqwen.model_process.process import ModelProcess, ModelSpec, ProcessDied, start_child

_SECONDS = 20.0
_AT_ONCE = 2


async def load(file: Path, came: Counter[str], turns: asyncio.Semaphore) -> None:
    """Load one file in a process of its own, and note what came of it."""
    spec = ModelSpec(str(file), file.stem, LoadOptions(context_length=64, threads=1))
    async with turns:
        try:
            process = await ModelProcess.open(spec, start_child, seconds=_SECONDS, settings={"stage_seconds": 5.0})
        except ProcessDied as died:
            came[f"its process ended: {died.death.cause}"] += 1
        except LocalqwenError as error:
            came[f"refused: {type(error).__name__}"] += 1
        else:
            came["opened"] += 1
            await process.close()


async def load_all(files: list[Path]) -> Counter[str]:
    """Load every file, some at the same time. Return how often each thing came of it."""
    came: Counter[str] = Counter()
    turns = asyncio.Semaphore(_AT_ONCE)
    await asyncio.gather(*(load(file, came, turns) for file in files))
    return came


def main(folder: Path) -> int:
    """Load the files of a folder and print what came of them. Return 1 if a process is left."""
    files = sorted(folder.glob("*.gguf"))
    came = asyncio.run(load_all(files))
    for what, times in came.most_common():
        print(f"{times:>6,} {what}")
    left = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    print(f"{len(files):,} files, {len(left)} processes left")
    return int(bool(left) or sum(came.values()) != len(files))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
