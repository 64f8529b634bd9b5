"""Quality of conversions: the numbers against their definitions, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint

import convert
from localqwen import engines
from localqwen.bench import quality
from localqwen.bench.quality import Reference, compare
from localqwen.cli import main
from localqwen.errors import UsageError
from localqwen.models import converted, store

TEXT = "What is 17 + 25? <think>\n17 + 25 = 42\n</think>\n\nThe answer is 42, naïvely. " * 30


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, demo = tmp_path_factory.mktemp("quality"), converted.demo_checkpoint()
    return {
        quant: converted.convert(demo, folder / f"{quant}.gguf", quant=quant, name="Demo")
        for quant in ("bf16", "q8_0", "q4_k_m")
    }


def opened(path: Path) -> engines.Engine:
    return engines.open(path, context_length=1024, threads=1)


@pytest.fixture(scope="module")
def reference(files: dict[str, Path]) -> Iterator[Reference]:
    engine = opened(files["bf16"])
    with Reference(engine, TEXT) as made:
        engine.close()
        yield made


def log_probabilities(path: Path, windows: list[list[int]]) -> list[np.ndarray]:
    """In 64 bit, window by window, by the definition."""
    engine, result = opened(path), []
    for window in windows:
        logits = np.concatenate(list(engine.evaluate(window))).astype(np.float64)
        result.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    engine.close()
    return result


def test_the_numbers_are_those_of_the_definitions(reference: Reference, files: dict[str, Path]) -> None:
    engine = opened(files["q4_k_m"])
    measured = compare(reference, engine)
    engine.close()
    assert [len(window) for window in reference.windows][:2] == [512, 512]
    true, other = (log_probabilities(files[quant], reference.windows) for quant in ("bf16", "q4_k_m"))
    divergence = np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for p, q in zip(true, other, strict=True)])
    assert measured.tokens == len(divergence) == sum(map(len, reference.windows))
    assert measured.kl_mean == pytest.approx(divergence.mean(), rel=1e-3)
    assert measured.kl_p99 == pytest.approx(np.quantile(divergence, 0.99), rel=1e-3)
    same = np.concatenate([p.argmax(axis=1) == q.argmax(axis=1) for p, q in zip(true, other, strict=True)])
    assert measured.top1 == same.mean()
    for ours, theirs in ((measured.reference_perplexity, true), (measured.perplexity, other)):
        said = [
            block[position, token]
            for window, block in zip(reference.windows, theirs, strict=True)
            for position, token in enumerate(window[1:])
        ]
        assert ours == pytest.approx(np.exp(-np.mean(said)), rel=1e-4)


def test_a_model_is_itself_and_fewer_bits_are_further_away(reference: Reference, files: dict[str, Path]) -> None:
    found = {}
    for quant, path in files.items():
        engine = opened(path)
        found[quant] = compare(reference, engine)
        engine.close()
    assert found["bf16"].kl_mean == pytest.approx(0, abs=1e-6)
    assert found["bf16"].top1 == 1
    assert found["bf16"].perplexity == pytest.approx(found["bf16"].reference_perplexity)
    assert 0 < found["q8_0"].kl_mean < found["q4_k_m"].kl_mean < 1
    assert found["q8_0"].top1 > found["q4_k_m"].top1


def test_every_token_is_read_once_and_told(files: dict[str, Path]) -> None:
    engine, seen = opened(files["q8_0"]), []
    text = quality.bundled_text()
    with Reference(engine, text, lambda done, total: seen.append((done, total))) as made:
        engine.close()
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (sum(map(len, made.windows)),) * 2


def test_models_of_different_vocabularies_and_texts_of_nothing_are_refused(
    reference: Reference, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    convert.convert(make_checkpoint(tmp_path / "other"), other, quant="q8_0", threads=1)
    engine = opened(other)
    with pytest.raises(UsageError, match="different vocabularies"):
        compare(reference, engine)
    with pytest.raises(UsageError, match="less than two tokens"):
        Reference(engine, "a")
    engine.close()


def test_a_conversion_is_measured_across_engines_and_its_manifest_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo, text = converted.demo_checkpoint(), tmp_path / "text"
    text.write_text(TEXT[:240])
    file, folder = tmp_path / "demo.gguf", tmp_path / "demo-mlx"
    assert not main(["convert", str(demo), "--quant", "q4_k_m", "--out", str(file), "--verify", "--json"])
    report = json.loads(capsys.readouterr().out)
    kept = json.loads(Path(f"{file}.json").read_text())["quality"]
    assert kept == report["quality"]
    assert 0 < kept["kl_mean"] < 1
    assert not main(["convert", str(demo), "--to", "mlx", "--bits", "8", "--out", str(folder)])
    capsys.readouterr()
    assert not main(["quality", str(demo), str(file), str(folder), "--text", str(text), "--json"])
    gguf, mlx = json.loads(capsys.readouterr().out)["models"]
    assert (gguf["engine"], mlx["engine"]) == ("llama.cpp", "mlx")
    assert mlx["kl_mean"] < gguf["kl_mean"]  # 8 bits on the other engine, against 4 on the same
    assert mlx["top1"] > gguf["top1"]
    assert not list((store.cache_dir() / "quality").iterdir())


def test_a_text_that_is_none_and_a_model_that_is_none_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert main(["quality", "demo", "demo", "--text", str(tmp_path / "bytes")]) == 2
    assert "hint: give a UTF-8 text file" in capsys.readouterr().err
    assert main(["quality", "demo", "demmo"]) == 1
    assert "did you mean demo" in capsys.readouterr().err
    assert main(["quality", "demo"]) == 2
