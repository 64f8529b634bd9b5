"""A run in the format of `llama-bench -o json`, so that the tools around llama.cpp can read it.

Key names and types are those of llama.cpp's tools/llama-bench/llama-bench.cpp (test::get_fields, get_field_type).
Values that we do not know are empty or 0, as llama-bench writes values that do not apply. Batches of several answers
have no key there and are left out.
"""

from __future__ import annotations

from typing import Any

from localqwen.bench.history import Benchmark
from localqwen.bench.samples import Row, Subject, rows
from localqwen.models.fit import BATCH


def tests(run: Benchmark) -> list[dict[str, Any]]:
    """Return one object for each test of raw speed with a single answer."""
    wanted = [row for row in rows(run.samples) if row.test.kind in ("prefill", "decode") and row.test.batch == 1]
    return [_test(run, row, run.subject(row.subject)) for row in wanted]


def _test(run: Benchmark, row: Row, subject: Subject) -> dict[str, Any]:
    seconds, speed = row.metrics["seconds"], row.metrics["tokens_per_second"]
    return {
        **_build(run, subject),
        **_settings(subject),
        "n_prompt": row.test.prompt,
        "n_gen": row.test.generate,
        "n_depth": row.test.depth,
        "test_time": run.created.replace("+00:00", "Z"),
        "avg_ns": round(seconds.mean * 1e9),
        "stddev_ns": round(seconds.deviation * 1e9),
        "avg_ts": speed.mean,
        "stddev_ts": speed.deviation,
        "samples_ns": [round(sample.values["seconds"] * 1e9) for sample in row.samples],
        "samples_ts": [sample.values["tokens_per_second"] for sample in row.samples],
    }


def _build(run: Benchmark, subject: Subject) -> dict[str, Any]:
    package = "llama_cpp_python" if subject.engine == "llama.cpp" else "mlx"
    return {
        "build_commit": f"{package} {run.versions.get(package, '')}".strip(),
        "build_number": 0,
        "cpu_info": run.machine["chip"],
        "gpu_info": "",
        "backends": "CPU" if subject.engine == "llama.cpp" else subject.engine,
        "model_filename": subject.file,
        "model_type": f"{subject.label} {subject.quant}".strip(),
        "model_size": subject.bytes,
        "model_n_params": subject.parameters,
    }


def _settings(subject: Subject) -> dict[str, Any]:
    """Return our engine's settings, if llama-bench has flags for them (benchmarks/README.md says why they differ from
    its defaults)."""
    batch = subject.settings.get("batch", BATCH)
    return {
        "n_batch": batch,
        "n_ubatch": batch,
        "n_threads": subject.threads,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 0,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": -1,
        "n_cpu_moe": 0,
        "split_mode": "layer",
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": int(bool(subject.settings.get("flash_attention"))),
        "devices": "auto",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": "mmap",
        "lazy_mode": "auto",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": bool(subject.settings.get("use_extra_bufts", True)),
        "fit_target": 0,
        "fit_min_ctx": 0,
    }
