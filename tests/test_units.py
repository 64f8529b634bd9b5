"""Sizes and durations: what is understood, what is not, and the limits of each door."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localqwen import units
from localqwen.bench import profiles
from localqwen.cli import recommend
from localqwen.cli.bench.command import Duration as Sustained
from localqwen.cli.format import parsed_size
from localqwen.cli.serve import Duration as KeepAlive
from localqwen.errors import LocalqwenError, UsageError
from localqwen.serve.fields import Fields
from localqwen.serve.ollama.request import keep_alive

SIZES = [
    ("8GB", 8 * 10**9),
    ("512 MB", 512 * 10**6),
    ("1.5gib", 3 << 29),
    ("4g", 4 * 10**9),
    ("2MiB", 2 << 20),
    ("7KB", 7000),
    (" 1TB ", 10**12),
]
DURATIONS = [
    ("90s", 90.0),
    ("5m", 300.0),
    ("1h", 3600.0),
    ("1h30m", 5400.0),
    ("250ms", 0.25),
    ("0.5m", 30.0),
    ("12", 12.0),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_the_same_at_every_door(text: str, size: int) -> None:
    assert units.parse_size(text) == size
    assert (recommend.read_size(text), parsed_size(text)) == (size, size)
    table = profiles._read(f'[p]\nprompt = 5\nlimits = {{ memory = "{text}" }}\n', "test")
    assert table["p"].limits["memory"] == size


@pytest.mark.parametrize("text", ["", "much", "0GB", "-1GB", "1 2GB", "GB", "5XB", "1e3GB", "٣GB"])
def test_what_is_no_size_is_refused_at_every_door(text: str) -> None:
    assert units.parse_size(text) is None
    for door in (recommend.read_size, parsed_size):
        with pytest.raises(UsageError):
            door(text)
    with pytest.raises(LocalqwenError, match="not a size"):
        profiles._read(f'[p]\nprompt = 5\nlimits = {{ memory = "{text}" }}\n', "test")


def test_a_number_without_a_unit_is_gigabytes_where_a_machine_is_meant() -> None:
    assert recommend.read_size("7.5") == 7_500_000_000
    with pytest.raises(UsageError):
        parsed_size("7.5")


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_a_duration_is_the_same_at_every_door(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds
    assert KeepAlive().convert(text, None, None) == Sustained().convert(text, None, None) == seconds
    assert keep_alive(Fields({"keep_alive": text})) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "m", "nan", "1h30", "--1", "1e3", "٣s"])
def test_what_is_no_duration_is_refused_at_every_door(text: str) -> None:
    assert units.parse_duration(text) is None
    for kind in (KeepAlive(), Sustained()):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)
    with pytest.raises(LocalqwenError, match="keep_alive"):
        keep_alive(Fields({"keep_alive": text}))


def test_below_zero_a_model_stays_for_ever_and_nothing_is_measured() -> None:
    assert KeepAlive().convert("-1", None, None) == float("inf") == keep_alive(Fields({"keep_alive": "-5m"}))
    assert KeepAlive().convert("0", None, None) == 0
    for text in ("-1", "0", "0s"):
        with pytest.raises(click.BadParameter):
            Sustained().convert(text, None, None)


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_none(text: str) -> None:
    size, seconds = units.parse_size(text), units.parse_duration(text)
    assert size is None or size > 0
    assert seconds is None or seconds == seconds  # noqa: PLR0124  (not NaN)
