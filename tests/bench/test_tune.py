"""Tuning: what is tried, what is kept, and that engines use it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from resolved import file_of

from localqwen import engines, machine
from localqwen.bench import tune
from localqwen.bench.tune import Speed, Trial, thread_counts
from localqwen.cli import main
from localqwen.engines.llama_cpp import settings
from localqwen.engines.llama_cpp.engine import LlamaCppEngine
from localqwen.engines.llama_cpp.settings import Settings


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [1]),
        (2, [1, 2]),
        (6, [1, 2, 3, 4, 5, 6]),
        (12, list(range(1, 13))),
        (20, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
    ],
)
def test_thread_counts_reach_the_whole_machine(cores: int, expected: list[int]) -> None:
    assert thread_counts(cores) == expected


def test_what_is_faster_is_kept_and_what_is_noise_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that decodes best with 2 threads, reads best with 4, and gains from passes of 512 alone."""

    def speed(tried: Settings) -> Speed:
        prefill = {1: 50.0, 2: 90.0, 3: 120.0, 4: 140.0}[tried.threads_for_prompts]
        decode = {1: 10.0, 2: 18.0, 3: 17.5, 4: 16.0}[tried.threads]
        if tried.batch == 512:
            prefill *= 1.5
        if tried.flash_attention:
            decode *= 1.02  # less than the noise
        if not tried.use_extra_bufts:
            prefill *= 0.5
        return Speed(prefill, decode)

    monkeypatch.setattr(tune, "_measure", lambda path, candidates: [speed(tried) for _, tried in candidates])
    told: list[Trial] = []
    best, trials = tune.tune(Path("x"), Settings(4), 4, told.append, approximate=True)
    assert told == trials
    assert [trial.change for trial in trials[:4]] == ["1 thread", "2 threads", "3 threads", "4 threads"]
    assert best == Settings(2, 4, batch=512, adapt_threads=True, tuned=True)


def test_exactness_is_not_traded_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine on which everything that rounds is ten times as fast."""

    def speed(tried: Settings) -> Speed:
        factor = 10.0 if tried.flash_attention else 1.0
        return Speed(100 * factor * (2 if tried.kv_type != "f16" else 1), 10 * factor)

    monkeypatch.setattr(tune, "_measure", lambda path, candidates: [speed(tried) for _, tried in candidates])
    best, trials = tune.tune(Path("x"), Settings(2), 2, lambda _: None)
    assert (best.flash_attention, best.kv_type) == (None, "f16")
    assert not [trial for trial in trials if trial.settings.flash_attention]
    best, _ = tune.tune(Path("x"), Settings(2), 2, lambda _: None, approximate=True)
    assert (best.flash_attention, best.kv_type) == (True, "q8_0")


def test_what_is_kept_is_shown_and_not_for_fewer_cores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of("demo")
    settings.keep(path, Settings(3, 4, kv_type="q8_0", flash_attention=True))
    try:
        assert main(["tune", "demo", "--show"]) in (0, None)
        assert capsys.readouterr().out == (
            "kept: 3 threads for answers, 4 for prompts, weight repacking on, 256 tokens per pass; "
            "approximate, as requested: flash attention and keys and values in q8_0\n"
        )
        assert settings.tuned(path, Settings(1, kv_type="q4_0")).kv_type == "q4_0"  # the user's own wish
        monkeypatch.setattr(machine, "usable_cores", lambda: 77)
        assert main(["tune", "demo", "--show"]) in (0, None)
        assert capsys.readouterr().out == "demo was never tuned here\n"
    finally:
        settings._file().unlink()


def test_mlx_has_nothing_to_tune(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "demo-mlx"
    assert main(["convert", "demo", "--to", "mlx", "--bits", "4", "--out", str(folder)]) in (0, None)
    assert main(["tune", str(folder)]) == 1
    assert "runs on MLX on this machine, which has none of these settings" in capsys.readouterr().err


def test_a_real_measurement_gives_settings_that_the_engine_then_uses(capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of("demo")
    try:
        assert main(["tune", "demo", "--json"]) in (0, None)
        found = json.loads(capsys.readouterr().out)
        assert all(trial["prefill"] > 0 < trial["decode"] for trial in found["trials"])
        engine = engines.open("demo", context_length=256)
        assert isinstance(engine, LlamaCppEngine)
        used = engine.settings
        engine.close()
        assert used.tuned
        assert {name: getattr(used, name) for name in ("threads", "batch")} == {
            name: found["settings"][name] for name in ("threads", "batch")
        }
        asked = engines.open("demo", context_length=256, threads=1)
        assert isinstance(asked, LlamaCppEngine)
        assert asked.settings.threads_for_prompts == 1
        asked.close()
        assert main(["tune", "demo", "--forget"]) in (0, None)
        assert "with the defaults again" in capsys.readouterr().out
    finally:
        settings.forget(path)
    assert not settings.tuned(path, Settings(1)).tuned


@pytest.mark.parametrize("kept", [{"threads": "x"}, {"threads": 0}, {"colour": 1}, [], None, {"threads": True}])
def test_a_damaged_result_is_as_none(kept: object) -> None:
    path = file_of("demo")
    settings.keep(path, Settings(3))
    try:
        assert settings.tuned(path, Settings(1)) == Settings(3, tuned=True)
        file = settings._file()
        (key,) = json.loads(file.read_text())
        whole = json.loads(file.read_text())[key]
        file.write_text(json.dumps({key: {**whole, **kept} if isinstance(kept, dict) else kept}))
        assert settings.tuned(path, Settings(1)) == Settings(1)
        file.write_text("{")
        assert settings.tuned(path, Settings(1)) == Settings(1)
    finally:
        settings._file().unlink()


def test_what_the_probe_forbids_stays_off() -> None:
    path = file_of("demo")
    settings.keep(path, Settings(2))
    try:
        assert settings.tuned(path, replace(Settings(1), use_extra_bufts=False)).use_extra_bufts is False
    finally:
        settings.forget(path)
