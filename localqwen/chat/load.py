"""The one way to open a model: from a resolved name and LoadOptions to an engine, and to a model that answers."""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from localqwen import engines
from localqwen.chat.load_options import LoadOptions
from localqwen.chat.local import QUEUE, LocalChatModel
from localqwen.chat.model_info import LoadedModel, ModelInfo, info_of
from localqwen.chat.sampling import Presets
from localqwen.engines import selection
from localqwen.engines.engine import Engine
from localqwen.models.resolve import ResolvedModel

__all__ = ["LoadOptions", "chat_model", "info_for", "load", "open_engine", "open_model"]


def open_engine(model: ResolvedModel, options: LoadOptions) -> Engine:
    """Open a model for who works with tokens. Raise NotPulled, UsageError, EngineError, ConversionError."""
    return engines.open_resolved(model, **options.for_engine)


def open_model(model: ResolvedModel, options: LoadOptions, *, name: str = "") -> LoadedModel:
    """Open a model for who works with messages: with its template, thinking mode and sampling.

    `name` is what answers and messages call it, else how it is displayed. Raise what `open_engine` does, EngineError
    where it has no chat template.
    """
    began = time.perf_counter()
    engine = open_engine(model, options)
    with ExitStack() as undo:
        undo.callback(engine.close)
        load_ms = (time.perf_counter() - began) * 1000
        loaded = LoadedModel(engine, info_for(model, engine, name=name, load_ms=load_ms))
        undo.pop_all()
    return loaded


def info_for(model: ResolvedModel, engine: Engine, *, name: str = "", load_ms: float = 0) -> ModelInfo:
    """Return what an answer needs to know of a resolved model that `engine` has open.

    Raise EngineError where it has no chat template.
    """
    return info_of(engine, name or model.display, load_ms=load_ms, **_of_entry(model))


def _of_entry(model: ResolvedModel) -> dict[str, Any]:
    """What the entry of a model says of its answers: how it thinks, and how it is sampled."""
    return {"thinking_mode": model.thinking, "presets": Presets.of(model.sampling)}


def chat_model(model: ResolvedModel, options: LoadOptions, *, queue: int = QUEUE) -> LocalChatModel:
    """Open a resolved model in this process and make it answer. Up to `queue` answers wait for a free run.

    Raise what `open_model` does.
    """
    opener = functools.partial(open_engine, model, options)
    return LocalChatModel(opener, model.display, queue=queue, **_of_entry(model))


def load(
    name: str | Path,
    *,
    engine: str | None = None,
    context_length: int | None = None,
    queue: int = QUEUE,
    **options: Any,
) -> LocalChatModel:
    """Open a model by name or path and make it answer. The options are the fields of LoadOptions: `parallel` answers
    run at once, and up to `queue` more wait.

    Raise ModelNotFound, UsageError, EngineUnavailable, EngineError, ConversionError.
    """
    chosen = LoadOptions(engine=engine, context_length=context_length, **options)
    chosen.check_adapter()
    return chat_model(selection.resolve(name, engine), chosen, queue=queue)
