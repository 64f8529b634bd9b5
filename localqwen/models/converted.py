"""What an engine opens and nobody pulled: GGUF files made of checkpoints, and adapters in an engine's own format.

A conversion lies in the cache, and is made once for every state of its checkpoint.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from localqwen.errors import EngineUnavailable, UsageError
from localqwen.formats import json_file, model_header, qwen3_config
from localqwen.models import store

if TYPE_CHECKING:
    from convert import Progress

#: What a checkpoint becomes when nothing else is said: close to lossless, half the size of 16 bit.
CHECKPOINT_QUANT = "Q8_0"
Report = Callable[["Progress"], None]


@dataclass(frozen=True)
class Conversion:
    """How the checkpoint in `folder` becomes the GGUF file that llama.cpp opens. `repo` is the repository whose commit
    the folder is named after, "" for a folder of the user's own."""

    folder: Path
    name: str
    quant: str = CHECKPOINT_QUANT
    repo: str = ""

    @property
    def target(self) -> Path:
        """Where the file lies, or will lie, for the present content of the folder."""
        if self.repo:
            return store.converted_file(self.repo, self.folder.name, self.quant)
        return store.converted_dir() / f"{self.name}-{_content_key(self.folder)}-{self.quant.upper()}.gguf"

    def file(self, progress: Report | None = None) -> Path:
        """Return the file, converted first where there is none. Raise ConversionError."""
        target = self.target
        if target.exists():
            return target
        return convert(self.folder, target, quant=self.quant, name=self.name, progress=progress)


def demo_checkpoint() -> Path:
    """Return the built-in model in the official layout."""
    return Path(str(resources.files("localqwen").joinpath("demo")))


def demo_conversion(quant: str = CHECKPOINT_QUANT) -> Conversion:
    return Conversion(demo_checkpoint(), "demo", quant)


def convert(folder: Path, target: Path, *, quant: str, name: str, progress: Report | None = None) -> Path:
    """Convert a checkpoint folder to the GGUF file `target`, which appears when it is complete. Return `target`."""
    store.make_folder(target.parent)
    converter().convert(folder, target, quant=quant.lower(), name=name, progress=progress, force=True)
    return target


def quantizations() -> tuple[str, ...]:
    """Return the quantizations that a checkpoint can be converted to, in lower case, with their other names."""
    quants = converter().quants
    return (*quants.QUANTIZATIONS, *quants.ALIASES)


def _content_key(folder: Path) -> str:
    """Return a text that changes with the files of a checkpoint: with sizes and times, so that no bytes are read."""
    from localqwen._version import __version__

    state = [__version__]
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja") and not file.name.endswith(".gguf.json"):
            status = file.stat()
            state.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:12]


def converter() -> ModuleType:
    """Return the `convert` package that ships with localqwen. Raise EngineUnavailable if another one hides it."""
    import convert

    if getattr(convert, "OWNER", None) != "localqwen":
        raise EngineUnavailable(
            f"another package named 'convert' hides localqwen's own: {getattr(convert, '__file__', convert)}",
            "remove it, or leave its folder before running localqwen",
        )
    return convert


@contextmanager
def adapted(adapter: str | Path | None, model: Path, *, for_mlx: bool) -> Iterator[Path | None]:
    """Give the LoRA adapter in a folder as a file that the engine reads beside `model`, the file or folder it opens.

    The file exists until the block ends: an engine reads all of it when it opens the model. None without an adapter.
    Raise UsageError for what is not a folder, ConversionError for an adapter that is not a plain LoRA or does not fit.
    """
    if adapter is None:
        yield None
        return
    folder = adapter_folder(str(adapter))
    with tempfile.TemporaryDirectory(prefix="localqwen-") as scratch:
        if for_mlx:
            out = Path(scratch) / f"{folder.name}.safetensors"
            converter().adapter_for_mlx(folder, out, config=json_file.read_object(model / qwen3_config.FILE))
        else:
            out = Path(scratch) / f"{folder.name}.gguf"
            header = model_header.read(model)
            converter().adapter_for_llama_cpp(folder, out, architecture=header.architecture, sizes=header.sizes)
        yield out


def adapter_folder(said: str) -> Path:
    """Return the folder of an adapter. Raise UsageError for what is not a folder of this machine."""
    if "://" in said or said.lower().startswith(("hf:", "ms:")):
        raise UsageError(f"the adapter {said} is not on this machine", f"download it, then {_ADAPTER_HINT}")
    folder = Path(said).expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"there is no folder {said} with an adapter", _ADAPTER_HINT)
    return folder


_ADAPTER_HINT = "give the folder that PEFT's save_pretrained made: --adapter FOLDER"
