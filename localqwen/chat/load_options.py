"""Everything that changes how a model is loaded, declared once for the command line, Python, server and benchmark.

Pure data: importing it is cheap, and loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from localqwen.errors import UsageError

_OPTION = "option"


@dataclass(frozen=True)
class Option:
    """One field of LoadOptions: its flag and help on the command line, its type and range, and the name under which an
    engine takes it ("" for the choice of the engine)."""

    flag: str
    help: str
    kind: type[bool] | type[int] | type[str]
    parameter: str
    metavar: str = ""
    low: int | None = None
    choices: tuple[int, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise UsageError if the value has another type or is out of range."""
        wanted = self._wanted(value)
        if wanted:
            raise UsageError(f"{name} is {value!r}, it must be {wanted}", f"{self.flag}: {self.help}")

    def _wanted(self, value: Any) -> str:
        """Return what the value must be instead, "" if it is right."""
        if type(value) is not self.kind:  # True is not a number
            return _KINDS[self.kind]
        if self.choices and value not in self.choices:
            return " or ".join(map(str, self.choices))
        if self.low is not None and isinstance(value, int) and value < self.low:
            return f"{self.low} or more"
        return ""


_KINDS = {bool: "true or false", int: "a whole number", str: "a text"}


def _option(default: Any, flag: str, help: str, kind: type, parameter: str, **more: Any) -> Any:
    return field(default=default, metadata={_OPTION: Option(flag, help, kind, parameter, **more)})


@dataclass(frozen=True)
class LoadOptions:
    """Everything that changes how a model is loaded. None leaves it to the machine.

    The command line, `localqwen.load`, the server and the benchmark take this value; a new field reaches all of them.
    Raise UsageError for a value that no engine takes.
    """

    engine: str | None = _option(
        None, "--engine", "Use this engine (see localqwen doctor).", str, "", metavar="mlx|gguf"
    )
    context_length: int | None = _option(
        None,
        "--ctx",
        "Use a context of N tokens, extended by YaRN if necessary.",
        int,
        "context_length",
        metavar="N",
        low=1,
    )
    threads: int | None = _option(
        None, "--threads", "Use N CPU threads (llama.cpp).", int, "threads", metavar="N", low=1
    )
    parallel: int = _option(
        1, "--parallel", "Compute N answers at once, per model.", int, "max_runs", metavar="N", low=1
    )
    kv_quant: int | None = _option(
        None, "--kv-quant", "Store keys and values in 8 or 4 bits: longer contexts.", int, "kv_quant", choices=(8, 4)
    )
    adapter: str | None = _option(
        None, "--adapter", "Apply a LoRA adapter of PEFT's layout.", str, "adapter", metavar="FOLDER"
    )
    force: bool = _option(False, "--force", "Load a model even if it does not fit the memory.", bool, "force")

    def __post_init__(self) -> None:
        if isinstance(self.adapter, Path):
            object.__setattr__(self, "adapter", str(self.adapter))
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                OPTIONS[each.name].check(each.name, value)

    @property
    def for_engine(self) -> dict[str, Any]:
        """Return the keywords of `engines.open_resolved`."""
        return {option.parameter: getattr(self, name) for name, option in OPTIONS.items() if option.parameter}

    def check_adapter(self) -> None:
        """Raise UsageError if the adapter is not a folder. Call it before anything is pulled or loaded."""
        from localqwen.models import converted

        if self.adapter is not None:
            converted.adapter_folder(self.adapter)

    def to_json(self) -> dict[str, Any]:
        """Return the options by name, as plain data."""
        return {name: getattr(self, name) for name in OPTIONS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoadOptions:
        """Return the options that `to_json` made plain."""
        return cls(**data)


#: Field of LoadOptions -> how it is offered.
OPTIONS: Mapping[str, Option] = {each.name: each.metadata[_OPTION] for each in fields(LoadOptions)}
