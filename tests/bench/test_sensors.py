"""Heat, clock and energy: machines as trees of files, programs as scripts on the path; endurance on a known clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from localqwen import engines
from localqwen.bench.samples import Test
from localqwen.bench.sensors import Reading, Sensors, powermetrics_reading, termux_reading
from localqwen.bench.sustain import Endurance, summary
from localqwen.engines.engine import Engine


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


LAPTOP = {
    "sys/class/thermal/thermal_zone0/type": "acpitz",
    "sys/class/thermal/thermal_zone0/temp": 90000,
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone1/temp": 51500,
    "sys/class/thermal/thermal_zone2/type": "cpu-broken",
    "sys/class/thermal/thermal_zone2/temp": -274000,
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 2400000,
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 1600000,
    "sys/class/powercap/intel-rapl:0/energy_uj": 5_000_000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 10_000_000,
    "sys/class/powercap/intel-rapl:0:0/energy_uj": 1,
}
PHONE = {
    "sys/class/power_supply/battery/type": "Battery",
    "sys/class/power_supply/battery/status": "Discharging",
    "sys/class/power_supply/battery/current_now": -500000,
    "sys/class/power_supply/battery/voltage_now": 4000000,
}


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("bin")))


def test_a_machine_without_sensors_tells_nothing(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    assert sensors.read() == Reading(None, None, None, None)
    assert sensors.sources == {}


def test_a_laptop_tells_its_processors_heat_clock_and_energy(tmp_path: Path) -> None:
    sensors = Sensors(tree(tmp_path, LAPTOP))
    assert sensors.read() == Reading(celsius=51.5, megahertz=2000, joules=0)
    assert sensors.sources == {"temperature": "thermal zones", "clock": "cpufreq", "energy": "RAPL"}


def test_the_energy_counter_may_wrap(tmp_path: Path) -> None:
    sensors = Sensors(tree(tmp_path, LAPTOP))
    for counter, joules in ((8_000_000, 3), (1_000_000, 6), (1_500_000, 6.5)):
        tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": counter})
        assert sensors.read().joules == pytest.approx(joules)


def test_a_battery_tells_its_power_only_while_it_discharges(tmp_path: Path) -> None:
    sensors = Sensors(tree(tmp_path, PHONE))
    assert sensors.read().watts == pytest.approx(2)
    assert sensors.sources == {"energy": "the battery"}
    tree(tmp_path, {"sys/class/power_supply/battery/status": "Charging"})
    assert sensors.read().watts is None


def test_termux_tells_the_batterys_heat_and_its_power_if_it_is_unplugged() -> None:
    told = '{"status": "DISCHARGING", "temperature": 31.5, "current": -450000, "voltage": 4000}'
    assert termux_reading(told) == Reading(celsius=31.5, watts=pytest.approx(1.8))
    assert termux_reading(told.replace("DISCHARGING", "CHARGING")).watts is None
    assert termux_reading('{"status": "DISCHARGING", "temperature": 30, "current": -1}') == Reading(celsius=30)
    assert termux_reading("no permission") == Reading()


def test_powermetrics_tells_the_power_of_the_chip() -> None:
    told = "CPU Power: 3210 mW\nGPU Power: 20 mW\nCombined Power (CPU + GPU + ANE): 3230 mW\n"
    assert powermetrics_reading(told).watts == pytest.approx(3.23)
    assert powermetrics_reading("powermetrics must be invoked as the superuser") == Reading()


def test_a_program_on_the_path_is_asked_and_one_that_fails_is_not_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "termux-battery-status"
    script.write_text('#!/bin/sh\necho \'{"status": "CHARGING", "temperature": 29.5}\'\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    sensors = Sensors(tmp_path)
    assert (sensors.read().celsius, sensors.sources) == (29.5, {"temperature": "the battery's sensor"})
    sensors.close()
    script.write_text("#!/bin/sh\nexit 1\n")
    assert Sensors(tmp_path).sources == {}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    opened = engines.open("demo", context_length=512, threads=1)
    yield opened
    opened.close()


class Room:
    """A clock of 10 ms per look, and a processor that is 1 degree warmer at each reading and cools in one's sleep."""

    def __init__(self, root: Path) -> None:
        self.now, self.celsius, self.root = 0.0, 40.0, root
        self.sensors = Sensors(tree(root, {**LAPTOP, "sys/class/thermal/thermal_zone1/temp": 40000}))
        read = self.sensors.read
        self.sensors.read = lambda: self.warmer() or read()  # type: ignore[method-assign]

    def warmer(self) -> None:
        self.celsius += 1
        tree(self.root, {"sys/class/thermal/thermal_zone1/temp": int(self.celsius * 1000)})

    def clock(self) -> float:
        self.now += 0.01
        return self.now

    def sleep(self, seconds: float) -> None:
        self.celsius -= 3
        self.now += seconds


def test_endurance_gives_a_series_and_waits_until_the_machine_is_cool(engine: Engine, tmp_path: Path) -> None:
    room = Room(tmp_path)
    endurance = Endurance(engine, "m", room.sensors, clock=room.clock, sleep=room.sleep)
    first = endurance.measure(Test("sustain", generate=30), 0, 2.0)
    assert first.values["cool_down_seconds"] == 0
    assert len(first.series) == pytest.approx(20, abs=2)
    assert first.series[-1]["seconds"] >= 2.0
    assert first.series[-1]["celsius"] > first.series[0]["celsius"]  # type: ignore[operator]
    assert first.values["joules_per_token"] == 0
    second = endurance.measure(Test("sustain", generate=30), 1, 2.0)
    assert second.values["cool_down_seconds"] > 5
    assert second.series[0]["celsius"] < first.series[-1]["celsius"]  # type: ignore[operator]


def test_a_machine_without_sensors_has_no_energy_and_does_not_wait(engine: Engine, tmp_path: Path) -> None:
    endurance = Endurance(engine, "m", Sensors(tmp_path), clock=Room(tmp_path / "room").clock)
    for repeat in (0, 1):
        found = endurance.measure(Test("sustain", generate=30), repeat, 1.0)
        assert "joules_per_token" not in found.values
        assert "celsius_max" not in found.values
        assert found.values["cool_down_seconds"] == 0


def test_throttling_is_a_falling_line() -> None:
    """From 20 to 10 tokens/s in ten minutes: half is held, and a fifteenth of the mean is lost per minute."""
    points = [
        {"seconds": 60.0 * minute, "tokens": 60 * speed, "tokens_per_second": speed, "celsius": None, "megahertz": None,
         "joules": None}
        for minute, speed in ((n, 20 - n) for n in range(1, 11))
    ]  # fmt: skip
    found = summary([dict(point) for point in points])
    assert found["held_share"] == pytest.approx(10 / 19)
    assert found["tokens_per_second"] == pytest.approx(14.5)
    assert found["slope_per_minute"] == pytest.approx(-1 / 14.5)
    assert "joules_per_token" not in found
