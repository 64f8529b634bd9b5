"""What conversion refuses, what it says then, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    Shape,
    config,
    make_checkpoint,
    tokenizer,
    tokenizer_config,
    weights,
    write_json,
    write_safetensors,
    write_weights,
)

import convert
from convert.output import manifest
from localqwen.errors import CheckpointError, ConversionError, FormatError, OutputError

ROOT = Path(__file__).parents[2]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "a.gguf"


def refused(source: Path, out: Path, kind: type[ConversionError], *words: str, **options: Any) -> ConversionError:
    """Converts, expects an error of `kind` that has a hint and says all `words`, and a folder left as it was."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    with pytest.raises(kind) as caught:
        convert.convert(source, out, **{"quant": "q8_0", "threads": 1, **options})
    assert type(caught.value) in (kind, FormatError)  # a reader's error is a CheckpointError
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else []) == before
    return caught.value


def test_an_unknown_quantization_lists_the_known(source: Path, out: Path) -> None:
    """The hint names every quantization."""
    error = refused(source, out, ConversionError, "q9_9", quant="q9_9")
    assert all(quant in error.hint for quant in convert.QUANTIZATIONS)


# The folder


def test_sources_that_are_no_checkpoint(tmp_path: Path, source: Path, out: Path) -> None:
    """A missing path, a file, an empty folder: each is told apart."""
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(tmp_path / "nowhere", out, CheckpointError, "nowhere does not exist")
    refused(source / "config.json", out, CheckpointError, "config.json is a file")
    refused(empty, out, CheckpointError, "has no config.json")


def test_pickled_weights_are_never_loaded(source: Path, out: Path) -> None:
    """A folder with .bin weights only is refused, and the pickle is not run."""
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    refused(source, out, CheckpointError, "pytorch_model.bin", "never loaded")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'"' + b"x" * 100])
def test_json_files_that_are_none(name: str, text: bytes, source: Path, out: Path) -> None:
    """Cut, of another kind, not UTF-8, nested without end."""
    (source / name).write_bytes(text)
    refused(source, out, CheckpointError, name)


def test_missing_tokenizer(source: Path, out: Path) -> None:
    """Without tokenizer.json there is nothing to talk with."""
    (source / "tokenizer.json").unlink()
    refused(source, out, CheckpointError, "has no tokenizer.json")


# The config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ["LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"intermediate_size": 500}, ["mlp.down_proj", "[256, 512]", "[256, 500]"]),
        ({"num_hidden_layers": 3}, ["11 tensors are missing", "model.layers.2.self_attn.k_proj.weight"]),
        ({"num_hidden_layers": 1}, ["11 tensors do not belong", "model.layers.1."]),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, ["longrope", "yarn"]),
        ({"tie_word_embeddings": False}, ["1 tensors are missing", "lm_head.weight"]),
        ({"quantization_config": {"quant_method": "bitnet"}}, ["are quantized (bitnet)", "FP8", "AWQ", "GPTQ"]),
        ({"quantization_config": {"quant_method": "fp8"}}, ["says fp8", "no tensor is stored so"]),
        ({"quantization_config": [1]}, ["no known kind"]),
    ],
)
def test_configs_that_do_not_fit(change: dict[str, Any], words: list[str], source: Path, out: Path) -> None:
    """The error names what differs, and what is supported."""
    write_json(source / "config.json", config(Shape()) | change)
    refused(source, out, CheckpointError, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts": 5}, ["tensors do not belong to a Qwen3MoeForCausalLM", "experts.5."]),
        ({"moe_intermediate_size": 128}, ["experts.0.down_proj", "[256, 256]", "[256, 128]"]),
    ],
)
def test_configs_of_a_mixture_that_do_not_fit(
    change: dict[str, Any], words: list[str], tmp_path: Path, out: Path
) -> None:
    """What GGUF's qwen3moe would silently compute differently is refused."""
    shape = Shape(layers=1, experts=6)
    source = make_checkpoint(tmp_path / "mixture", shape)
    write_json(source / "config.json", config(shape) | change)
    refused(source, out, CheckpointError, *words)


# The tensors


def test_missing_extra_and_integer_tensors_are_named(source: Path, out: Path) -> None:
    """One tensor too few, one too many, one of whole numbers."""
    tensors = weights(Shape())
    norm = tensors.pop("model.norm.weight")
    write_weights(source, tensors, "BF16")
    refused(source, out, CheckpointError, "1 tensors are missing: model.norm.weight")
    write_weights(source, {**tensors, "model.norm.weight": norm, "visual.patch.weight": norm}, "BF16")
    refused(source, out, CheckpointError, "1 tensors do not belong", "visual.patch.weight")
    write_safetensors(source / "model.safetensors", {**tensors, "model.norm.weight": norm}, "I16")
    refused(source, out, CheckpointError, "stored as I16", "BF16")


@pytest.mark.parametrize(("dtype", "value"), [("BF16", 0x7FC0), ("BF16", 0xFF80), ("F32", np.inf), ("F16", np.nan)])
@pytest.mark.parametrize("quant", ["bf16", "f16", "q4_k_m"])
def test_weights_that_are_no_numbers(dtype: str, value: float, quant: str, source: Path, out: Path) -> None:
    """NaN and infinity are told with the tensor's name, in matrices and in norms."""
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        tensors = weights(Shape(), dtype)
        tensors[name].flat[-1] = value
        write_weights(source, tensors, dtype)
        refused(source, out, CheckpointError, name, "NaN or infinite", quant=quant)


def test_weights_too_large_for_half_precision(source: Path, out: Path) -> None:
    """70,000 fits bf16 and f32, not f16 or the 16-bit scales of quantized blocks."""
    tensors = weights(Shape(), "F32")
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 7] = 70000
    write_weights(source, tensors, "F32")
    for quant in ("f16", "q8_0", "q4_k_m"):
        refused(source, out, CheckpointError, "q_proj", "65,504", quant=quant)
    assert convert.convert(source, out, quant="bf16", threads=1).path == out


# The safetensors files


def test_a_truncated_download(source: Path, out: Path) -> None:
    """The message has both sizes."""
    weights_file = source / "model.safetensors"
    size = weights_file.stat().st_size
    os.truncate(weights_file, size - 1000)
    refused(source, out, CheckpointError, "truncated", f"{size:,}", f"{size - 1000:,}")


# Shards


def reindexed(source: Path, change: Callable[[dict[str, str]], None]) -> None:
    """Applies `change` to the weight map of the index."""
    index = json.loads((source / INDEX).read_text())
    change(index["weight_map"])
    write_json(source / INDEX, index)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "sharded", shards=3)


def test_missing_shards_are_named(sharded: Path, out: Path) -> None:
    """An unfinished download."""
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, out, CheckpointError, "1 of 3 files", "model-00002-of-00003.safetensors")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "x.bin", "", "a\0b"])
def test_an_index_does_not_lead_out_of_the_folder(shard: str, sharded: Path, out: Path) -> None:
    """File names with folders in them, absolute ones, other kinds of file: refused before anything is opened."""
    reindexed(sharded, lambda weight_map: weight_map.update({"model.norm.weight": shard}))
    refused(sharded, out, CheckpointError, repr(shard), INDEX)


def test_an_index_that_disagrees_with_its_shards(sharded: Path, out: Path) -> None:
    """A tensor that is not where the index says, and one that the index does not know."""
    reindexed(sharded, lambda weight_map: weight_map.pop("model.norm.weight"))
    refused(sharded, out, CheckpointError, "disagree", "model.norm.weight")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map(index: dict[str, Any], sharded: Path, out: Path) -> None:
    """The index must map names to files."""
    write_json(sharded / INDEX, index)
    refused(sharded, out, CheckpointError, "weight_map")


def test_links_in_a_circle(source: Path, out: Path) -> None:
    """A weight file that is a link to itself is a file that is not there."""
    weights_file = source / "model.safetensors"
    weights_file.unlink()
    weights_file.symlink_to(weights_file)
    refused(source, out, CheckpointError, "model.safetensors")


# The tokenizer


def broken_tokenizer(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    result = tokenizer()
    change(result)
    return result


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another model": (lambda t: t["model"].update(type="Unigram"), "no BPE"),
    "no vocabulary": (lambda t: t["model"].pop("vocab"), "no BPE"),
    "another split": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\s+"}),
        "splits text",
    ),
    "no split": (lambda t: t.update(pre_tokenizer=None), "splits text"),
    "an id beyond the embedding": (lambda t: t["model"]["vocab"].update(zebra=320), "only 320 rows"),
    "an id twice": (lambda t: t["model"]["vocab"].update(zebra=0), "the id 0"),
    "an id that is no number": (lambda t: t["model"]["vocab"].update(zebra="x"), "the id 'x'"),
    "an id below zero": (lambda t: t["model"]["vocab"].update(zebra=-1), "the id -1"),
    "an added token over another": (lambda t: t["added_tokens"][0].update(id=5), "the id 5"),
    "an added token without text": (lambda t: t["added_tokens"][0].pop("content"), "without text"),
    "a merge of three": (lambda t: t["model"]["merges"].append("a b c"), "merge 12"),
    "a merge of unknown tokens": (lambda t: t["model"]["merges"].append(["zeb", "ra"]), "merge 12"),
    "a merge of lists": (lambda t: t["model"]["merges"].append([[], []]), "merge 12"),
    "merges that are no list": (lambda t: t["model"].update(merges=7), "merges is not a list"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers_that_would_speak_wrongly(case: str, source: Path, out: Path) -> None:
    """A tokenizer that disagrees with itself or with the embedding is refused, not padded over."""
    change, words = TOKENIZERS[case]
    write_json(source / "tokenizer.json", broken_tokenizer(change))
    refused(source, out, CheckpointError, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chat_template": 3}, "chat_template"),
        ({"added_tokens_decoder": []}, None),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"999": {"content": "<x>"}}}, "only 320 rows"),
        ({"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}}}, "the id"),
    ],
)
def test_tokenizer_settings_that_do_not_fit(change: dict[str, Any], words: str | None, source: Path, out: Path) -> None:
    """tokenizer_config.json is checked like tokenizer.json; an empty list of added tokens is none."""
    write_json(source / "tokenizer_config.json", tokenizer_config() | change)
    if words is None:
        assert convert.convert(source, out, quant="q8_0", threads=1).path == out
    else:
        refused(source, out, CheckpointError, words)


def test_a_model_without_end(source: Path, out: Path) -> None:
    """No end token anywhere: llama.cpp would silently take token 11."""
    write_json(source / "tokenizer_config.json", {})
    write_json(source / "config.json", {**config(Shape()), "eos_token_id": None})
    (source / "generation_config.json").unlink()
    refused(source, out, CheckpointError, "end token")


def test_half_a_character(source: Path, out: Path) -> None:
    """JSON can spell a lone surrogate; a GGUF file cannot hold it."""
    settings = json.dumps(tokenizer_config() | {"chat_template": "\ud83d"})
    (source / "tokenizer_config.json").write_text(settings)
    refused(source, out, CheckpointError, "surrogate")


# The target


def test_an_existing_file_stays(source: Path, out: Path) -> None:
    """Without force it is not touched; with force it is replaced."""
    out.write_bytes(b"precious")
    error = refused(source, out, OutputError, "exists")
    assert "--force" in error.hint
    assert out.read_bytes() == b"precious"
    convert.convert(source, out, quant="q8_0", force=True, threads=1)
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_failed_conversion_leaves_the_old_file(source: Path, out: Path) -> None:
    """Even with force, the old file goes only when the new one is whole."""
    out.write_bytes(b"precious")
    tensors = weights(Shape(), "F32")
    tensors["model.norm.weight"][0] = np.nan
    write_weights(source, tensors, "F32")
    refused(source, out, CheckpointError, "NaN", force=True)
    assert out.read_bytes() == b"precious"


def test_targets_that_cannot_be(source: Path, tmp_path: Path) -> None:
    """No such folder; a folder itself; a file of the checkpoint that is being read."""
    error = refused(source, tmp_path / "no" / "a.gguf", OutputError, "there is no folder")
    assert "mkdir -p" in error.hint
    refused(source, tmp_path, OutputError, "is a folder", force=True)
    before = (source / "model.safetensors").read_bytes()
    refused(source, source / "model.safetensors", OutputError, "part of the model", force=True)
    assert (source / "model.safetensors").read_bytes() == before


def test_too_little_space_is_told_before_writing(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has both numbers."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6 - 5, 5))
    size = convert.plan(source, "q8_0").size
    refused(source, out, OutputError, f"{size:,} bytes", "5 free")


CONVERTS_WITH_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import convert
from localqwen.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert.convert(Path(sys.argv[1]), Path(sys.argv[2]), quant="q8_0", threads=2)
except OutputError as error:
    print(error.message)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_disk_that_fills_up_while_writing(source: Path, out: Path) -> None:
    """The system refuses a write half-way: our error with the numbers, and no file."""
    result = child(CONVERTS_WITH_A_FULL_DISK, source, out)
    text, errors = result.communicate(timeout=300)
    assert f"{out.parent} takes no file of 1," in text, errors
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("every", [1, 500_000])
def test_a_disk_that_fails_behind_the_cache(
    every: int, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells it to the first sync only, and that is not the one at the end."""

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr("convert.output.hashing._SYNC_EVERY", every)
    monkeypatch.setattr("convert.output.hashing.write_back", failing)
    with pytest.raises(OutputError, match="the disk is broken"):
        convert.convert(source, out, quant="q8_0", threads=1)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_its_numbers(code: int, source: Path, out: Path) -> None:
    """Full only when the conversion is under way: what the space was checked for has gone to others."""

    def progress(_: convert.Progress) -> None:
        raise OSError(code, "no room")

    with pytest.raises(OutputError, match=r"is full: a\.gguf needs [\d,]+ bytes, [\d,]+ are free"):
        convert.convert(source, out, quant="q8_0", threads=1, progress=progress)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_conversion_cleans_up(interrupt: type[BaseException], source: Path, out: Path) -> None:
    """Ctrl-C, a signal turned into an exception, a failing progress bar: the part goes, the exception stays itself."""

    def progress(_: convert.Progress) -> None:
        assert [path.suffix for path in out.parent.iterdir()] == [".part"]
        raise interrupt

    with pytest.raises(interrupt):
        convert.convert(source, out, quant="q4_k_m", threads=2, progress=progress)
    assert list(out.parent.iterdir()) == []


CONVERTS_AND_WAITS = """
import sys, time
from pathlib import Path
import convert
def progress(_):
    print("writing", flush=True)
    time.sleep(600)
convert.convert(Path(sys.argv[1]), Path(sys.argv[2]), quant="q8_0", threads=1, progress=progress)
"""


def child(script: str, *arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_leaves_no_file_and_the_next_run_cleans_up(source: Path, out: Path) -> None:
    """kill -9 leaves a .part, never the final name; a run beside a living one does not touch the other's part."""
    running = child(CONVERTS_AND_WAITS, source, out)
    assert running.stdout is not None
    assert running.stdout.readline() == "writing\n"
    (part,) = out.parent.iterdir()
    assert part.name.startswith(f"a.gguf.{running.pid}-")
    convert.convert(source, out, quant="q8_0", threads=1)
    assert part.exists()
    out.unlink()
    manifest.file_of(out).unlink()

    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert list(out.parent.iterdir()) == [part]
    convert.convert(source, out, quant="q8_0", threads=1)
    assert sorted(out.parent.iterdir()) == [out, manifest.file_of(out)]


def test_only_our_own_stale_parts_go(source: Path, out: Path) -> None:
    """A part of this target that nobody wrote to for a day goes; others' files and other targets' parts stay."""
    ours = out.with_name(f"a.gguf.{os.getpid()}-0123abcd.part")
    others = [out.with_name(name) for name in ("b.gguf.999999999-0123abcd.part", "a.gguf.part", "a.gguf.1-x.part")]
    for path in (ours, *others):
        path.write_bytes(b"")
    os.utime(ours, (time.time() - 90_000, time.time() - 90_000))
    convert.convert(source, out, quant="q8_0", threads=1)
    assert sorted(out.parent.iterdir()) == sorted([out, manifest.file_of(out), *others])


def test_a_target_that_appears_meanwhile_stays(source: Path, out: Path) -> None:
    """Two runs to one target: without force the later one replaces neither the earlier one's file nor its manifest."""

    def progress(_: convert.Progress) -> None:
        out.write_bytes(b"the other run's")
        manifest.file_of(out).write_bytes(b"the other run's")

    with pytest.raises(OutputError, match="exists"):
        convert.convert(source, out, quant="q8_0", threads=1, progress=progress)
    assert [path.read_bytes() for path in out.parent.iterdir()] == [b"the other run's"] * 2


def test_the_package_says_whose_it_is() -> None:
    """Callers tell our package from a foreign `convert` by this."""
    assert convert.OWNER == "localqwen"


def test_an_older_spelling_stays_a_name_of_the_package() -> None:
    assert convert.dequantise is convert.dequantize
    assert {"dequantise", "dequantize"} < set(convert.__all__)
