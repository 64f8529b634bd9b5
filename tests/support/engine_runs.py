"""How tests drive an engine: a question as token ids, runs until they end, the tokens of one answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localqwen import engines
from localqwen.engines.engine import Engine, Run, Sampling, TokenOutput
from localqwen.models import converted

GREEDY = Sampling(temperature=0)
ENGINES = ("llama.cpp", "mlx")


def demo_for(engine: str, quant: str = "bf16") -> Path:
    """The demo model in the form that the engine reads: its checkpoint, or that as a GGUF file of the same values."""
    checkpoint = converted.demo_checkpoint()
    return checkpoint if engine == "mlx" else converted.demo_conversion(quant).file()


def open_demo(engine: str, *, max_runs: int = 4, context_length: int = 512, kv_quant: int | None = None) -> Engine:
    return engines.open(
        demo_for(engine),
        engine=engine,
        context_length=context_length,
        threads=1,
        max_runs=max_runs,
        kv_quant=kv_quant,
    )


def chat(engine: Engine, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return engine.tokenize(text, special=True)


def collect(engine: Engine, *runs: Run) -> list[list[TokenOutput]]:
    """The pieces of each; others that are live go on beside them."""
    pieces: dict[Run, list[TokenOutput]] = {run: [] for run in runs}
    while not all(run.finished for run in runs):
        for run, piece in engine.step():
            if run in pieces:
                pieces[run].append(piece)
    return list(pieces.values())


def tokens_of(pieces: Sequence[TokenOutput]) -> list[int]:
    return [token for piece in pieces for token in piece.tokens]


def text_of(pieces: Sequence[TokenOutput]) -> str:
    return "".join(piece.text for piece in pieces)


def answer(engine: Engine, prompt: Sequence[int], sampling: Sampling = GREEDY, max_tokens: int = 60) -> list[int]:
    (pieces,) = collect(engine, engine.start(prompt, sampling, max_tokens=max_tokens))
    return tokens_of(pieces)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def evaluated(engine: Engine, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Log-probabilities behind each token, shape (tokens, vocabulary)."""
    return log_softmax(np.concatenate(list(engine.evaluate(tokens))))


def torch_logprobs(folder: Path, ids: list[int]) -> NDArray[np.float64]:
    """transformers in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return log_softmax(model(torch.tensor([ids])).logits[0].numpy())
