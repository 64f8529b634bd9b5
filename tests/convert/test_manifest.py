"""The manifest beside a converted file or folder: what it says is true, and it goes where the model goes."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from resolved import file_of

import convert
from convert.output import manifest
from localqwen import __version__
from localqwen.errors import ConversionError
from localqwen.models import remove, store
from localqwen.models.names import LocalPath


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source", shards=3)


def described(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_gguf_file_says_what_it_was_made_of(source: Path, tmp_path: Path) -> None:
    """Source, recipe, versions, date; length and sha256 of every file that was read, and of the one written."""
    out = tmp_path / "a.gguf"
    started = datetime.now(UTC).replace(microsecond=0)
    convert.convert(source, out, quant="q4_k_m", threads=1)
    found = json.loads((tmp_path / "a.gguf.json").read_text())
    assert found == manifest.read(out)
    assert found["source"] == str(source)
    assert found["recipe"] == {"format": "gguf", "quant": "q4_k_m"}
    assert found["inputs"] == {path.name: described(path) for path in source.iterdir()}
    assert found["outputs"] == {"a.gguf": described(out)}
    assert found["versions"] == {
        "localqwen": __version__,
        "llama-cpp-python": metadata.version("llama-cpp-python"),
        "gguf": metadata.version("gguf"),
    }
    assert started <= datetime.fromisoformat(found["date"]) <= datetime.now(UTC)
    assert found["quality"] == {}


def test_an_mlx_folder_says_what_it_was_made_of(source: Path, tmp_path: Path) -> None:
    """Every file of the folder but the manifest itself is among the outputs."""
    pytest.importorskip("mlx.core")
    out = tmp_path / "model"
    report = convert.convert_to_mlx(source, out, recipe="mixed_3_6", group_size=32)
    found = json.loads((out / "localqwen.json").read_text())
    assert found["recipe"] == {
        "format": "mlx", "group_size": 32, "bits": 3, "mode": "affine", "recipe": "mixed_3_6",
    }  # fmt: skip
    assert found["inputs"] == {path.name: described(path) for path in source.iterdir()}
    files = [path for path in out.iterdir() if path.name != "localqwen.json"]
    assert found["outputs"] == {path.name: described(path) for path in files}
    assert report.bytes == sum(path.stat().st_size for path in files)
    assert found["versions"] == {"localqwen": __version__, "mlx": metadata.version("mlx")}


def test_the_snapshot_of_a_hub_is_named_by_repository_and_revision() -> None:
    """Both hubs' caches are laid out so; another folder is named by its whole path."""
    cache = Path("/cache/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca")
    assert manifest.source_name(cache) == "Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca"
    assert manifest.source_name(Path("/models/Qwen3-0.6B")) == "/models/Qwen3-0.6B"
    assert Path(manifest.source_name(Path("Qwen3-0.6B"))).is_absolute()


def test_large_files_of_a_hubs_cache_have_the_digest_that_the_hub_declares(source: Path, tmp_path: Path) -> None:
    """Their blob is named by it, and the manifest says so; small files lie under another kind of name."""
    blobs = tmp_path / "models--Qwen--Tiny" / "blobs"
    snapshot = tmp_path / "models--Qwen--Tiny" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    expected = {}
    for path in sorted(source.iterdir()):
        digest = described(path)
        large = path.suffix == ".safetensors"
        blob = path.rename(blobs / (str(digest["sha256"]) if large else hashlib.sha1(path.name.encode()).hexdigest()))
        (snapshot / path.name).symlink_to(blob)
        expected[path.name] = digest | ({"declared": True} if large else {})
    convert.convert(snapshot, tmp_path / "a.gguf", quant="q8_0", threads=1)
    found = manifest.read(tmp_path / "a.gguf")
    assert found["inputs"] == expected
    assert found["source"] == "Qwen/Tiny@0123"


def test_files_that_the_hubs_client_put_into_a_folder_have_the_digest_that_it_noted(
    source: Path, tmp_path: Path
) -> None:
    """`hf download --local-dir` notes revision, digest and time; a file that was written to since is hashed."""
    expected = {}
    notes = source / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in source.iterdir() if path.is_file())):
        large = path.suffix == ".safetensors"
        older = large and number % 2 == 0
        noted = path.stat().st_mtime - (60 if older else 0)
        etag = "ab" * 32 if large else "cd" * 20
        (notes / f"{path.name}.metadata").write_text(f"0123\n{etag}\n{noted}\n")
        believed = {"bytes": path.stat().st_size, "sha256": etag, "declared": True}
        expected[path.name] = believed if large and not older else described(path)
    assert {"declared" in each for each in expected.values()} == {True, False}
    convert.convert(source, tmp_path / "a.gguf", quant="q8_0", threads=1)
    assert manifest.read(tmp_path / "a.gguf")["inputs"] == expected


def test_measured_quality_is_added_and_the_rest_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    convert.convert(source, out, quant="q8_0", threads=1)
    before = manifest.read(out)
    manifest.record_quality(out, {"perplexity": 12.5})
    manifest.record_quality(out, {"kl_divergence": 0.01, "perplexity": 12.25})
    assert manifest.read(out) == before | {"quality": {"perplexity": 12.25, "kl_divergence": 0.01}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "a.gguf.json", "source"]


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_quality_needs_a_manifest(text: str | None, tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    if text is not None:
        manifest.file_of(model).write_text(text)
    with pytest.raises(ConversionError) as caught:
        manifest.record_quality(model, {"perplexity": 1.0})
    assert "a.gguf.json" in caught.value.message
    assert caught.value.hint


def test_a_replaced_file_has_a_new_manifest(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    convert.convert(source, out, quant="q8_0", threads=1)
    manifest.record_quality(out, {"perplexity": 12.5})
    convert.convert(source, out, quant="q4_0", threads=1, force=True)
    assert manifest.read(out)["quality"] == {}
    assert manifest.read(out)["outputs"] == {"a.gguf": described(out)}


def test_what_is_converted_into_the_cache_has_one_and_rm_takes_both(source: Path) -> None:
    file = file_of(str(source))
    beside = store.manifest(file)
    assert beside == manifest.file_of(file)
    assert manifest.read(file)["outputs"] == {file.name: described(file)}
    both = file.stat().st_size + beside.stat().st_size
    removed = remove.remove(LocalPath(file))
    assert removed.files == (file, beside)
    assert removed.freed_bytes == both
    assert not file.exists()
    assert not beside.exists()


def test_a_gguf_file_in_the_checkpoints_own_folder_does_not_make_it_another(source: Path) -> None:
    """The manifest lies beside it as JSON, and is no part of the checkpoint."""
    before = file_of(str(source))
    convert.convert(source, source / "a.gguf", quant="q4_0", threads=1)
    assert file_of(str(source)) == before
