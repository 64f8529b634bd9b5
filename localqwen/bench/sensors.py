"""Read what a machine reports about its heat, clock and energy. What it does not report is None; nothing is guessed.

Linux: thermal zones (kernel documentation, "thermal sysfs": thousandths of a degree), cpufreq (kHz), powercap's RAPL
(microjoules that wrap around), power_supply (microwatts, microamperes, microvolts). Termux: `termux-battery-status`.
macOS: `powermetrics`, which only root may run. Linux lets only root read RAPL.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Thermal zones of processors: Intel and AMD, Raspberry Pi and most ARM boards, Qualcomm and Samsung phones.
_PROCESSOR_ZONES = re.compile(r"x86_pkg_temp|k10temp|cpu|soc|apss|big|little|mid|prime", re.IGNORECASE)
#: Seconds between two readings of a source that is a separate program.
_PROGRAM_EVERY = 5.0


@dataclass(frozen=True)
class Reading:
    """The sensors at one moment. `celsius` is that of the hottest processor zone, `megahertz` the mean of all
    processors, `joules` a counter of energy whose differences count, `watts` the present power of the battery (only
    while it discharges)."""

    celsius: float | None = None
    megahertz: float | None = None
    joules: float | None = None
    watts: float | None = None


class Sensors:
    """All sensors of this machine; `sources` names those that answer. Close it: some sensors are programs."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._rapl = _Rapl(root / "sys/class/powercap")
        self._program = _program()
        self.sources = self._found()

    def _found(self) -> dict[str, str]:
        """Return the source of each measured value."""
        now, found = self.read(), {}
        if now.celsius is not None:
            found["temperature"] = "thermal zones" if _zones(self._root) else "the battery's sensor"
        if now.megahertz is not None:
            found["clock"] = "cpufreq"
        if now.joules is not None:
            found["energy"] = "RAPL"
        elif self._program is not None and self._program.name == "powermetrics":
            found["energy"] = "powermetrics"
        elif now.watts is not None:
            found["energy"] = "the battery"
        return found

    def read(self) -> Reading:
        """Return the present values."""
        own = self._program.reading if self._program is not None else Reading()
        celsius = _temperature(self._root)
        watts = _battery_watts(self._root)
        return Reading(
            celsius=own.celsius if celsius is None else celsius,
            megahertz=_clock(self._root),
            joules=self._rapl.read(),
            watts=own.watts if watts is None else watts,
        )

    def close(self) -> None:
        """End the programs that were started."""
        if self._program is not None:
            self._program.close()


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _zones(root: Path) -> list[Path]:
    """Return the thermal zones of processors, or all zones if none has such a name."""
    zones = [zone for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")) if _number(zone / "temp")]
    return [zone for zone in zones if _PROCESSOR_ZONES.search(_text(zone / "type"))] or zones


def _temperature(root: Path) -> float | None:
    """Return a zone's temperature, or None: a driver without a sensor reports 0 or an impossible value."""
    values = [(_number(zone / "temp") or 0) / 1000 for zone in _zones(root)]
    return max((value for value in values if 0 < value < 150), default=None)


def _clock(root: Path) -> float | None:
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [value / 1000 for file in files if (value := _number(file))]
    return sum(values) / len(values) if values else None


def _battery_watts(root: Path) -> float | None:
    for battery in sorted((root / "sys/class/power_supply").glob("*")):
        if _text(battery / "type") == "Battery" and _text(battery / "status") == "Discharging":
            power = _number(battery / "power_now")
            if power is not None:
                return abs(power) / 1e6
            current, voltage = _number(battery / "current_now"), _number(battery / "voltage_now")
            if current is not None and voltage is not None:
                return abs(current) * voltage / 1e12
    return None


class _Rapl:
    """Adds the energy counters of all packages into one that does not wrap around."""

    def __init__(self, folder: Path) -> None:
        packages = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last: dict[Path, float] = {}
        self._joules = 0.0
        for zone in packages:
            counter = _number(zone / "energy_uj")
            if counter is not None:
                self._last[zone] = counter

    def read(self) -> float | None:
        if not self._last:
            return None
        for zone, before in self._last.items():
            now = _number(zone / "energy_uj")
            if now is None:
                return None
            size = _number(zone / "max_energy_range_uj") or 0.0
            self._joules += ((now - before) if now >= before else now + size - before) / 1e6
            self._last[zone] = now
        return self._joules


class _Program:
    """A program that is read repeatedly, in its own thread, so that it does not delay the measurement."""

    def __init__(self, name: str, command: list[str], parse: Callable[[str], Reading]) -> None:
        self.name = name
        self._command, self._parse = command, parse
        self._stop = threading.Event()
        self.reading = self._ask()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _ask(self) -> Reading:
        try:
            ran = subprocess.run(self._command, capture_output=True, text=True, timeout=15, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return Reading()
        return self._parse(ran.stdout) if ran.returncode == 0 else Reading()

    def _watch(self) -> None:
        while not self._stop.wait(_PROGRAM_EVERY):
            self.reading = self._ask()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _program() -> _Program | None:
    """Return the program of Termux or macOS, if it exists and answers."""
    known: Mapping[str, tuple[list[str], Callable[[str], Reading]]] = {
        "termux-battery-status": ([], termux_reading),
        "powermetrics": (["--samplers", "cpu_power", "-i", "1000", "-n", "1"], powermetrics_reading),
    }
    for name, (arguments, parse) in known.items():
        path = shutil.which(name)
        if path is not None:
            program = _Program(name, [path, *arguments], parse)
            if program.reading != Reading():
                return program
            program.close()
    return None


def termux_reading(text: str) -> Reading:
    """Return the battery's temperature, and its power if the phone is unplugged and reports current (µA) and voltage
    (mV)."""
    try:
        found = json.loads(text)
    except ValueError:
        return Reading()
    watts = None
    if found.get("status") == "DISCHARGING" and found.get("current") and found.get("voltage"):
        watts = abs(found["current"]) * found["voltage"] / 1e9
    return Reading(celsius=found.get("temperature"), watts=watts)


def powermetrics_reading(text: str) -> Reading:
    """Return the power from a line such as `Combined Power (CPU + GPU + ANE): 2345 mW` (Apple Silicon)."""
    found = re.search(r"^Combined Power.*?:\s*([\d.]+)\s*mW", text, re.MULTILINE)
    return Reading(watts=float(found.group(1)) / 1000) if found else Reading()
