"""LoRA adapters for engines that apply them at run time: one file with the matrices under the engine's own names.

GGUF: what llama.cpp's `llama_adapter_lora_init` reads (llama-adapter.cpp), NAME.lora_a and NAME.lora_b in float32.
safetensors: the matrices of mlx_lm's tuner (tuner/lora.py), PATH.lora_a and PATH.lora_b. The second matrix of each pair
includes the scale, so that PEFT's patterns need no place of their own. The matrices of experts are stacked, and padded
with zeros if their ranks differ or an expert has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.gguf import architecture as gguf_architecture
from convert.gguf import head as gguf_head
from convert.gguf.head import StoredTensor, padding
from convert.mlx import layout as mlx_layout
from convert.output import file as output_file
from convert.output import shards
from convert.output.shards import Stored
from convert.sources import adapters
from convert.sources.adapters import LowRank
from localqwen.errors import CheckpointError
from localqwen.formats import qwen3_config
from localqwen.formats.dtypes import F32
from localqwen.formats.gguf_reader import MAGIC
from localqwen.formats.qwen3_config import ARCHITECTURES, MAX_EXPERTS, MAX_LAYERS, Qwen3Config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What shapes the matrices, by GGUF's keys without the architecture; the last two are for mixtures of experts.
GGUF_KEYS = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "expert_count", "expert_feed_forward_length",
)  # fmt: skip
_HEAD = "lm_head"


@dataclass(frozen=True)
class _Target:
    """A weight of the engine: its name there, the names in the checkpoint, and the shape of each of these."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool


def adapter_for_llama_cpp(folder: Path, out: Path, *, architecture: str, sizes: Mapping[str, int]) -> None:
    """Write the LoRA adapter in `folder`, in PEFT's layout, as the GGUF file `out` that llama.cpp applies.

    `sizes` are the model's, by GGUF_KEYS. llama.cpp itself checks the shape of an output matrix. Raise CheckpointError
    if the adapter is not plain LoRA or does not fit the model, and OutputError.
    """
    pairs = adapters.read(folder)
    head = pairs[_HEAD].up.shape[0] if _HEAD in pairs else 1
    targets = [
        _Target(tensor.name, tensor.sources, tensor.shape, tensor.stacked)
        for tensor in gguf_architecture.tensors(_config(architecture, sizes, head))
        if tensor.name != "token_embd.weight"
    ]
    matrices = {
        f"{target.name}.lora_{part}": values
        for target, (down, up) in _gathered(pairs, targets).items()
        for part, values in (("a", down), ("b", up))
    }
    metadata: gguf_head.Metadata = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "general.name": folder.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,  # llama.cpp then scales by nothing: the scales are in the matrices
    }
    stored = [StoredTensor(name, values.shape, F32) for name, values in matrices.items()]
    _write(out, gguf_head.head(gguf_head.entries(metadata), stored), [*matrices.values()])


def adapter_for_mlx(folder: Path, out: Path, *, config: Mapping[str, Any]) -> None:
    """Write the LoRA adapter in `folder`, in PEFT's layout, as the safetensors file `out` for the MLX engine.

    `config` is the model's config.json. Raise CheckpointError if the adapter is not plain LoRA or does not fit the
    model, and OutputError.
    """
    targets = [
        _Target(weight.path, weight.sources, weight.shape[-2:], len(weight.shape) == 3)
        for weight in mlx_layout.weights(qwen3_config.parse(config))
        if weight.path != "model.embed_tokens"
    ]
    matrices = {}
    for wanted, (down, up) in _gathered(adapters.read(folder), targets).items():
        # mlx_lm multiplies a row by the matrices of a plain layer as they are, and by those of experts transposed.
        matrices[f"{wanted.name}.lora_a"] = down if wanted.stacked else down.T
        matrices[f"{wanted.name}.lora_b"] = up if wanted.stacked else up.T
    stored = [Stored(name, "F32", values.shape) for name, values in matrices.items()]
    _write(out, shards.header(stored), [*matrices.values()])


def _config(architecture: str, sizes: Mapping[str, int], vocabulary: int) -> Qwen3Config:
    """Return a config with the sizes that shape tensors; all other fields are placeholders."""
    official = {ours: theirs for theirs, ours in ARCHITECTURES.items()}
    if architecture not in official:
        raise CheckpointError(f"adapters are applied to Qwen3, this model is {architecture}", "use a Qwen3 model")
    layers, hidden, feed_forward, heads, kv_heads, head_size, experts, expert_feed_forward = (
        sizes.get(key, 0) for key in GGUF_KEYS
    )
    if layers > MAX_LAYERS or experts > MAX_EXPERTS:
        raise CheckpointError(f"the model says that it has {layers:,} layers, {experts:,} experts", "download it again")
    return Qwen3Config(
        official[architecture], layers, hidden, feed_forward, heads, kv_heads, head_size, vocabulary,
        context=0, norm_epsilon=0.0, rope_theta=0.0, tied=False,
        experts=experts, expert_feed_forward=expert_feed_forward,
    )  # fmt: skip


def _gathered(
    pairs: Mapping[str, LowRank], targets: Sequence[_Target]
) -> dict[_Target, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return the matrices (down, up) of every weight that an adapter changes; of a stack, (expert, …)."""
    home = {source.removesuffix(".weight"): target for target in targets for source in target.sources}
    for path, pair in pairs.items():
        if path not in home:
            raise adapters.not_there(f"{path}.weight", "model")
        pair.check(f"{path}.weight", home[path].shape)
    changed = dict.fromkeys(home[path] for path in pairs)
    return {target: _stacked(target, pairs) if target.stacked else _plain(target, pairs) for target in changed}


def _plain(target: _Target, pairs: Mapping[str, LowRank]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    pair = pairs[target.sources[0].removesuffix(".weight")]
    return pair.down, pair.up


def _stacked(target: _Target, pairs: Mapping[str, LowRank]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import numpy as np

    found = [pairs.get(source.removesuffix(".weight")) for source in target.sources]
    rank = max(pair.down.shape[0] for pair in found if pair is not None)
    rows, columns = target.shape
    down = np.zeros((len(found), rank, columns), np.float32)
    up = np.zeros((len(found), rows, rank), np.float32)
    for expert, pair in enumerate(found):
        if pair is not None:
            down[expert, : pair.down.shape[0]] = pair.down
            up[expert, :, : pair.up.shape[1]] = pair.up
    return down, up


def _write(out: Path, head: bytes, matrices: Sequence[NDArray[np.float32]]) -> None:
    """Write a head and the numbers after it. GGUF pads each matrix; safetensors of four-byte numbers needs none."""
    import numpy as np

    padded = head.startswith(MAGIC)
    size = len(head) + sum(values.nbytes + padding(values.nbytes) for values in matrices)
    with output_file.writing(out, size=size, force=True) as file:
        file.write(head)
        for values in matrices:
            file.write(np.ascontiguousarray(values, "<f4").data.cast("B"))
            if padded:
                file.write(bytes(padding(values.nbytes)))
