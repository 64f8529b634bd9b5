"""A checkpoint folder in the official layout: its JSON files, and its tensors, in whichever shards they are.

However a tensor is stored, it has its official name here. The module knows nothing of Qwen3. Nothing is unpickled:
a folder with only `.bin` or `.pt` weights is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convert.mlx import storage as mlx_storage
from convert.sources import quantized
from convert.sources.pieces import Matrix, Piece
from localqwen.errors import CheckpointError
from localqwen.formats import json_file, qwen3_config
from localqwen.formats.safetensors import SafetensorsFile
from localqwen.formats.tensors import SourceTensor, TensorFile

#: What an engine or a person needs beside the weights; each is copied byte for byte where the checkpoint has it.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "generation_config.json", "LICENSE",
)  # fmt: skip
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Checkpoint:
    """An open folder: `config`, `generation_config`, `tensors` by name. Use with `with`; methods raise CheckpointError.

    `notes` are sentences that a user of a conversion should read. `config` does not say how tensors are stored.
    """

    def __init__(self, folder: Path, *, mlx: bool = False) -> None:
        """Open a folder; with `mlx` also one for MLX, whose weights are decoded."""
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise CheckpointError(f"{folder} {what}", "give the folder that holds config.json and model.safetensors")
        self.folder = folder
        self.notes: tuple[str, ...] = ()
        self._files: list[SafetensorsFile] = []
        self._home: dict[str, TensorFile] = {}
        self._tensors: dict[str, SourceTensor] = {}
        try:
            self.config = self.json("config.json")
            self.generation_config = self.json("generation_config.json", required=False)
            self._open_weights()
            self._decode(mlx=mlx)
        except BaseException as exc:
            self.close()
            if isinstance(exc, OSError):
                raise CheckpointError(f"{folder} cannot be read: {exc}", "check its permissions") from exc
            raise

    @property
    def tensors(self) -> dict[str, SourceTensor]:
        """The tensors by their official names."""
        return self._tensors

    @property
    def weight_files(self) -> list[Path]:
        """The paths of all weight files."""
        return [file.path for file in self._files]

    def files(self, names: Iterable[str]) -> list[Path]:
        """Return the files `names` that exist, and all weight files."""
        return [*(path for name in names if (path := self.folder / name).is_file()), *self.weight_files]

    def file_of(self, name: str) -> TensorFile:
        """Return where the rows of a tensor come from."""
        return self._home[name]

    def replace(self, name: str, matrix: Matrix) -> None:
        """Replace the tensor `name` and the source of its rows."""
        self._tensors[name], self._home[name] = matrix

    def stretch(self, factor: int | None) -> None:
        """Stretch the context by YaRN, `factor` times if not None. Raise UsageError or ConversionError."""
        if factor is None:
            return
        self.config, scaling = qwen3_config.stretched(self.config, factor)
        context, trained = factor * scaling.original, scaling.original
        self.notes += (
            f"stretched to {context:,} tokens: texts shorter than {trained:,} are understood a little worse",
        )

    def json(self, name: str, *, required: bool = True) -> dict[str, Any]:
        """Return the JSON object in the file `name`; {} if it is missing and not required."""
        text = self.text(name, required=required)
        return {} if text is None else json_file.parse_object(self.folder / name, text)

    def text(self, name: str, *, required: bool) -> str | None:
        """Return the text of the file `name`; None if it is missing and not required."""
        content = self.content(name, required=required)
        try:
            return None if content is None else content.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise CheckpointError(f"{self.folder / name} cannot be read: {exc}", "download this file again") from exc

    def content(self, name: str, *, required: bool = False) -> bytes | None:
        """Return the bytes of the file `name`; None if it is missing and not required."""
        path = self.folder / name
        if not required and not path.exists():
            return None
        try:
            size = path.stat().st_size
            if size > json_file.MAX_BYTES:
                raise CheckpointError(
                    f"{path} has {size:,} bytes, more than {json_file.MAX_BYTES:,}", "download this file again"
                )
            return path.read_bytes()
        except FileNotFoundError as exc:
            raise CheckpointError(f"{self.folder} has no {name}", self._missing_hint()) from exc
        except OSError as exc:
            raise CheckpointError(f"{path} cannot be read: {exc}", "download this file again") from exc

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _missing_hint(self) -> str:
        return "give a folder in the official layout: config.json, tokenizer.json, model.safetensors"

    def _open_weights(self) -> None:
        if (self.folder / _SINGLE).exists():
            self._take(self._open(_SINGLE))
        elif (self.folder / _INDEX).exists():
            self._open_shards()
        else:
            self._refuse_other_weights()

    def _take(self, file: SafetensorsFile) -> None:
        self._tensors |= file.tensors
        self._home |= dict.fromkeys(file.tensors, file)

    def _decode(self, *, mlx: bool) -> None:
        """Replace quantized tensors by matrices that are decoded while they are read."""
        if "quantization" in self.config or any(".switch_mlp." in name for name in self._tensors):
            if mlx:
                self._decode_mlx()
                return
            raise CheckpointError(
                f"{self.folder} is a folder for MLX, not an official checkpoint",
                f"localqwen convert {self.folder} --dequantize writes one; the original checkpoint is better",
            )
        settings = self.config.pop("quantization_config", None)
        if not settings:
            return
        self._give(quantized.decoded(settings, self._pieces()))
        self.notes += (
            f"the checkpoint is quantized ({settings['quant_method']}): the original one gives a better result",
        )

    def _decode_mlx(self) -> None:
        quantization = self.config.pop("quantization", None)
        self.config.pop("quantization_config", None)
        self._give(mlx_storage.decoded(quantization, self._pieces()))

    def _pieces(self) -> dict[str, Piece]:
        return {name: Piece(self._home[name], tensor) for name, tensor in self._tensors.items()}

    def _give(self, matrices: dict[str, Matrix]) -> None:
        self._tensors = {name: tensor for name, (tensor, _) in matrices.items()}
        self._home = {name: file for name, (_, file) in matrices.items()}

    def _open(self, name: str) -> SafetensorsFile:
        file = SafetensorsFile(self.folder / name)
        self._files.append(file)
        return file

    def _open_shards(self) -> None:
        shards = self._shard_names()
        for shard, names in shards.items():
            file = self._open(shard)
            self._take(file)
            if disputed := sorted(names ^ file.tensors.keys()):
                raise CheckpointError(
                    f"{_INDEX} and the header of {shard} disagree about {_few(disputed)}",
                    "download both files again, from the same revision",
                )

    def _shard_names(self) -> dict[str, set[str]]:
        """Return the tensors that the index places in each file. A file name may not lead out of the folder."""
        weight_map = self.json(_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise CheckpointError(f"{self.folder / _INDEX} has no weight_map of names to files", "download it again")
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(shard, set()).add(name)
        for shard in shards:
            if not shard.endswith(".safetensors") or shard != Path(shard).name or "\\" in shard or "\0" in shard:
                raise CheckpointError(
                    f"{_INDEX} names {shard!r}, which is no .safetensors file of the folder itself",
                    "do not trust this checkpoint; download it again from its publisher",
                )
        missing = sorted(shard for shard in shards if not (self.folder / shard).is_file())
        if missing:
            raise CheckpointError(
                f"{len(missing)} of {len(shards)} files of {self.folder} are missing: {_few(missing)}",
                "finish the download",
            )
        return shards

    def _refuse_other_weights(self) -> None:
        pickles = sorted(path.name for path in self.folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        if pickles:
            raise CheckpointError(
                f"{self.folder} has its weights in {_few(pickles)}: pickle files can run code and are never loaded",
                "get the safetensors version of this checkpoint",
            )
        raise CheckpointError(f"{self.folder} has no {_SINGLE} and no {_INDEX}", self._missing_hint())


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
