"""What Ollama's API says about models: `/api/tags`, `/api/ps`, `/api/show`, `/api/pull`, `/api/version`.

These are mappers; `show` and `run_pull` also read the disk and the network, so they run outside the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localqwen.chat.messages import ThinkingMode
from localqwen.chat.sampling import Presets
from localqwen.errors import LocalqwenError, NotPulled
from localqwen.models import digests, metadata, pull
from localqwen.models.metadata import ModelMetadata
from localqwen.models.names import Named
from localqwen.models.pull import Plan, Step
from localqwen.models.registry import Model
from localqwen.serve import model_names
from localqwen.serve.fields import Fields
from localqwen.serve.model_names import KnownModel
from localqwen.serve.model_pool import ModelStatus
from localqwen.serve.ollama.chat import timestamp
from localqwen.serve.ollama.request import model_name

#: The version of Ollama whose API this is: clients check it before they use `think` and its levels.
API_VERSION = "0.12.0"
#: The least bytes between two lines of progress, and the most lines for a file.
_LINE_BYTES, _LINES = 1 << 20, 200
#: What Go writes for a time that never comes.
_NEVER = "9999-12-31T23:59:59Z"


def version() -> dict[str, Any]:
    """Return the response of `/api/version`."""
    from localqwen._version import __version__

    return {"version": API_VERSION, "localqwen": __version__}


#: No model is set aside.
_NONE: Mapping[str, str] = {}


def tags(known: Sequence[KnownModel], aside: Mapping[str, str] = _NONE) -> dict[str, Any]:
    """Return the response of `/api/tags`: the models on disk. `aside` are those that are set aside, with the reason."""
    reasons = [{"set_aside": aside[each.name]} if each.name in aside else {} for each in known]
    return {"models": [_listed(each) | reason for each, reason in zip(known, reasons, strict=True)]}


def _listed(known: KnownModel) -> dict[str, Any]:
    name, found = _tagged(known.name), _metadata(known)
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(known.files.modified if known.files else 0.0),
        "size": known.files.bytes if known.files else 0,
        "digest": digests.declared(known.files.path) if known.files else "",
        "details": _details(known, found),
    }


def ps(loaded: Sequence[ModelStatus], known: Sequence[KnownModel], now: float) -> dict[str, Any]:
    """Return the response of `/api/ps`: the loaded models. `now` is seconds since 1970. A model that is answering stays
    loaded at least until the end of its answer."""
    by_name = {each.name: each for each in known}
    models = [(model, by_name.get(model.name) or KnownModel(model.name)) for model in loaded]
    return {"models": [{**_listed(entry), **_running(model, now)} for model, entry in models]}


def _running(model: ModelStatus, now: float) -> dict[str, Any]:
    left = model.idle_seconds_left or 0.0
    return {
        "expires_at": _NEVER if left == math.inf else timestamp(now + left),
        "context_length": model.context_length,
        "size_vram": 0,
    }


def _tagged(name: str) -> str:
    """Return the name with a tag: Ollama's clients look for `demo:latest`, not `demo`."""
    return name if ":" in name else f"{name}:latest"


def _metadata(known: KnownModel) -> ModelMetadata | None:
    """Return the model's metadata, or None if its files cannot be read (any more): the list names the model anyway.

    For a model that is converted when it is loaded, these are the metadata of its source.
    """
    try:
        return metadata.of(known.files.path) if known.files else None
    except LocalqwenError:
        return None


def _details(known: KnownModel, found: ModelMetadata | None) -> dict[str, Any]:
    model = known.entry
    family = "qwen3moe" if model is not None and model.mixture else "qwen3"
    if found is not None:
        family = str(found.info.get("general.architecture", family))
    count = model.parameters if model is not None else 0
    return {
        "parent_model": "",
        "format": found.form if found is not None else "",
        "family": family,
        "families": [family],
        "parameter_size": _parameters(count or (found.parameters if found is not None else 0)),
        "quantization_level": (known.files.quant if known.files else "") or (found.quant if found else ""),
    }


def _parameters(count: int) -> str:
    """Return a count of parameters as Ollama writes it: 4.0B, 752.39M."""
    if count >= 10**9:
        return f"{count / 1e9:.1f}B"
    return f"{count / 1e6:.2f}M" if count else ""


def show(known: KnownModel) -> dict[str, Any]:
    """Return the response of `/api/show`, from the model's entry and the header of its file. Raise NotPulled if its
    files are gone, Unsupported if they cannot be run."""
    if known.files is None:
        raise NotPulled(f"the files of {known.name} are not on this machine any more", f"localqwen pull {known.name}")
    found, model = metadata.of(known.files.path), known.entry
    mode = model.thinking if model is not None else _mode(found.template)
    return {
        "modified_at": timestamp(known.files.modified),
        "license": model.licence if model is not None else "",
        "modelfile": f"FROM {known.name}\n",
        "parameters": _preset(model, mode),
        "template": found.template,
        "details": _details(known, found),
        "model_info": dict(found.info),
        "capabilities": _capabilities(found.template, mode),
    }


def _mode(template: str) -> ThinkingMode:
    """Return how a template seems to let its model think, from its text alone: it is a program, and none of a model's
    runs in the server's own process."""
    if "enable_thinking" in template:
        return "switch"
    return "always" if "<think>" in template.rpartition("add_generation_prompt")[2] else "never"


def _capabilities(template: str, mode: ThinkingMode) -> list[str]:
    tools = ["tools"] if "tools" in template else []
    return ["completion", *tools, *([] if mode == "never" else ["thinking"])]


def _preset(model: Model | None, mode: ThinkingMode) -> str:
    """Return the default sampling of an answer, one name and value per line."""
    values = Presets.of(model.sampling if model else {}).of_mode(mode != "never").set_values()
    return "\n".join(f"{name:<30} {value}" for name, value in values.items())


@dataclass(frozen=True)
class Pull:
    """A request to `/api/pull`; `name` is as Ollama's client wrote it."""

    name: str
    stream: bool


def read_pull(body: Mapping[str, Any]) -> Pull:
    """Parse the body of a pull request. Raise BadField if it names no model."""
    fields = Fields(body)
    name = fields.text("model") or fields.text("name")  # the older name of the field
    if not name:
        raise fields.wrong("model", "is missing")
    stream = fields.flag("stream")
    return Pull(name, stream is None or stream)


#: Takes one line of progress. An exception that it raises ends the pull; the downloaded part stays.
Report = Callable[[Mapping[str, Any]], None]


def run_pull(parsed: Pull, report: Report) -> None:
    """Download a model and return when it is complete; pass each line of progress to `report`. Raise a LocalqwenError
    as `localqwen pull` does.

    A path is not a name here: clients must not learn which files are on this disk.
    """
    reference = model_names.pullable(model_name(parsed.name))
    built_in = isinstance(reference, Named) and reference.model.is_built_in
    planned = None if built_in else pull.plan_or_present(reference)
    report({"status": "pulling manifest"})  # after the plan: an error in it still has a status of its own
    if isinstance(planned, Plan):
        pull.run(planned, Lines(planned, report))
    report({"status": "success"})


class Lines:
    """Turns the steps of a pull into Ollama's lines: the bytes of each file under its digest."""

    def __init__(self, planned: Plan, report: Report) -> None:
        self._plan = planned
        self._report = report
        self._stage: tuple[str, str] | None = None
        self._sent: int  # bytes in the last line; the first step always makes one

    def __call__(self, step: Step) -> None:
        """Pass a line to `report`, unless the last one of this file was so recent that this one adds nothing."""
        line = self._converting(step) if step.stage == "convert" else self._file(step)
        done, total = line["completed"], line["total"]
        new, self._stage = self._stage != (step.stage, step.name), (step.stage, step.name)
        if new or done == total or not 0 <= done - self._sent < max(_LINE_BYTES, total // _LINES):
            self._sent = done
            self._report(line)

    def _file(self, step: Step) -> dict[str, Any]:
        """Return the line of one file; a step counts the bytes of all files before it too."""
        before = 0
        for file in self._plan.files:
            if file.path == step.name:
                break
            before += file.bytes
        what = {"load": "pulling", "wait": "waiting for another pull of", "check": "verifying"}[step.stage]
        return {
            "status": f"{what} {file.digest[:12]}",
            "digest": f"{_algorithm(file.digest)}:{file.digest}",
            "total": file.bytes,
            "completed": step.done_bytes - before,
        }

    def _converting(self, step: Step) -> dict[str, Any]:
        return {"status": f"converting to {self._plan.quant}", "total": step.total_bytes, "completed": step.done_bytes}


def _algorithm(digest: str) -> str:
    return "sha256" if len(digest) == 64 else "sha1"
