"""The measurement of an importance matrix: a model reads a text, and what flows into each matrix is summed.

llama.cpp computes. A text is cut into chunks of `CHUNK` tokens that do not see each other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.imatrix import file as imatrix_file
from convert.imatrix.collector import Collector, base_library
from convert.output import file as output_file
from localqwen.errors import ConversionError, EngineUnavailable, UsageError
from localqwen.machine import set_openmp_defaults, usable_cores

CHUNK = 512
_HINT = "check the file: localqwen show"


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
    """Write the importance matrix of the GGUF file `model` over the file `text` to `out`.

    Return how many chunks were read and how many matrices were measured. Read at most `chunks` chunks if not None;
    call `progress` with the chunks done and their total. Raise UsageError for a text that is too short,
    ConversionError, OutputError or EngineUnavailable.
    """
    output_file.check(out, force=force)
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConversionError(f"{text} cannot be read: {exc}", "give a text in UTF-8") from exc
    with _opened(model, threads or usable_cores()) as reader:
        tokens = reader.tokens(content)
        count = len(tokens) // CHUNK if chunks is None else min(chunks, len(tokens) // CHUNK)
        if count < 1:
            raise UsageError(f"{text} has {len(tokens)} tokens, fewer than {CHUNK}", "give a longer text")
        for number in range(count):
            reader.read(tokens[number * CHUNK : (number + 1) * CHUNK])
            if progress is not None:
                progress(number + 1, count)
    sums = reader.collector.sums
    imatrix_file.write(out, sums, text.name, count, CHUNK, force=force)
    return count, len(sums)


@dataclass(frozen=True)
class _Reader:
    """A model loaded by llama.cpp whose inputs a collector sums."""

    path: Path
    bindings: Any
    handle: Any
    context: Any
    collector: Collector

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text. Raise ConversionError if llama.cpp refuses it."""
        data, vocab = text.encode(), self.bindings.llama_model_get_vocab(self.handle)
        ids = (self.bindings.llama_token * (len(data) + 8))()
        count = self.bindings.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)
        if count < 0:
            raise ConversionError("llama.cpp cannot tokenize the text", "give a text in UTF-8")
        return list(ids[:count])

    def read(self, tokens: Sequence[int]) -> None:
        """Compute a chunk from an empty context. Raise what the collector raised, or ConversionError."""
        self.bindings.llama_memory_clear(self.bindings.llama_get_memory(self.context), True)
        ids = (self.bindings.llama_token * len(tokens))(*tokens)
        code = self.bindings.llama_decode(self.context, self.bindings.llama_batch_get_one(ids, len(ids)))
        if self.collector.failure is not None:
            raise self.collector.failure
        if code:
            raise ConversionError(f"llama.cpp failed on {self.path} with code {code}", f"{_HINT} {self.path}")


@contextmanager
def _opened(path: Path, threads: int) -> Iterator[_Reader]:
    """Load the model for the body. Raise EngineUnavailable or ConversionError."""
    bindings = _bindings()
    collector = Collector(base_library())
    callback = bindings.ggml_backend_sched_eval_callback(collector)
    with _silenced(bindings):
        handle = _load(bindings, path)
        try:
            context = bindings.llama_init_from_model(handle, _settings(bindings, callback, threads))
            if not context:
                raise ConversionError(f"llama.cpp makes no context for {path}", f"{_HINT} {path}")
            try:
                yield _Reader(path, bindings, handle, context, collector)
            finally:
                bindings.llama_free(context)
        finally:
            bindings.llama_model_free(handle)
            del callback  # the library called it until now


def _bindings() -> Any:
    set_openmp_defaults()
    try:
        from llama_cpp import llama_cpp as bindings
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineUnavailable(f"llama.cpp does not load: {exc}", "pip install llama-cpp-python") from exc
    return bindings


@contextmanager
def _silenced(bindings: Any) -> Iterator[None]:
    """Keep llama.cpp from logging inside the body."""
    silent = bindings.llama_log_callback(lambda *_: None)
    bindings.llama_log_set(silent, ctypes.c_void_p(0))
    try:
        yield
    finally:
        bindings.llama_log_set(bindings.llama_log_callback(), ctypes.c_void_p(0))
        del silent  # the library called it until now


def _load(bindings: Any, path: Path) -> Any:
    bindings.llama_backend_init()
    loading = bindings.llama_model_default_params()
    loading.use_extra_bufts = False  # repacked weights lose nothing here, and on some processors they crash
    handle = bindings.llama_model_load_from_file(str(path).encode(), loading)
    if not handle:
        raise ConversionError(f"llama.cpp cannot load {path}", f"{_HINT} {path}")
    return handle


def _settings(bindings: Any, callback: Any, threads: int) -> Any:
    settings = bindings.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = CHUNK
    settings.n_threads = settings.n_threads_batch = threads
    settings.cb_eval, settings.embeddings = callback, True  # every token is an output, without its logits
    return settings
