"""llama.cpp's C library as this project uses it: loading it right, a model file, a sampler chain.

Imports only the low-level bindings of `llama_cpp`. Calls into the library return codes; here they become EngineError
with what the library logged.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from pathlib import Path
from typing import Any

from localqwen import machine
from localqwen.engines.engine import Sampling
from localqwen.engines.text_encoder import Tag, TextEncoder
from localqwen.errors import EngineError, EngineUnavailable
from localqwen.formats.yarn import Scaling

_ERROR_LEVEL = 4  # ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 continues the line before
_SPECIAL, _USER_DEFINED = 1 | 8, 16  # llama_token_attr (llama.h): unknown and control tokens
_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: the library draws one

#: Type of keys and values -> ggml_type (ggml.h).
KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}

_log: list[str] = []


@cache
def library() -> Any:
    """Return the bindings module, initialized, its log kept instead of printed. Raise EngineUnavailable."""
    machine.set_openmp_defaults()
    try:
        from llama_cpp import llama_cpp as bindings
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineUnavailable(
            f"llama.cpp does not load: {exc}", "pip install --force-reinstall llama-cpp-python"
        ) from exc
    bindings.llama_log_set(_keep_log(bindings), ctypes.c_void_p(0))
    bindings.llama_backend_init()
    return bindings


@cache
def _keep_log(bindings: Any) -> Any:
    """Return the callback that keeps errors. It must live as long as the library may log: the cache keeps it."""

    def keep(level: int, text: bytes, _data: object) -> None:
        if level == _ERROR_LEVEL:
            _log.append(text.decode(errors="replace").strip())
            del _log[:-20]

    return bindings.llama_log_callback(keep)


def last_errors() -> str:
    """Return the errors that the library logged since the last call, for a message."""
    text = "; ".join(line for line in _log if line)
    _log.clear()
    return text or "it gave no reason"


class ModelFile:
    """A GGUF file opened by llama.cpp: weights, vocabulary, metadata. Raises EngineError if it cannot be loaded."""

    def __init__(self, path: Path, *, use_extra_bufts: bool) -> None:
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.use_extra_bufts = use_extra_bufts
        params.n_gpu_layers = -1  # all of them, where this build has a GPU
        _log.clear()
        self.handle = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise EngineError(
                f"llama.cpp cannot load {path}: {last_errors()}", "check the file: localqwen show " + str(path)
            )
        self.vocab = self._lib.llama_model_get_vocab(self.handle)
        self.vocabulary_size: int = self._lib.llama_vocab_n_tokens(self.vocab)
        self._pieces: dict[int, bytes] = {}
        self._encoder = TextEncoder(self._tags(), self._tokenize_plain, self.piece, divisible=self._splits_as_qwen2())
        self._adapter: Any = None
        self._adapter_name = ""

    def adapt(self, path: Path) -> None:
        """Apply the LoRA adapter of a GGUF file, which is read now, in every context that is made from now on.

        Raise EngineError if it does not fit this model.
        """
        _log.clear()
        self._adapter = self._lib.llama_adapter_lora_init(self.handle, str(path).encode())
        if not self._adapter:
            raise EngineError(
                f"llama.cpp cannot apply the adapter: {last_errors()}", "use the model that it was trained on"
            )
        self._adapter_name = path.stem

    def apply_adapter(self, context: Any) -> None:
        """Apply the adapter to a new context, in full; do nothing without one."""
        if self._adapter is None:
            return
        handles = (self._lib.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        if self._lib.llama_set_adapters_lora(context, handles, 1, (ctypes.c_float * 1)(1.0)):
            raise EngineError(f"llama.cpp cannot apply the adapter: {last_errors()}")

    @property
    def labels(self) -> tuple[str, ...]:
        """What the weights compute beyond the plain model, in words: scaling by the file's metadata, an adapter."""
        architecture = self.metadata("general.architecture")
        kind = self.metadata(f"{architecture}.rope.scaling.type") or "none"
        factor = self.metadata(f"{architecture}.rope.scaling.factor") or "1"
        scaling = (Scaling(float(factor), 0, kind).label,) if kind != "none" else ()
        return scaling + ((f"adapter {self._adapter_name}",) if self._adapter_name else ())

    def metadata(self, key: str) -> str:
        """Return a metadata value as text, "" if the file has none."""
        buffer = ctypes.create_string_buffer(1 << 10)
        length = self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        if length >= len(buffer):
            buffer = ctypes.create_string_buffer(length + 1)
            self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else ""

    def special_tokens(self) -> dict[str, str]:
        """Return the text of tokens by the names that chat templates use; what is no UTF-8 is replaced. Qwen3 has no
        bos_token: its prompts begin without one."""
        ids = {
            "eos_token": self._lib.llama_vocab_eos(self.vocab),
            "pad_token": self._lib.llama_vocab_pad(self.vocab),
        }
        return {
            name: self._lib.llama_vocab_get_text(self.vocab, token).decode(errors="replace")
            for name, token in ids.items()
            if token >= 0
        }

    def stop_tokens(self) -> frozenset[int]:
        """Return the ids that end an answer: of `<|im_end|>`, which ends a turn, of `<|endoftext|>`, which ends a text
        (Qwen3's generation_config.json: eos_token_id), and of what the file declares."""
        ends = [self.tokenize(text, special=True) for text in ("<|im_end|>", "<|endoftext|>")]
        declared = self._lib.llama_vocab_eos(self.vocab)
        return frozenset([ids[0] for ids in ends if len(ids) == 1] + ([declared] if declared >= 0 else []))

    def tokenize(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        """Return the ids of the text's NFC form, as `Engine.tokenize` does."""
        return self._encoder.encode(text, special=special, limit=limit)

    def _tags(self) -> list[Tag]:
        """Return the tokens that llama.cpp looks for in a text before it encodes the rest."""
        attributes = map(partial(self._lib.llama_vocab_get_attr, self.vocab), range(self.vocabulary_size))
        tags = []
        for token, bits in enumerate(attributes):
            if bits & (_SPECIAL | _USER_DEFINED):
                text: bytes = self._lib.llama_vocab_get_text(self.vocab, token)
                tags.append(Tag(text.decode(errors="surrogateescape"), token, bool(bits & _SPECIAL)))
        return tags

    def _splits_as_qwen2(self) -> bool:
        return (self.metadata("tokenizer.ggml.model"), self.metadata("tokenizer.ggml.pre")) == ("gpt2", "qwen2")

    def _tokenize_plain(self, text: str) -> list[int]:
        """Return the ids of a text without tags. It takes llama.cpp a time that is quadratic in their number."""
        data = text.encode()
        size = len(data) + 1  # no token is shorter than a byte
        buffer = (ctypes.c_int32 * size)()
        count = self._lib.llama_tokenize(self.vocab, data, len(data), buffer, size, False, False)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(text):,} characters")
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; b"" for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            shown = self._is_taken_for_control(token)
            buffer = ctypes.create_string_buffer(256)
            length = self._lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, shown)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = self._lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, shown)
            known = self._pieces[token] = buffer.raw[:length]
        return known

    def _is_taken_for_control(self, token: int) -> bool:
        """Return whether llama.cpp takes ordinary text for a control token. It does so with what other models end with,
        whatever the file says: `</s>` is text to Qwen3, whose own control tokens are all written `<|…|>`."""
        if not self._lib.llama_vocab_is_control(self.vocab, token):
            return False
        text: bytes = self._lib.llama_vocab_get_text(self.vocab, token)
        return not (text.startswith(b"<|") and text.endswith(b"|>"))

    def close(self) -> None:
        """Free the memory. The contexts of this model must be closed before."""
        if self.handle:
            self._lib.llama_model_free(self.handle)
            self.handle = None


def sampler_chain(model: ModelFile, sampling: Sampling, *, window: int) -> Any:
    """Return llama.cpp's samplers in the order of `Sampling`. `window` is how many tokens the penalties count at most.

    top_k stands before the temperature here: dividing by it keeps the order of the logits, so the same tokens remain,
    and it need not be done for the whole vocabulary.
    """
    lib = library()
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    if sampling.penalizes:
        penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        added = lib.llama_sampler_init_penalties(model.vocabulary_size, window, *penalties)
        lib.llama_sampler_chain_add(chain, added)
    if sampling.temperature == 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(sampling.top_k))
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temperature))
    if sampling.top_p < 1:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(sampling.min_p, 1))
    seed = _RANDOM_SEED if sampling.seed is None else sampling.seed % _RANDOM_SEED
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
    return chain
