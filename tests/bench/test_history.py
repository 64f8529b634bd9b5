"""Runs that are kept: whole, stopped, damaged; and two of them compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from localqwen.bench import compare, history, llama_bench, tables
from localqwen.bench.contention import Others
from localqwen.bench.history import Benchmark, Log
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.errors import ModelNotFound, StorageError, UsageError
from localqwen.machine.cpu_time import CpuTime

MACHINE = {"system": "Linux", "release": "6", "architecture": "x86_64", "chip": "Chip", "cores": 2, "memory": 8 * 10**9}
DECODE = Test("decode", generate=4, depth=16)


def run(id: str = "20260101-000000-aaaa", **changes: object) -> Benchmark:
    values: dict[str, object] = {
        "created": "2026-01-01T00:00:00+00:00", "machine": MACHINE, "versions": {"localqwen": "1"}, "settings": {},
    }  # fmt: skip
    return Benchmark(id=id, **{**values, **changes})  # type: ignore[arg-type]


def sample(speed: float, subject: str = "m", test: Test = DECODE) -> Sample:
    return Sample(subject, test, {"tokens_per_second": speed, "seconds": 4 / speed}, (1 / speed,) * 4)


def written(folder: Path, *samples: Sample, end: bool = True, **changes: object) -> Path:
    benchmark = run(**changes)  # type: ignore[arg-type]
    with Log(benchmark, folder) as log:
        log.subject(Subject("m", "llama.cpp", file="m.gguf", sha256="ab" * 32, bytes=10**9, threads=2))
        for each in samples:
            log.sample(each)
        if end:
            log.end()
    assert log.path is not None
    return log.path


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = history.read(written(tmp_path, sample(20.0), sample(21.0)))
    assert found.complete
    assert found.damaged == 0
    assert [each.values["tokens_per_second"] for each in found.samples] == [20, 21]
    assert found.samples[0].test == DECODE
    assert found.samples[0].latencies == (0.05,) * 4
    assert found.subject("m").sha256 == "ab" * 32
    assert found.machine == MACHINE


def test_a_stopped_run_keeps_what_it_measured_and_is_marked(tmp_path: Path) -> None:
    found = history.read(written(tmp_path, sample(20.0), end=False))
    assert not found.complete
    assert len(found.samples) == 1
    assert "stopped before its end" in tables.state(found)


def test_damaged_lines_are_skipped_and_told(tmp_path: Path) -> None:
    path = written(tmp_path, sample(20.0), sample(21.0))
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:40]
    lines.insert(3, '{"test": {"kind": "decode", "length": 3}, "subject": "m", "values": {}}')
    lines.insert(4, "[]")
    path.write_text("\n".join(lines) + "\n")
    (found,), complaints = history.runs(tmp_path)
    assert [each.values["tokens_per_second"] for each in found.samples] == [21]
    assert found.complete
    assert complaints == [f"3 lines of {path} cannot be read and are ignored"]


def test_a_file_without_its_head_is_left_out_and_told(tmp_path: Path) -> None:
    written(tmp_path, sample(20.0))
    (tmp_path / "20270101-000000-bbbb.jsonl").write_text("\x00\x00\n")
    found, complaints = history.runs(tmp_path)
    assert [each.id for each in found] == ["20260101-000000-aaaa"]
    assert len(complaints) == 1
    assert "20270101-000000-bbbb.jsonl is damaged" in complaints[0]


def test_runs_are_found_by_the_beginning_of_their_id_by_age_and_by_file(tmp_path: Path) -> None:
    older, newer = (written(tmp_path, sample(1.0), id=f"2026010{day}-000000-aaaa") for day in (1, 2))
    assert history.find("20260101", tmp_path)[0].id == older.stem
    assert history.find("last", tmp_path)[0].id == newer.stem
    assert history.find("last-1", tmp_path)[0].id == older.stem
    assert history.find(str(older))[0].id == older.stem
    with pytest.raises(UsageError, match="2 runs begin with '2026'"):
        history.find("2026", tmp_path)
    for unknown in ("2027", "last-2"):
        with pytest.raises(ModelNotFound, match="there is no run"):
            history.find(unknown, tmp_path)


def test_a_folder_that_cannot_be_written_fails_the_log_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "bench").write_text("a file where the folder should be")
    with Log(run(), tmp_path / "bench") as log:
        log.sample(sample(1.0))
        log.end()
    assert isinstance(log.failure, StorageError)


def with_speeds(speeds: list[float], **changes: object) -> Benchmark:
    subjects = (Subject("m", "llama.cpp", file="m.gguf", sha256="ab"),)
    return run(subjects=subjects, samples=tuple(map(sample, speeds)), complete=True, **changes)


def test_compare_says_no_difference_on_noise_and_better_beyond_it() -> None:
    slow = with_speeds([20, 21, 19, 20.5, 19.5])
    same = with_speeds([19.8, 20.9, 19.3, 20.2, 20.1])
    fast = with_speeds([30, 31, 29, 30.5, 29.5])
    (line,) = compare.compare(slow, same)
    assert (line.metric, line.ratio.verdict, line.better) == ("tokens_per_second", "no difference", None)
    assert compare.table([line])[1][-1] == "no difference"
    (line,) = compare.compare(slow, fast)
    assert (line.better, line.ratio.value) == (True, 1.5)
    (line,) = compare.compare(fast, slow)
    assert line.better is False


def beside(others: float, speeds: list[float]) -> Benchmark:
    """On 2 cores with 1 thread; other programs take `others` cores all the time."""
    samples = [
        replace(sample(speed), values={**sample(speed).values, "elapsed_seconds": 1.0, "others_seconds": others})
        for speed in speeds
    ]
    return replace(with_speeds([]), subjects=(Subject("m", "x", threads=1),), samples=tuple(samples))


def test_speeds_in_a_crowd_tell_nothing() -> None:
    """Repeats agree with each other, because the other program was there for all of them."""
    quiet, slow = [20, 21, 19, 20.5, 19.5], [10, 10.5, 9.5, 10.2, 9.8]
    (line,) = compare.compare(beside(0.05, quiet), beside(1.4, slow))
    assert (line.ratio.verdict, line.better, compare.table([line])[1][-1]) == ("cannot tell", None, "cannot tell")
    (line,) = compare.compare(beside(0.05, quiet), beside(0.9, slow))  # a core was left for the one thread
    assert line.ratio.verdict == "difference"
    assert compare.warnings(beside(0.05, quiet), beside(1.4, slow)) == [
        "other programs took 1.4 of 2 processors from 20260101-000000-aaaa: its speeds say nothing about m"
    ]
    assert tables.state(beside(0.1, quiet)) == ""
    assert "other programs took 1.4 of 2 processors meanwhile" in tables.state(beside(1.4, slow))


def test_memory_and_quality_are_the_same_in_a_crowd() -> None:
    test = Test("memory")
    runs = []
    for size in (1e9, 2e9):
        values = {"peak_memory": size, "elapsed_seconds": 1.0, "others_seconds": 2.0}
        samples = (Sample("m", test, values), Sample("m", test, values))
        runs.append(run(subjects=(Subject("m", "x", threads=1),), samples=samples))
    (line,) = compare.compare(*runs)
    assert line.ratio.verdict == "difference"


def test_others_are_what_was_worked_and_was_not_ours() -> None:
    told = iter([CpuTime(0.0, 10.0, 1.0), CpuTime(2.0, 13.5, 2.5), CpuTime(3.0, 13.6, 2.7)])
    counting = Others(lambda: next(told))
    assert counting.since() == {"elapsed_seconds": 2.0, "others_seconds": 2.0}
    assert counting.since() == {"elapsed_seconds": 1.0, "others_seconds": 0.0}  # rounded by the system: never negative


def test_compare_knows_that_less_waiting_is_better() -> None:
    test = Test("chat", "think")
    slow, fast = (
        run(subjects=(Subject("m", "x"),), samples=tuple(Sample("m", test, {"first_answer_ms": v}) for v in values))
        for values in ([900.0, 910.0, 905.0], [500.0, 510.0, 505.0])
    )
    (line,) = compare.compare(slow, fast)
    assert line.better is True


def test_compare_warns_of_what_else_differs_and_refuses_what_has_nothing_in_common() -> None:
    plain = with_speeds([20, 21])
    other = with_speeds([20, 21], held="1 processor", machine={**MACHINE, "chip": "Other"}, versions={"localqwen": "2"})
    assert compare.warnings(plain, plain) == []
    assert compare.warnings(plain, other) == [
        "limits: nothing; 1 processor",
        "different machines: Chip; Other",
        "different versions of localqwen: 1; 2",
    ]
    with pytest.raises(UsageError, match="no test of one model in common"):
        compare.compare(plain, run(subjects=(Subject("n", "x"),), samples=(sample(1.0, "n", Test("load")),)))


#: Of llama-bench's JSON (tools/llama-bench/llama-bench.cpp, get_fields and print_test), in its order.
LLAMA_BENCH_KEYS = [
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size",
    "model_n_params", "n_batch", "n_ubatch", "n_threads", "cpu_mask", "cpu_strict", "poll", "type_k", "type_v",
    "n_gpu_layers", "n_cpu_moe", "split_mode", "main_gpu", "no_kv_offload", "flash_attn", "devices", "tensor_split",
    "tensor_buft_overrides", "load_mode", "lazy_mode", "embeddings", "no_op_offload", "no_host", "repack",
    "fit_target", "fit_min_ctx", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts",
    "stddev_ts", "samples_ns", "samples_ts",
]  # fmt: skip


def test_llama_benchs_keys_are_written_in_its_order_and_units() -> None:
    batch = Test("decode", generate=4, batch=2)
    done = with_speeds([20, 30])
    (found,) = llama_bench.tests(done.with_sample(sample(1.0, test=batch)))  # it has no batches
    assert list(found) == LLAMA_BENCH_KEYS
    assert (found["n_prompt"], found["n_gen"], found["n_depth"]) == (0, 4, 16)
    assert found["samples_ns"] == [200_000_000, 133_333_333]
    assert found["avg_ts"] == 25
    assert found["stddev_ts"] == pytest.approx(50**0.5)
    json.dumps(found)


def test_the_object_of_json_holds_statistics_and_every_sample() -> None:
    found = json.loads(json.dumps(tables.as_json(with_speeds([20, 30]))))
    (row,) = found["rows"]
    assert row["metrics"]["tokens_per_second"]["median"] == 25
    assert row["latency_seconds"]["count"] == 8
    assert len(row["samples"]) == 2
    assert found["complete"] is True


def test_a_stand_in_is_told_in_the_first_line() -> None:
    assert tables.title(run(held="2 processors")).startswith(
        "20260101-000000-aaaa: limited to 2 processors, as a stand-in"
    )
    assert tables.title(run()) == "20260101-000000-aaaa: Chip, 2 cores, 8 GB, Linux"


def test_markdown_and_csv_hold_the_same_speed() -> None:
    done = with_speeds([20, 30])
    assert "| m | decode 4 at 16 | 25.00 |" in tables.markdown(tables.speed(done))
    speeds = [line for line in tables.csv_rows(done) if "tokens_per_second" in line]
    assert speeds[0][-6:] == ["2", "25", "7.07107", "25", "20.5", "29.5"]
