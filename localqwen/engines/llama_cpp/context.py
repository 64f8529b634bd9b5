"""A context of llama.cpp: keys and values of several sequences, and one batch that is filled and computed.

It knows positions and rows, not runs. A call that fails becomes EngineError with what the library logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localqwen.engines.llama_cpp.library import KV_TYPES, ModelFile, last_errors, library
from localqwen.engines.llama_cpp.settings import Settings
from localqwen.engines.llama_cpp.threads import watched
from localqwen.errors import EngineError
from localqwen.models import fit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Context:
    """Room for `cells` tokens, the same number for each of `sequences` sequences. Raises EngineError without memory.

    Each sequence has cells of its own: attention then reads those of one sequence and no other's, and a sequence
    computes the same bits alone as beside others. (Unified cells would share a prefix without a copy; but with eight
    conversations in them, 0.6B decoded at 36 instead of 45 tokens/s.) Sequences with neighbouring numbers are computed
    in one pass.
    """

    def __init__(self, model: ModelFile, settings: Settings, *, cells: int, sequences: int) -> None:
        self._lib, self._model, self.settings = library(), model, settings
        self.handle = self._open(cells, sequences)
        self._memory = self._lib.llama_get_memory(self.handle)
        self._batch = self._lib.llama_batch_init(settings.batch, 0, 1)
        self.threads = settings.threads
        most = max(settings.threads, settings.threads_for_prompts)
        self._watched = watched(most) if settings.adapt_threads else None

    def _open(self, cells: int, sequences: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = self.settings.batch
        params.n_seq_max = sequences
        params.n_threads = self.settings.threads
        params.n_threads_batch = self.settings.threads_for_prompts
        params.kv_unified = False
        params.type_k = params.type_v = KV_TYPES[self.settings.kv_type]
        if not self._flash_attention(cells):
            params.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
        if self.settings.yarn is not None:
            params.rope_scaling_type = 2  # LLAMA_ROPE_SCALING_TYPE_YARN; its other numbers stay those of the model
            params.rope_freq_scale = 1 / self.settings.yarn.factor
            params.yarn_orig_ctx = self.settings.yarn.original
        params.no_perf = True
        context = self._lib.llama_init_from_model(self._model.handle, params)
        if not context:
            raise EngineError(
                f"llama.cpp cannot make a context of {cells:,} tokens: {last_errors()}",
                "ask for a smaller one with --ctx",
            )
        self._model.apply_adapter(context)
        return context

    def _flash_attention(self, cells: int) -> bool:
        """Return whether to use flash attention.

        On a CPU it decodes slower and rounds in 16 bit, differently for every way to cut a prompt. Without it a prompt
        gives the same logits however it was sliced and whatever of it was cached, so a seed repeats its answer
        (benchmarks/README.md has the numbers). A GPU has other kernels, long contexts need the memory that it saves,
        and llama.cpp reads quantized values with nothing else.
        """
        if self.settings.kv_type != "f16":
            return True
        if self.settings.flash_attention is not None:
            return self.settings.flash_attention
        affordable = fit.scores_bytes(cells, self._lib.llama_model_n_head(self._model.handle)) > 0
        return not affordable or bool(self._lib.llama_supports_gpu_offload())

    def set_row(self, row: int, token: int, position: int, sequence: int, *, output: bool) -> None:
        """Write one token of the batch; with `output`, its logits are computed too."""
        batch = self._batch
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = output

    def compute(self, rows: int) -> None:
        """Compute the first `rows` tokens of the batch. Raise EngineError if llama.cpp fails."""
        self._adapt_threads()
        self._batch.n_tokens = rows
        code = self._lib.llama_decode(self.handle, self._batch)
        if code:
            raise EngineError(f"llama.cpp failed on a batch of {rows} tokens (code {code}): {last_errors()}")

    def _adapt_threads(self) -> None:
        """Compute with the threads that other programs leave a core each."""
        if self._watched is not None:
            free, settings = self._watched.now(), self.settings
            threads = min(free, settings.threads)
            if threads != self.threads:
                self._lib.llama_set_n_threads(self.handle, threads, min(free, settings.threads_for_prompts))
                self.threads = threads

    def logits(self, row: int) -> NDArray[np.float32]:
        """Return the library's own memory for a row of the last batch, shape (vocabulary,), valid until the next one.
        The samplers read what is written there."""
        import numpy as np

        pointer = self._lib.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(pointer, shape=(self._model.vocabulary_size,))

    def sample(self, sampler: Any, row: int) -> int:
        """Return the token that a sampler chain draws from a row of the last batch."""
        token: int = self._lib.llama_sampler_sample(sampler, self.handle, row)
        return token

    def truncate(self, sequence: int, length: int) -> None:
        """Forget a sequence behind its first `length` positions."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def share(self, donor: int, sequence: int, length: int) -> None:
        """Make a sequence the first `length` positions of the donor. llama.cpp copies all cells of the donor."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._lib.llama_memory_seq_cp(self._memory, donor, sequence, -1, -1)
        self.truncate(sequence, length)

    def clear(self) -> None:
        """Forget all sequences."""
        self._lib.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        """Free the memory. Any other call after this one ends the process."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self.handle)
