"""Which sampling an answer gets: the Qwen3 preset of its mode, then the user's overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from localqwen.chat.messages import Request, SamplingOverrides
from localqwen.engines.engine import Sampling
from localqwen.errors import ConfigError

#: Qwen3 model cards, "Best Practices": one set for thinking, one for not thinking.
THINKING = SamplingOverrides(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
NOT_THINKING = SamplingOverrides(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)

GREEDY_WARNING = "greedy sampling while thinking can repeat without end (the makers advise temperature 0.6)"


@dataclass(frozen=True)
class Presets:
    """The sampling of a model where a request says nothing: one for each of its modes."""

    thinking: SamplingOverrides = THINKING
    not_thinking: SamplingOverrides = NOT_THINKING

    @classmethod
    def of(cls, own: Mapping[str, Mapping[str, float]]) -> Presets:
        """Return the defaults of Qwen3, with what an entry of models.toml says of `thinking` and `not_thinking` in
        their place. Raise ConfigError for a sampling that is not understood."""
        try:
            return cls(
                thinking=SamplingOverrides(**own.get("thinking", {})).over(THINKING),  # type: ignore[arg-type]  # top_k is checked by Sampling
                not_thinking=SamplingOverrides(**own.get("not_thinking", {})).over(NOT_THINKING),  # type: ignore[arg-type]
            )
        except TypeError as exc:
            raise ConfigError(f"models.toml: the sampling {dict(own)} is not understood: {exc}", _HINT) from exc

    def of_mode(self, thinking: bool) -> SamplingOverrides:
        """Return the sampling of an answer that thinks, or of one that does not."""
        return self.thinking if thinking else self.not_thinking


#: What the Qwen3 authors advise for every model that says nothing else.
QWEN_DEFAULTS = Presets()
_HINT = "write sampling = { thinking = { temperature = 0.6 }, not_thinking = { top_p = 0.8 } }"


def chosen(
    request: Request, presets: Presets, *, thinking: bool, phase: SamplingOverrides
) -> Mapping[str, float | int]:
    """Return the sampling of a phase, by name: preset < the request's sampling < its overrides for the phase."""
    return phase.over(request.sampling).over(presets.of_mode(thinking)).set_values()


def sampling_for(request: Request, presets: Presets, *, thinking: bool, phase: SamplingOverrides) -> Sampling:
    """Return the sampling of a phase as the engines take it. Raise UsageError for a value out of range."""
    return Sampling(**chosen(request, presets, thinking=thinking, phase=phase))  # type: ignore[arg-type]  # the names and types are those of Overrides


def warnings_for(sampling: Sampling, *, thinking: bool) -> tuple[str, ...]:
    """Return what a user should know of this sampling."""
    return (GREEDY_WARNING,) if thinking and sampling.temperature == 0 else ()
