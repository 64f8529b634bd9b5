"""Which columns of a model's matrices matter: it reads a text, and what flows into each matrix is squared and summed.

llama.cpp computes; its callback for every step of the computation shows the inputs (tools/imatrix does the same). Texts
are cut into chunks of `CHUNK` tokens that do not see each other. The result is an importance matrix as llama.cpp's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert import ggml, target
from convert.gguf_file import StoredTensor, entries, head, padding
from localqwen.errors import ConversionError, EngineUnavailable, UsageError
from localqwen.formats.dtypes import F32
from localqwen.machine import set_openmp_defaults, usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 512
_FEWEST_ROWS = 16  # as in llama.cpp: smaller products are not of the text
_HINT = "check the file: localqwen show"


class _Tensor(ctypes.Structure):
    """ggml.h: ggml_tensor, up to its name."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


@dataclass
class _Sums:
    """Per expert (one, if it is no stack): squares of the inputs summed by column, and how many rows they were."""

    squares: NDArray[np.float64]
    rows: NDArray[np.int64]


@dataclass
class _Collector:
    """Called by llama.cpp before (`ask`) and after every step. An exception here would be lost, so it is kept."""

    library: Any
    sums: dict[str, _Sums] = field(default_factory=dict)
    failure: BaseException | None = None

    def __call__(self, address: int, ask: bool, _data: object) -> bool:
        try:
            step = _Tensor.from_address(address)
            kind = self.library.ggml_op_name(step.op).decode()
            if kind not in ("MUL_MAT", "MUL_MAT_ID"):
                return not ask
            weight, values = step.src[0].contents, step.src[1].contents
            wanted = weight.name.startswith(b"blk.") and values.type == F32.number
            if kind == "MUL_MAT":
                wanted = wanted and values.ne[1] >= _FEWEST_ROWS
            if ask or not wanted:
                return bool(wanted) if ask else True
            name = weight.name.decode().partition("#")[0]
            (self._dense if kind == "MUL_MAT" else self._experts)(name, step, weight.ne[2])
            return True
        except BaseException as exc:
            self.failure = exc
            return False

    def _dense(self, name: str, step: _Tensor, _: int) -> None:
        import numpy as np

        values = self._numbers(step.src[1], np.dtype(np.float32))
        rows = values.reshape(-1, values.shape[-1])
        self._add(name, 1, 0, rows)

    def _experts(self, name: str, step: _Tensor, experts: int) -> None:
        """`values` are (tokens, one or each chosen, columns), `chosen` the experts of each token."""
        import numpy as np

        values = self._numbers(step.src[1], np.dtype(np.float32))[0]
        chosen = self._numbers(step.src[2], np.dtype(np.int32))[0, 0]
        for place in range(chosen.shape[1]):
            inputs = values[:, place % values.shape[1]]
            for expert in np.unique(chosen[:, place]):
                self._add(name, experts, int(expert), inputs[chosen[:, place] == expert])

    def _numbers(self, tensor: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A copy, ggml's dimensions turned round, whatever memory it lies in and however it is strided."""
        import numpy as np

        shape, strides = tuple(tensor.contents.ne)[::-1], tuple(tensor.contents.nb)[::-1]
        size = dtype.itemsize + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
        data = np.empty(size, np.uint8)
        self.library.ggml_backend_tensor_get(tensor, data.ctypes.data, 0, size)
        return np.ndarray(shape, dtype, data, 0, strides)

    def _add(self, name: str, experts: int, expert: int, rows: NDArray[Any]) -> None:
        import numpy as np

        if name not in self.sums:
            self.sums[name] = _Sums(np.zeros((experts, rows.shape[-1])), np.zeros(experts, np.int64))
        self.sums[name].squares[expert] += np.square(rows, dtype=np.float64).sum(0)
        self.sums[name].rows[expert] += len(rows)


def measure(
    model: Path,
    text: Path,
    out: Path,
    *,
    force: bool = False,
    chunks: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Writes the importance matrix of the GGUF file `model` over `text` to `out`; gives chunks and matrices counted.

    At most `chunks` of the text if not None; `progress` is told how many are done, of how many. Raises UsageError for a
    text too short, ConversionError, OutputError, EngineUnavailable.
    """
    target.check(out, force=force)
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConversionError(f"{text} cannot be read: {exc}", "give a text in UTF-8") from exc
    with _opened(model, threads or usable_cores()) as (bindings, handle, context, collector):
        tokens = _tokens(bindings, handle, content)
        count = len(tokens) // CHUNK if chunks is None else min(chunks, len(tokens) // CHUNK)
        if count < 1:
            raise UsageError(f"{text} has {len(tokens)} tokens, fewer than {CHUNK}", "give a longer text")
        for number in range(count):
            _read(bindings, context, tokens[number * CHUNK : (number + 1) * CHUNK], collector, model)
            if progress is not None:
                progress(number + 1, count)
    _write(out, collector.sums, text.name, count, force=force)
    return count, len(collector.sums)


@contextmanager
def _opened(model: Path, threads: int) -> Iterator[tuple[Any, Any, Any, _Collector]]:
    set_openmp_defaults()
    try:
        from llama_cpp import llama_cpp as bindings
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineUnavailable(f"llama.cpp does not load: {exc}", "pip install llama-cpp-python") from exc
    collector = _Collector(_base_library())
    silent, callback = (
        bindings.llama_log_callback(lambda *_: None),
        bindings.ggml_backend_sched_eval_callback(collector),
    )
    bindings.llama_log_set(silent, ctypes.c_void_p(0))
    bindings.llama_backend_init()
    loading = bindings.llama_model_default_params()
    loading.use_extra_bufts = False  # repacked weights lose nothing here, and on some processors they crash
    handle = bindings.llama_model_load_from_file(str(model).encode(), loading)
    if not handle:
        raise ConversionError(f"llama.cpp cannot load {model}", f"{_HINT} {model}")
    settings = bindings.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = CHUNK
    settings.n_threads = settings.n_threads_batch = threads
    settings.cb_eval, settings.embeddings = callback, True  # every token is an output, without its logits
    context = bindings.llama_init_from_model(handle, settings)
    try:
        if not context:
            raise ConversionError(f"llama.cpp makes no context for {model}", f"{_HINT} {model}")
        yield bindings, handle, context, collector
    finally:
        if context:
            bindings.llama_free(context)
        bindings.llama_model_free(handle)
        bindings.llama_log_set(bindings.llama_log_callback(), ctypes.c_void_p(0))
        del callback, silent  # the library called them until now


def _base_library() -> Any:
    library = ggml.library()
    library.ggml_op_name.restype, library.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = [
        ctypes.POINTER(_Tensor), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
    ]  # fmt: skip
    return library


def _tokens(bindings: Any, handle: Any, text: str) -> list[int]:
    data, vocab = text.encode(), bindings.llama_model_get_vocab(handle)
    ids = (bindings.llama_token * (len(data) + 8))()
    count = bindings.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)
    if count < 0:
        raise ConversionError("llama.cpp cannot tokenize the text", "give a text in UTF-8")
    return list(ids[:count])


def _read(bindings: Any, context: Any, tokens: list[int], collector: _Collector, model: Path) -> None:
    bindings.llama_memory_clear(bindings.llama_get_memory(context), True)
    batch = bindings.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = True
        code = bindings.llama_decode(context, batch)
    finally:
        bindings.llama_batch_free(batch)
    if collector.failure is not None:
        raise collector.failure
    if code:
        raise ConversionError(f"llama.cpp failed on {model} with code {code}", f"{_HINT} {model}")


def _write(out: Path, sums: dict[str, _Sums], dataset: str, chunks: int, *, force: bool) -> None:
    import numpy as np

    keys = entries(
        {
            "general.type": "imatrix",
            "imatrix.datasets": [dataset],
            "imatrix.chunk_count": chunks,
            "imatrix.chunk_size": CHUNK,
        }
    )
    arrays: dict[str, NDArray[Any]] = {}
    for name, found in sorted(sums.items()):
        arrays[f"{name}.in_sum2"] = found.squares.astype(np.float32)
        arrays[f"{name}.counts"] = found.rows.astype(np.float32)[:, None]
        if not np.isfinite(arrays[f"{name}.in_sum2"]).all():
            raise ConversionError(f"the inputs of {name} are not finite", "check the model: localqwen verify")
    begin = head(keys, [StoredTensor(name, array.shape, F32) for name, array in arrays.items()])
    size = len(begin) + sum(array.nbytes + padding(array.nbytes) for array in arrays.values())
    with target.writing(out, size=size, force=force) as file:
        target.write(file, memoryview(begin))
        for array in arrays.values():
            target.write(file, memoryview(array.tobytes() + bytes(padding(array.nbytes))))
