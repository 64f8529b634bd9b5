"""LoRA adapters in PEFT's layout, read, and merged into the weights while those are read: W + scale * B A, in float32.

The files are adapter_config.json and adapter_model.safetensors; a pickled adapter is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.floats import to_float32
from convert.sources.checkpoint import Checkpoint
from convert.sources.pieces import Matrix
from localqwen.errors import CheckpointError
from localqwen.formats import json_file
from localqwen.formats.dtypes import FLOATS
from localqwen.formats.safetensors import SafetensorsFile
from localqwen.formats.tensors import SourceTensor, TensorFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<part>A|B)\.weight")
_HINT = "train or export it as plain LoRA on this checkpoint"
#: Kinds of LoRA whose merge is another computation.
_OTHERS = ("use_dora", "modules_to_save", "layer_replication", "megatron_config", "trainable_token_indices")


@dataclass(frozen=True)
class LowRank:
    """A low-rank change of a weight: `up` (rows, rank), scale included, times `down` (rank, columns)."""

    up: NDArray[np.float32]
    down: NDArray[np.float32]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError unless the change fits the weight `name` of that shape."""
        if shape != (self.up.shape[0], self.down.shape[1]) or self.up.shape[1] != self.down.shape[0]:
            raise CheckpointError(
                f"the adapter's matrices for {name} are {list(self.up.shape)} and {list(self.down.shape)}, "
                f"the weight {list(shape)}",
                _HINT,
            )


@dataclass(frozen=True)
class _Adapted:
    """A weight and the change that is added to it."""

    base: TensorFile
    tensor: SourceTensor
    added: LowRank

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        before = to_float32(self.base.rows(self.tensor, first, count), self.tensor.dtype)
        return before + self.added.up[first : first + count] @ self.added.down

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        self.base.forget(self.tensor, rows)


def apply(checkpoint: Checkpoint, folder: Path | None) -> None:
    """Merge the adapter in `folder`, if not None, into the weights of a checkpoint.

    Raise CheckpointError if it does not fit.
    """
    if folder is None:
        return
    pairs = read(folder)
    for path, added in pairs.items():
        checkpoint.replace(f"{path}.weight", _adapted(checkpoint, f"{path}.weight", added))
    checkpoint.notes += (f"{folder.name} is merged into {len(pairs)} weights",)


def read(folder: Path) -> dict[str, LowRank]:
    """Return the changes of an adapter by the path of the weight, without `.weight`.

    Raise CheckpointError for an adapter that is not plain LoRA.
    """
    if not (folder / _WEIGHTS).is_file():
        pickled = " (pickle files can run code and are never loaded)" if any(folder.glob("*.bin")) else ""
        raise CheckpointError(
            f"{folder} has no {_WEIGHTS}{pickled}", "give the folder that PEFT's save_pretrained wrote"
        )
    config = json_file.read_object(folder / _CONFIG)
    _check(config)
    file = SafetensorsFile(folder / _WEIGHTS)
    try:
        pairs = _pairs(file)
    finally:
        file.close()
    return {path: LowRank(_scale(config, path, down.shape[0]) * up, down) for path, (up, down) in pairs.items()}


def _check(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"the adapter is {config.get('peft_type')!r}, not LORA", _HINT)
    if found := [name for name in _OTHERS if config.get(name)]:
        raise CheckpointError(f"the adapter uses {', '.join(found)}, which is not merged here", _HINT)
    if config.get("bias", "none") != "none" or config.get("fan_in_fan_out"):
        raise CheckpointError("the adapter trains biases or turned matrices, which no Qwen3 has", _HINT)


def _pairs(file: SafetensorsFile) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return B and A by the path of the weight. They are small: rank times rows, rank times columns."""
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, tensor in file.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.dtype not in FLOATS or len(tensor.shape) != 2:
            raise CheckpointError(
                f"the adapter has {name} ({tensor.dtype} {list(tensor.shape)}), which is not a LoRA matrix", _HINT
            )
        found.setdefault(match["path"], {})[match["part"]] = _numbers(file, tensor)
    if alone := [path for path, parts in found.items() if parts.keys() != {"A", "B"}]:
        raise CheckpointError(f"the adapter has only one of the two matrices of {alone[0]}", _HINT)
    return {path: (parts["B"], parts["A"]) for path, parts in found.items()}


def _numbers(file: SafetensorsFile, tensor: SourceTensor) -> NDArray[np.float32]:
    import numpy as np

    values = np.array(to_float32(file.rows(tensor, 0, tensor.rows), tensor.dtype))
    if not np.isfinite(values).all():
        raise CheckpointError(f"{tensor.name} of the adapter holds NaN or infinite numbers", _HINT)
    return values


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """Return alpha / rank, or alpha / sqrt(rank) with rsLoRA; PEFT's patterns may give some weights another alpha."""
    alpha = next(
        (value for key, value in (config.get("alpha_pattern") or {}).items() if re.search(rf"(^|\.){key}$", path)),
        config.get("lora_alpha"),
    )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or rank < 1:
        raise CheckpointError(f"the adapter's lora_alpha is {alpha!r} at rank {rank}", _HINT)
    return float(alpha) / (sqrt(rank) if config.get("use_rslora") else rank)


def _adapted(checkpoint: Checkpoint, name: str, added: LowRank) -> Matrix:
    base = checkpoint.tensors.get(name)
    if base is None or base.dtype not in FLOATS:
        raise not_there(name, "checkpoint")
    added.check(name, base.shape)
    merged = SourceTensor(name, "F32", base.shape, 0, 4 * base.shape[0] * base.shape[1])
    return merged, _Adapted(checkpoint.file_of(name), base, added)


def not_there(name: str, where: str) -> CheckpointError:
    """Return the error of an adapter that changes a weight which the checkpoint or model does not have."""
    return CheckpointError(f"the adapter changes {name}, which the {where} does not have", _HINT)
