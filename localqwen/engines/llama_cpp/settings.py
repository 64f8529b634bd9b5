"""How llama.cpp computes on this machine: the defaults, and what `localqwen tune` found to be faster for a model.

What was found is kept per file, build, CPU and number of cores, in one JSON file of the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from localqwen.errors import StorageError
from localqwen.formats.yarn import Scaling
from localqwen.models import store
from localqwen.models.fit import BATCH


@dataclass(frozen=True)
class Settings:
    """How llama.cpp computes.

    `threads` decode, `prefill_threads` compute prompts (None: the same number). `batch` is the most tokens of a pass.
    `flash_attention` None leaves it to the rule of the context. With `use_extra_bufts` llama.cpp keeps the weights in
    another order beside the file. `kv_type` is the type of keys and values: f16, q8_0 or q4_0. With `adapt_threads`
    fewer threads compute while other programs want their cores. `tuned` says that the values were measured. `yarn`
    stretches the positions of a file that does not do so itself.
    """

    threads: int = 1
    prefill_threads: int | None = None
    batch: int = BATCH
    flash_attention: bool | None = None
    use_extra_bufts: bool = True
    kv_type: str = "f16"
    adapt_threads: bool = False
    tuned: bool = False
    yarn: Scaling | None = None

    @property
    def threads_for_prompts(self) -> int:
        """How many threads compute prompts."""
        return self.prefill_threads or self.threads


#: The settings that tuning decides, with their types; the others are the user's.
_KEPT: dict[str, tuple[type, ...]] = {
    "threads": (int,),
    "prefill_threads": (int, type(None)),
    "batch": (int,),
    "flash_attention": (bool, type(None)),
    "use_extra_bufts": (bool,),
    "kv_type": (str,),
}


def tuned(path: Path, base: Settings) -> Settings:
    """Return `base` with what was measured for this file, build and CPU; `base` itself where nothing was."""
    kept = _read().get(_key(path))
    if not isinstance(kept, dict) or kept.keys() != _KEPT.keys():
        return base
    if not all(_sound(name, value) for name, value in kept.items()):
        return base
    # What the probe forbids stays forbidden, and what the user asks for is not changed.
    kept["use_extra_bufts"] = kept["use_extra_bufts"] and base.use_extra_bufts
    if base.kv_type != "f16":
        kept["kv_type"] = base.kv_type
    return replace(base, **kept, tuned=True)


def _sound(name: str, value: object) -> bool:
    if name == "kv_type":
        return value in ("f16", "q8_0", "q4_0")
    return type(value) in _KEPT[name] and (type(value) is not int or value > 0)


def keep(path: Path, settings: Settings) -> None:
    """Keep the settings of a file. Written beside and renamed: another process may be reading. Raise StorageError."""
    values = {name: value for name, value in asdict(settings).items() if name in _KEPT}
    _write({**_read(), _key(path): values})


def forget(path: Path) -> bool:
    """Remove the kept settings of a file; return whether there were any. Raise StorageError."""
    known = _read()
    if known.pop(_key(path), None) is None:
        return False
    _write(known)
    return True


def _file() -> Path:
    return store.cache_dir() / "tuning.json"


def _read() -> dict[str, Any]:
    try:
        known = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}  # nothing measured, or not readable: the defaults are as good
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, Any]) -> None:
    store.make_folder(_file().parent)
    beside = _file().with_suffix(f".{os.getpid()}")
    try:
        beside.write_text(json.dumps(known, indent=1))
        beside.replace(_file())
    except OSError as exc:
        raise StorageError(f"the settings cannot be saved: {exc}", "check the cache folder: localqwen doctor") from exc


def _key(path: Path) -> str:
    """Return 16 hexadecimal digits that change with the file, with the build of llama.cpp, with the CPU and with how
    many cores this process may use: the best number of threads for eight is the worst for two."""
    from localqwen.engines.llama_cpp.probe import fingerprint
    from localqwen.machine import usable_cores

    status = path.stat()
    state = [path.name, status.st_size, fingerprint(), usable_cores()]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
