"""The counters of the server, in Prometheus' text format 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from localqwen.chat.messages import Finished
from localqwen.serve.deaths import Deaths
from localqwen.serve.model_pool import ModelStatus

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters since the server started. Only the event loop's thread reads and writes them."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # (route, status)
        self.tokens: Counter[str] = Counter()
        self.seconds = dict.fromkeys(_PHASES, 0.0)
        self.answers = 0

    def answered(self, finished: Finished) -> None:
        """Count a finished answer: its tokens and its seconds."""
        usage, timing = finished.usage, finished.timing
        self.answers += 1
        self.tokens["prompt"] += usage.prompt_tokens
        self.tokens["cached"] += usage.cached_tokens
        self.tokens["generated"] += usage.completion_tokens
        self.tokens["thinking"] += usage.thinking_tokens
        for phase, milliseconds in (("prompt", timing.prompt_ms), ("generation", timing.predicted_ms)):
            self.seconds[phase] += (milliseconds or 0) / 1000

    def text(self, loaded: Sequence[ModelStatus], deaths: Deaths) -> str:
        """Return all counters, and the gauges of the loaded models, in Prometheus' text format."""
        lines = _family("requests_total", "counter", "HTTP requests by route and status.")
        lines += [
            f'localqwen_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        lines += _family("answers_total", "counter", "Answers that came to their end.")
        lines.append(f"localqwen_answers_total {self.answers}")
        lines += _family("tokens_total", "counter", "Tokens of finished answers.")
        lines += [f'localqwen_tokens_total{{kind="{kind}"}} {self.tokens[kind]}' for kind in _TOKENS]
        lines += _family("seconds_total", "counter", "Seconds of finished answers, by phase.")
        lines += [f'localqwen_seconds_total{{phase="{phase}"}} {self.seconds[phase]:.6f}' for phase in _PHASES]
        lines += _family("running", "gauge", "Answers being computed.")
        lines += [f'localqwen_running{{model="{_escaped(model.name)}"}} {model.running}' for model in loaded]
        lines += _family("queued", "gauge", "Answers that wait for a run.")
        lines += [f'localqwen_queued{{model="{_escaped(model.name)}"}} {model.waiting}' for model in loaded]
        lines += _family("model_deaths_total", "counter", "Ends of a model's process that nobody wanted, by cause.")
        lines += [
            f'localqwen_model_deaths_total{{model="{_escaped(model)}",cause="{_escaped(cause)}"}} {count}'
            for (model, cause), count in sorted(deaths.causes.items())
        ]
        lines += _family("set_aside", "gauge", "Models that are not loaded any more, because they died too often.")
        lines += [f'localqwen_set_aside{{model="{_escaped(model)}"}} 1' for model in sorted(deaths.aside)]
        return "\n".join(lines) + "\n"


_TOKENS = ("prompt", "cached", "generated", "thinking")
_PHASES = ("prompt", "generation")


def _family(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP localqwen_{name} {what}", f"# TYPE localqwen_{name} {kind}"]


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
