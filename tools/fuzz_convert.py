"""Fuzz the converters with files from strangers, guided by coverage: only a LocalqwenError may be raised.

    pip install atheris                                             # Linux and macOS, has wheels for CPython
    python tools/fuzz_convert.py TARGET [--seconds 300] [--memory 700]

TARGET is one of: safetensors, index, settings, adapter, tokenizer, gguf. The tests do the same with hypothesis, but
only for seconds. An input that breaks a converter is saved as `crash-…` in the current folder; read it again with
`python tools/fuzz_convert.py TARGET crash-…`. More than `--memory` megabytes or 10 seconds for one input is a crash.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["convert", "localqwen.formats"]):
    from convert.gguf import planning, quants, requantizing, tokenizer
    from convert.imatrix import file as imatrix_file
    from convert.sources import adapters
    from convert.sources.checkpoint import Checkpoint
    from convert.sources.gguf import GgufSource
    from localqwen.errors import LocalqwenError
    from localqwen.formats import model_header, qwen3_config
    from localqwen.formats.safetensors import SafetensorsFile

Read = Callable[[Path, bytes], object]
Q4 = quants.Recipe(quants.QUANTIZATIONS["q4_0"])


def safetensors(folder: Path, content: bytes) -> None:
    """Read the bytes as a safetensors header, followed by as much data as the header says."""
    length = 64 + len(content) % 64
    (folder / "a.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(length))
    SafetensorsFile(folder / "a.safetensors").close()


def index(folder: Path, content: bytes) -> None:
    """Read the bytes as model.safetensors.index.json."""
    (folder / "model.safetensors.index.json").write_bytes(content)
    Checkpoint(folder).close()


def settings(folder: Path, content: bytes) -> None:
    """Read the bytes as config.json (sizes, rope, quantization), and plan the conversion of its weights."""
    (folder / "config.json").write_bytes(content)
    with Checkpoint(folder) as checkpoint:
        qwen3_config.parse(checkpoint.config)
        planning.make_plan(checkpoint, Q4, "fuzz", {}, None)


def adapter(folder: Path, content: bytes) -> None:
    """Read the bytes as adapter_config.json."""
    (folder / "adapter_config.json").write_bytes(content)
    with Checkpoint(folder) as checkpoint:
        adapters.apply(checkpoint, folder)


def tokens(folder: Path, content: bytes) -> None:
    """Read the bytes as tokenizer.json."""
    (folder / "tokenizer.json").write_bytes(content)
    with Checkpoint(folder) as checkpoint:
        tokenizer.metadata(checkpoint, 64)


def gguf(folder: Path, content: bytes) -> None:
    """Read the bytes with all three readers of GGUF; each may refuse what the others accept."""
    path = folder / "a.gguf"
    path.write_bytes(content or b"G")
    for read in (model_header.read, imatrix_file.read, _requantize):
        try:
            read(path)
        except LocalqwenError as error:
            _is_ours(error)


def _requantize(path: Path) -> None:
    with GgufSource(path) as source:
        requantizing.make_plan(source, Q4, {}, None, force=True)


TARGETS: Mapping[str, Read] = {
    "safetensors": safetensors, "index": index, "settings": settings, "adapter": adapter, "tokenizer": tokens,
    "gguf": gguf,
}  # fmt: skip


def _is_ours(error: LocalqwenError) -> None:
    if not (error.message and error.hint):
        raise AssertionError(f"no hint: {error!r}")


def _folder(target: str) -> tuple[Path, bytes]:
    """Return an intact checkpoint that the target damages, and the intact content to begin with."""
    from checkpoints import Shape, make_checkpoint
    from quantized_checkpoints import awq_checkpoint

    memory = Path("/dev/shm")
    folder = (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"localqwen-fuzz-{target}"
    shutil.rmtree(
        folder, ignore_errors=True
    )  # libFuzzer ends the process at once, so the folder of the last run still exists
    folder.mkdir(mode=0o700)
    shape = Shape(64, 64, 1, 1, 1, 64)
    if target == "settings":
        awq_checkpoint(folder, shape, group=32)
        return folder, (folder / "config.json").read_bytes()
    make_checkpoint(folder, shape, shards=2 if target == "index" else 1)
    if target == "adapter":
        weights = folder / "model.safetensors"
        (folder / "adapter_model.safetensors").write_bytes(weights.read_bytes())
        lora: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
        return folder, json.dumps(lora).encode()
    names = {"index": "model.safetensors.index.json", "tokenizer": "tokenizer.json"}
    if target in names:
        return folder, (folder / names[target]).read_bytes()
    if target == "safetensors":
        return folder, json.dumps({"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    import convert

    convert.convert(folder, folder / "sound.gguf", quant="bf16", threads=1)
    return folder, (folder / "sound.gguf").read_bytes()


def _dictionary(folder: Path, sound: bytes) -> Path:
    """Return the words of the intact content, which libFuzzer inserts elsewhere, and unusual numbers."""
    words = set(re.findall(rb'"[\w.-]{1,40}"|[0-9]{2,6}', sound[:20_000])) | {*map(str.encode, _ODD.split())}
    path = folder / "dictionary"
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in sorted(words)[:300]]
    path.write_text("\n".join(lines))
    return path


_ODD = '-1 1e999 NaN null true [] {} "" [[]] 1.5 9223372036854775808 18446744073709551616 "\\ud800"'


def main() -> None:
    """Fuzz one target, or read one crash again."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("target", choices=TARGETS)
    arguments.add_argument("again", type=Path, nargs="*", help="files to read again")
    arguments.add_argument("--seconds", type=int, default=300)
    arguments.add_argument("--memory", type=int, default=700)
    given = arguments.parse_args()
    folder, sound = _folder(given.target)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "sound").write_bytes(sound)

    def once(content: bytes) -> None:
        try:
            TARGETS[given.target](folder, content)
        except LocalqwenError as error:
            _is_ours(error)

    limits = [f"-max_total_time={given.seconds}", f"-rss_limit_mb={given.memory}", "-timeout=10"]
    files = [str(path) for path in given.again] or [str(corpus)]
    atheris.Setup(
        [sys.argv[0], *limits, f"-max_len={2 * len(sound) + 256}", f"-dict={_dictionary(folder, sound)}", *files], once
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
