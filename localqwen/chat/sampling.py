"""Which sampling an answer gets: the makers' preset of its mode, then the user's overrides."""

from __future__ import annotations

from collections.abc import Mapping

from localqwen.chat.messages import Overrides, Request
from localqwen.engines import Sampling

#: Qwen3 model cards, "Best Practices": one set for thinking, one for not thinking.
THINKING = Overrides(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
NOT_THINKING = Overrides(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)

GREEDY_WARNING = "greedy sampling while thinking can repeat without end (the makers advise temperature 0.6)"


def preset(thinking: bool) -> Overrides:
    return THINKING if thinking else NOT_THINKING


def chosen(request: Request, *, thinking: bool, phase: Overrides) -> Mapping[str, float | int]:
    """Preset < the request's sampling < its overrides for the phase; by name."""
    return phase.over(request.sampling).over(preset(thinking)).set_values()


def sampling_for(request: Request, *, thinking: bool, phase: Overrides) -> Sampling:
    """What is chosen, as the engines take it. Raises UsageError on a value out of range."""
    return Sampling(**chosen(request, thinking=thinking, phase=phase))  # type: ignore[arg-type]  # the names and types are those of Overrides


def warnings_for(sampling: Sampling, *, thinking: bool) -> tuple[str, ...]:
    return (GREEDY_WARNING,) if thinking and sampling.temperature == 0 else ()
