"""Damage headers of models at random, and read them as a server does: only a LocalqwenError may be raised.

    python tools/fuzz_headers.py N [SEED] [--keep FOLDER --most 1000]

Each of the N rounds writes one damaged file (three of four are GGUF files, the others safetensors or config.json) and
reads it with every reader of `localqwen.formats` and `localqwen.models`, and as an entry of the server's lists. The
same N and SEED make the same files. An input that breaks a reader is kept as `crash-ROUND` in the current folder, and
so is one that takes a second. GGUF files that the readers accept are copied into the folder of --keep, for programs
that load them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import gguf_bytes  # noqa: E402

from localqwen.errors import LocalqwenError  # noqa: E402
from localqwen.formats import gguf, model_header, qwen3_config, safetensors  # noqa: E402
from localqwen.formats.gguf_reader import Entry, HeaderReader  # noqa: E402
from localqwen.models import converted, describe, inventory, metadata  # noqa: E402
from localqwen.serve.model_names import KnownModel  # noqa: E402
from localqwen.serve.ollama import models as ollama_models  # noqa: E402

#: The seconds after which a reader counts as broken: no input is larger than a few megabytes.
SLOW = 1.0
#: Numbers that break sums, signs and allocations.
ODD = (0, 1, 2, 3, 7, 8, 9, 12, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
_ODD_TEXTS = (b"\xff\xfe", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x1b[2J", b"\0", b"\xc3", "\u202e😀".encode())


@dataclass
class Seed:
    """A whole file to damage: its header, the size to which zeros fill it up, and where the entries of a GGUF header
    are."""

    header: bytes
    size: int
    entries: tuple[Entry, ...] = ()


@dataclass
class Report:
    """What the rounds gave: how many of each kind were accepted or refused, and what broke."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    crashes: list[str] = field(default_factory=list)


def gguf_seeds() -> list[Seed]:
    """Return small headers by hand, and that of the built-in model."""
    tokens = [
        gguf_bytes.entry("tokenizer.ggml.model", "gpt2"),
        gguf_bytes.text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", gguf_bytes.ARRAY, gguf_bytes.STRING, 300)
        + b"".join(gguf_bytes.text(f"t{number}") for number in range(300)),
        gguf_bytes.entry("tokenizer.chat_template", "{{ messages }}"),
    ]
    infos = [gguf_bytes.info("token_embd.weight", (64, 8), 0, 0), gguf_bytes.info("output.weight", (256, 4), 12, 2048)]
    made = [gguf_bytes.head(gguf_bytes.SHAPE), gguf_bytes.head([*gguf_bytes.SHAPE, *tokens], infos)]
    demo = converted.demo_conversion().file()
    with demo.open("rb") as file:
        start = min(tensor.start for tensor in gguf.GgufFile(demo).tensors.values())
        header = file.read(start)
    sizes = [(head, len(head) + 8192) for head in made] + [(header, demo.stat().st_size)] * 2
    return [Seed(head, size, _entries(head)) for head, size in sizes]


def _entries(header: bytes) -> tuple[Entry, ...]:
    with tempfile.TemporaryFile() as file:
        file.write(header)
        file.seek(0)
        return tuple(HeaderReader(file).entries())


def folder_seeds() -> dict[str, Seed]:
    """Return the files of the built-in checkpoint that have a header, by name."""
    demo = converted.demo_checkpoint()
    weights = demo / "model.safetensors"
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        header = file.read(8 + length)
    config = (demo / qwen3_config.FILE).read_bytes()
    return {weights.name: Seed(header, weights.stat().st_size), qwen3_config.FILE: Seed(config, len(config))}


def damaged(seed: Seed, dice: random.Random) -> Seed:
    """Return the file with one to four faults; half of the GGUF headers can be walked to their end nevertheless."""
    data, size = bytearray(seed.header), seed.size
    if seed.entries and dice.random() < 0.5:
        for _ in range(dice.randint(1, 3)):
            _value(data, dice.choice(seed.entries), dice)
        return Seed(bytes(data), size)
    for _ in range(dice.randint(1, 4)):
        dice.choice(_FAULTS)(data, dice)
    if dice.random() < 0.2:
        size = dice.choice((len(data), dice.randrange(len(data) + 1), size - dice.randrange(1, 5000)))
        del data[max(0, size) :]
    return Seed(bytes(data), max(size, len(data)))


def _value(data: bytearray, entry: Entry, dice: random.Random) -> None:
    """Give an entry another value of the same length: a number, a text, or a byte of a list."""
    begin = entry.begin + 8 + len(entry.key.encode())
    kind, value = int.from_bytes(data[begin : begin + 4], "little"), begin + 4
    if kind == gguf_bytes.ARRAY:
        data[dice.randrange(value, entry.end)] = dice.randrange(256)
    elif kind == gguf_bytes.STRING:
        text = dice.choice(("yarn", "linear", "gemma", "llama", "\x1b[31m", "{% for", "é", "😀"))
        room = entry.end - value - 8
        data[value + 8 : entry.end] = (text * room).encode()[:room].decode(errors="ignore").encode().ljust(room)
    elif kind in (6, 12):
        odd = dice.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")))
        data[value : entry.end] = struct.pack("<f" if kind == 6 else "<d", odd)
    else:
        room = entry.end - value
        data[value : entry.end] = (dice.choice(ODD) % (1 << 8 * room)).to_bytes(room, "little")


def _flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 1, 8))):
        if data:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _number(data: bytearray, dice: random.Random) -> None:
    """Put an odd number where a count, a length, a dimension, a type or an offset may be."""
    size = dice.choice((1, 4, 8))
    at = dice.choice((4, 8, 16, dice.randrange(len(data) + 1)))
    data[at : at + size] = (dice.choice(ODD) % (1 << 8 * size)).to_bytes(size, "little")


def _odd_text(data: bytearray, dice: random.Random) -> None:
    odd, at = dice.choice(_ODD_TEXTS), dice.randrange(len(data) + 1)
    data[at : at + len(odd)] = odd


def _cut(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data) + 1)
    del data[at : at + dice.choice((1, 4, 8, 100))]


def _twice(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data) + 1)
    data[at:at] = data[at : at + dice.choice((8, 40, 200))] * dice.choice((1, 1, 50))


def _entry(data: bytearray, dice: random.Random) -> None:
    """Add an entry, and count it: a key that may be there, with a value of any type; also lists of lists."""
    if len(data) < 24:
        return
    key = dice.choice(
        ("general.name", "general.architecture", "general.alignment", "qwen3.context_length", "qwen3.block_count",
         "qwen3.expert_count", "qwen3.expert_used_count", "qwen3.rope.scaling.type", "qwen3.rope.scaling.factor",
         "qwen3.feed_forward_length", "qwen3.attention.head_count_kv", "tokenizer.chat_template", "x" * 70_000, "")
    )  # fmt: skip
    kind, count = dice.randrange(14), dice.choice(ODD)
    nested = struct.pack("<IQ", dice.choice((gguf_bytes.ARRAY, gguf_bytes.STRING, 4)), dice.choice((0, 1, 1000)))
    values = {
        gguf_bytes.STRING: gguf_bytes.text(dice.choice(("qwen3", "yarn", "\x1b[31m", "", "é" * 100))),
        gguf_bytes.ARRAY: dice.choice((nested, struct.pack("<IQ", gguf_bytes.STRING, count))) + bytes(64),
        6: struct.pack("<f", dice.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))),
        12: struct.pack("<d", dice.choice((0.0, -1.0, 1e308, float("nan"), float("inf")))),
    }
    value = values.get(kind, (count % 2**64).to_bytes(8, "little"))
    entry = gguf_bytes.text(key) + struct.pack("<I", kind) + value
    data[24:24] = entry
    data[16:24] = ((int.from_bytes(data[16:24], "little") + 1) % 2**64).to_bytes(8, "little")


_FAULTS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _number, _number, _odd_text, _cut, _twice, _entry, _entry,
)  # fmt: skip


def write(path: Path, seed: Seed) -> None:
    """Write a file whose data are zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.write(seed.header)
        file.truncate(seed.size)


def read_gguf(path: Path) -> bool:
    """Read a GGUF file with every reader, and as an entry of the server's lists. Return whether it is accepted."""
    readers: tuple[Callable[[], object], ...] = (
        lambda: gguf.GgufFile(path).close(),
        lambda: model_header.read(path),
        lambda: metadata.of(path),
        lambda: describe.describe(str(path)),
    )
    accepted = [_accepts(each) for each in readers]
    (listed,) = [file for file in inventory.on_disk() if file.path == path]
    known = KnownModel(listed.shown, listed, listed.entry)
    _as_json(ollama_models.tags([known]))
    _accepts(lambda: _as_json(ollama_models.show(known)))
    return all(accepted)


def read_folder(folder: Path) -> bool:
    """Read a checkpoint folder with every reader. Return whether it is accepted."""
    return all(
        [
            _accepts(lambda: safetensors.read_header(folder / "model.safetensors")),
            _accepts(lambda: qwen3_config.read(folder)),
            _accepts(lambda: model_header.read(folder)),
            _accepts(lambda: _as_json(metadata.of(folder).info)),
            _accepts(lambda: qwen3_config.is_for_mlx(folder)),
        ]
    )


def _accepts(read: Callable[[], object]) -> bool:
    try:
        read()
    except LocalqwenError as error:
        f"{error.message} {error.hint}".encode()  # it must be text
        return False
    return True


def _as_json(value: object) -> bytes:
    """Return a value as the server writes it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def fuzz(rounds: int, seed: int, home: Path, keep: Path | None = None, most: int = 1000) -> Report:
    """Damage and read so many files; `home` is the LOCALQWEN_HOME of this process."""
    report, ggufs, files = Report(), gguf_seeds(), folder_seeds()
    (home / "models").mkdir(parents=True, exist_ok=True)
    folder = home / "checkpoint"
    shutil.copytree(converted.demo_checkpoint(), folder)
    for number in range(rounds):
        dice = random.Random(f"{seed} {number}")
        if dice.random() < 0.75:
            path = home / "models" / f"f{number}.gguf"
            write(path, damaged(dice.choice(ggufs), dice))
            accepted = _round(report, number, path, lambda path=path: read_gguf(path))  # type: ignore[misc]
            if accepted and keep is not None and report.counts["gguf accepted"] <= most:
                shutil.copyfile(path, keep / path.name)
            path.unlink()
        else:
            name = dice.choice(list(files))
            write(folder / name, damaged(files[name], dice))
            _round(report, number, folder / name, lambda: read_folder(folder))
            write_back(folder / name)
    return report


def write_back(path: Path) -> None:
    """Restore a file of the checkpoint."""
    shutil.copyfile(converted.demo_checkpoint() / path.name, path)


def _round(report: Report, number: int, path: Path, read: Callable[[], bool]) -> bool:
    """Read one file, and take note of what came of it."""
    began, accepted, problem = time.process_time(), False, ""
    try:
        accepted = read()
    except BaseException as exc:  # every kind of exception is what this program looks for
        if isinstance(exc, KeyboardInterrupt):
            raise
        problem = f"{type(exc).__name__}: {exc}"[:300]
    seconds = time.process_time() - began
    report.slowest = max(report.slowest, seconds)
    if problem or seconds > SLOW:
        report.crashes.append(f"round {number}, {path.name}: {problem or f'{seconds:.1f} s'}")
        shutil.copyfile(path, f"crash-{number}{path.suffix}")
    report.counts[f"{path.suffix[1:]} {'accepted' if accepted else 'refused'}"] += 1
    return accepted


def main() -> int:
    """Run the rounds and print the report. Return 1 if a reader broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--most", type=int, default=1000)
    wanted = parser.parse_args()
    if wanted.keep is not None:
        wanted.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="localqwen-fuzz-") as scratch:
        os.environ["LOCALQWEN_HOME"] = os.environ["HF_HOME"] = scratch
        report = fuzz(wanted.rounds, wanted.seed, Path(scratch), wanted.keep, wanted.most)
    for what, count in sorted(report.counts.items()):
        sys.stdout.write(f"{count:8,} {what}\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"slowest {report.slowest * 1000:.0f} ms, peak memory {peak / 1024:.0f} MB\n")
    sys.stdout.writelines(f"{crash}\n" for crash in report.crashes)
    return 1 if report.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
