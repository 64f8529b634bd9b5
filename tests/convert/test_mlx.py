"""Conversion to MLX: mlx_lm.convert itself is the reference, for every byte but the tokenizer's."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Shape, config, make_checkpoint, weights, write_json, write_weights

import convert
from convert.gguf import architecture
from convert.mlx import layout as mlx_layout
from convert.mlx import schemes as mlx_schemes
from convert.mlx.planning import PlannedWeight
from convert.output import shards
from localqwen.errors import CheckpointError, ConversionError, EngineUnavailable, OutputError, UsageError
from localqwen.formats import qwen3_config
from localqwen.models import converted, registry

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

ROOT = Path(__file__).parents[2]
DENSE = Shape(layers=9, feed_forward=256)  # every branch of "more bits for some layers"
MIXTURE = Shape(layers=3, experts=4, experts_used=2, tied=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model"


def mlx_lm_converts(source: Path, out: Path, **options: Any) -> None:
    import importlib

    importlib.import_module("mlx_lm.convert").convert(str(source), str(out), **options)


def tensors(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        result |= mx.load(str(file))
    return result


def assert_same_model(ours: Path, theirs: Path) -> None:
    found, wanted = tensors(ours), tensors(theirs)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bool((found[name].view(mx.uint8) == tensor.view(mx.uint8)).all()), name
    for name in ("config.json", "model.safetensors.index.json"):
        assert (ours / name).read_text() == (theirs / name).read_text(), name


#: Our options, mlx-lm's.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a copy": ({}, {}),
    "4 bit": ({"bits": 4}, {"quantize": True}),
    "as the makers": ({"bits": 4, "group_size": 128}, {"quantize": True, "q_bits": 4, "q_group_size": 128}),
    **{f"{bits} bit": ({"bits": bits, "group_size": 32}, {"quantize": True, "q_bits": bits, "q_group_size": 32})
       for bits in (2, 3, 5, 6, 8)},
    **{recipe: ({"recipe": recipe},
                {"quantize": True, "q_bits": low, "q_group_size": 64, "quant_predicate": recipe})
       for recipe, (low, _) in mlx_schemes.RECIPES.items()},
    **{mode: ({"mode": mode}, {"quantize": True, "q_mode": mode}) for mode in mlx_schemes.FIXED_MODES},
}  # fmt: skip


#: For experts, of each way of packing one.
OF_EXPERTS = ("a copy", "4 bit", "as the makers", "mixed_2_6", "mixed_3_4", "mxfp4")


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_every_option_gives_the_bits_of_mlx_lm(
    kind: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors, config and index of our one pass, in slices of a few rows, and of mlx-lm's whole model are the same."""
    monkeypatch.setattr("convert.mlx.arrays.SLICE", 5000)
    source = make_checkpoint(tmp_path / kind, DENSE if kind == "dense" else MIXTURE, shards=2)
    for name in OPTIONS if kind == "dense" else OF_EXPERTS:
        ours, theirs = OPTIONS[name]
        convert.convert_to_mlx(source, out.with_name(name), **ours)
        mlx_lm_converts(source, tmp_path / name, **theirs)
        assert_same_model(out.with_name(name), tmp_path / name)


def test_a_copy_of_float32_holds_the_nearest_bfloat16(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint(tmp_path / "source", dtype="F32")
    write_json(source / "config.json", config(Shape()) | {"torch_dtype": "float32"})
    convert.convert_to_mlx(source, out)
    exact = tensors(source)
    for name, tensor in tensors(out).items():
        assert tensor.dtype == mx.bfloat16
        assert mx.array_equal(tensor, exact[name].astype(mx.bfloat16)), name


CHECKPOINTS = {
    "f32 that config.json calls bf16": (Shape(), "F32", {}),
    "f32": (Shape(), "F32", {"torch_dtype": None}),
    "f16": (Shape(), "F16", {"torch_dtype": "float16"}),
    "rows of 96, which 64 does not divide": (Shape(hidden=96, head_dim=32, heads=3, kv_heads=1), "BF16", {}),
    "no end tokens but config.json's": (Shape(), "BF16", {"eos_token_id": 3}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_kind_of_checkpoint_gives_the_bits_of_mlx_lm(name: str, tmp_path: Path, out: Path) -> None:
    """Other types are cast as mlx-lm casts them, rows that the groups do not divide stay whole."""
    shape, dtype, change = CHECKPOINTS[name]
    source = make_checkpoint(tmp_path / "source", shape, dtype=dtype)
    write_json(source / "config.json", config(shape) | change)
    if "eos_token_id" in change:
        (source / "generation_config.json").unlink()
    report = convert.convert_to_mlx(source, out, bits=4)
    mlx_lm_converts(source, tmp_path / "theirs", quantize=True)
    assert_same_model(out, tmp_path / "theirs")
    assert bool(report.left_whole) == ("96" in name)
    assert ("model.embed_tokens" in report.left_whole) == ("96" in name)


def test_shards_are_cut_where_mlx_lm_cuts_them(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 100 kB in the place of 5 GB: the same files, each with the same tensors."""
    import mlx_lm.utils

    class Limit(int):
        def __lshift__(self, _: int) -> int:
            return int(self)

    limited = functools.partial(mlx_lm.utils.make_shards, max_file_size_gb=Limit(100_000))
    monkeypatch.setattr(mlx_lm.utils, "make_shards", limited)
    monkeypatch.setattr(shards, "MAX_SHARD", 100_000)
    convert.convert_to_mlx(source, out, bits=4)
    theirs = out.with_name("theirs")
    mlx_lm_converts(source, theirs, quantize=True)
    names = {path.name for path in theirs.glob("*.safetensors")}
    assert {path.name for path in out.glob("*.safetensors")} == names
    assert len(names) > 5
    assert_same_model(out, theirs)
    for name in names:
        assert mx.load(str(out / name)).keys() == mx.load(str(theirs / name)).keys()


def test_the_router_of_a_mixture_keeps_8_bits(tmp_path: Path, out: Path) -> None:
    """config.json says so by path, as mlx-lm does; experts are stacked; an own head stays."""
    source = make_checkpoint(tmp_path / "source", MIXTURE)
    convert.convert_to_mlx(source, out, bits=3)
    written = json.loads((out / "config.json").read_text())
    router = {"group_size": 64, "bits": 8}
    routers = {f"model.layers.{layer}.mlp.gate": router for layer in range(3)}
    assert written["quantization"] == {"group_size": 64, "bits": 3, "mode": "affine", **routers}
    assert written["quantization_config"] == written["quantization"]
    found = tensors(out)
    assert found["model.layers.2.mlp.switch_mlp.down_proj.weight"].shape == (4, 256, 256 * 3 // 32)
    assert found["model.layers.0.mlp.gate.weight"].shape == (4, 256 * 8 // 32)
    assert "lm_head.scales" in found


#: hidden, layers, heads, kv heads, feed-forward or experts' feed-forward, tied
SIZES = {
    "0.6b": (1024, 28, 16, 8, 3072, True),
    "1.7b": (2048, 28, 16, 8, 6144, True),
    "4b": (2560, 36, 32, 8, 9728, True),
    "8b": (4096, 36, 32, 8, 12288, False),
    "14b": (5120, 40, 40, 8, 17408, False),
    "32b": (5120, 64, 64, 8, 25600, False),
    "30b-a3b": (2048, 48, 32, 4, 768, False),
    "235b-a22b": (4096, 94, 64, 4, 1536, False),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_layout_has_the_sizes_that_models_toml_says(size: str) -> None:
    """4 bit in groups of 128 as the makers have it, and the copy: bytes of all tensors from the real dimensions."""
    hidden, layers, heads, kv_heads, feed_forward, tied = SIZES[size]
    mixture = {"experts": 128, "experts_used": 8, "expert_feed_forward": feed_forward} if "-a" in size else {}
    shape = Shape(hidden, feed_forward, layers, heads, kv_heads, 128, 151936, tied, **mixture)
    model = registry.models()[f"qwen3:{size}"]
    for name, scheme in (("4bit", mlx_schemes.scheme(4, 128)), ("bf16", mlx_schemes.scheme())):
        stored = [
            tensor
            for weight in mlx_layout.weights(qwen3_config.parse(config(shape)))
            for packing in [mlx_schemes.packing(scheme, weight.path, weight.shape, layers)]
            for tensor in PlannedWeight(weight, packing, "BF16").stored
        ]
        assert sum(tensor.bytes for tensor in stored) == model.mlx[name].bytes
        assert all(sum(tensor.bytes for tensor in part) <= 5 << 30 for part in shards.cut(stored, 5 << 30))


def test_a_duplicate_head_is_dropped(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint(tmp_path / "source", duplicate_head=True)
    convert.convert_to_mlx(source, out, bits=4)
    assert not [name for name in tensors(out) if "lm_head" in name]
    assert "lm_head" not in (out / "model.safetensors.index.json").read_text()


def test_what_belongs_to_a_model_travels_along_byte_for_byte(source: Path, out: Path) -> None:
    """Tokenizer, template and licence are copied as they are, oddly spaced JSON too; what else lies there is not."""
    contents = {
        "vocab.json": b'{"a":  1}\r\n',
        "merges.txt": b"#version: 0.2\n",
        "added_tokens.json": b"{ }",
        "special_tokens_map.json": b"{}",
        "chat_template.jinja": "{{ 'é' }}\n".encode(),
        "LICENSE": b"Apache",
    }
    for name, content in contents.items():
        (source / name).write_bytes(content)
    (source / "README.md").write_text("of another model")
    convert.convert_to_mlx(source, out, bits=4)
    for name in (*contents, "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert not (out / "README.md").exists()


def test_the_demo_answers_from_its_4_bits(out: Path) -> None:
    """mlx-lm loads the folder and generates: the built-in model still adds."""
    import mlx_lm

    convert.convert_to_mlx(converted.demo_checkpoint(), out, bits=4)
    model, tokenizer, *_ = mlx_lm.load(str(out))
    question = [{"role": "user", "content": "What is 2 + 3?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, enable_thinking=True)
    answer = mlx_lm.generate(model, tokenizer, prompt=prompt, max_tokens=100)
    assert "5" in answer.partition("</think>")[2]


def test_a_mixture_loads_and_generates(tmp_path: Path, out: Path) -> None:
    import mlx_lm

    source = make_checkpoint(tmp_path / "source", MIXTURE)
    convert.convert_to_mlx(source, out, recipe="mixed_4_6", group_size=32)
    model, tokenizer, *_ = mlx_lm.load(str(out))
    assert [layer.mlp.switch_mlp.down_proj.bits for layer in model.model.layers] == [4, 4, 6]
    pieces = list(mlx_lm.stream_generate(model, tokenizer, prompt=[1, 2, 3], max_tokens=4))
    assert 1 <= len(pieces) <= 4
    assert np.isfinite(np.array(pieces[0].logprobs.astype(mx.float32))).all()


# What is refused


def refused(source: Path, out: Path, kind: type[Exception], *words: str, **options: Any) -> Any:
    """Converts to 4 bit, expects an error of `kind` with a hint and all `words`; the folder stays as it was."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind) as caught:
        convert.convert_to_mlx(source, out, **{"bits": 4, **options})
    assert type(caught.value) is kind
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    assert sorted(out.parent.iterdir()) == before
    return caught.value


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"bits": 7}, "2, 3, 4, 5, 6, 8, or 16"),
        ({"bits": 4, "group_size": 48}, "32, 64, 128"),
        ({"bits": None, "group_size": 64}, "--bits 4 --group-size 64"),
        ({"bits": 16, "group_size": 64}, "--bits 4 --group-size 64"),
        ({"bits": None, "mode": "nf4"}, "mxfp4"),
        ({"bits": 8, "mode": "mxfp4"}, "--mode mxfp4 alone"),
        ({"bits": None, "group_size": 64, "mode": "nvfp4"}, "--mode nvfp4 alone"),
        ({"bits": None, "recipe": "mixed_9_9"}, "mixed_2_6"),
        ({"bits": 8, "recipe": "mixed_4_6"}, "--recipe mixed_4_6 without --bits"),
        ({"bits": None, "recipe": "mixed_4_6", "mode": "mxfp4"}, "without --mode"),
    ],
)
def test_combinations_that_mlx_does_not_have(options: dict[str, Any], hint: str, source: Path, out: Path) -> None:
    """A wrong use is told before anything is read, with what would be right."""
    assert hint in refused(source, out, UsageError, **options).hint


def test_sources_that_cannot_be_converted(source: Path, out: Path, tmp_path: Path) -> None:
    """No checkpoint; one without tokenizer; one that is quantized already, by ourselves for instance."""
    refused(tmp_path, out, CheckpointError, "has no config.json")
    convert.convert_to_mlx(source, tmp_path / "quantized", bits=4)
    assert "--dequantize" in refused(tmp_path / "quantized", out, CheckpointError, "a folder for MLX").hint
    (source / "tokenizer.json").unlink()
    refused(source, out, CheckpointError, "has no tokenizer.json")


@pytest.mark.parametrize("options", [{}, {"bits": None}, {"bits": None, "mode": "mxfp8"}])
def test_weights_that_are_no_numbers_are_named(options: dict[str, Any], source: Path, out: Path) -> None:
    """NaN passes mx.quantize without a word; here its tensor is told, and nothing is left."""
    damaged = weights(Shape(), "BF16")
    damaged["model.layers.1.mlp.up_proj.weight"][3, 5] = 0x7FC0
    write_weights(source, damaged, "BF16")
    refused(source, out, CheckpointError, "model.layers.1.mlp.up_proj.weight", "NaN", **options)


def test_groups_that_divide_nothing_or_not_the_router(tmp_path: Path, out: Path) -> None:
    """mlx-lm would call a copy quantized, and fail on the router without saying which weight it is."""
    odd = Shape(hidden=80, feed_forward=80, heads=1, kv_heads=1, head_dim=80)
    refused(make_checkpoint(tmp_path / "odd", odd), out, ConversionError, "groups of 64 divide no weight")
    narrow = Shape(hidden=96, experts=4, expert_feed_forward=64)
    mixture = make_checkpoint(tmp_path / "mixture", narrow)
    refused(mixture, out, ConversionError, "model.layers.0.mlp.gate", "96", group_size=32)
    convert.convert_to_mlx(mixture, out, recipe="mixed_4_6", group_size=32)  # what the hint says


def test_where_mlx_is_missing_the_hint_says_what_to_install(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convert.mlx import arrays

    monkeypatch.setitem(sys.modules, "mlx.core", None)
    arrays.library.cache_clear()
    assert "pip install" in refused(source, out, EngineUnavailable, "mlx").hint


# The target


def test_only_what_a_conversion_made_is_replaced(source: Path, out: Path, tmp_path: Path) -> None:
    """Existing folders stay without force; with it, only a converted one goes. An empty one is filled."""
    out.mkdir()
    convert.convert_to_mlx(source, out, bits=8)
    before = (out / "model.safetensors").read_bytes()
    assert "--force" in refused(source, out, OutputError, "exists").hint
    convert.convert_to_mlx(source, out, bits=4, force=True)
    assert len((out / "model.safetensors").read_bytes()) < len(before)
    assert list(out.parent.iterdir()) == [out]
    refused(source, source, OutputError, "no conversion wrote it", force=True)
    refused(source, tmp_path, OutputError, "no conversion wrote it", force=True)
    refused(source, source / "config.json", OutputError, "is a file", force=True)
    copy = tmp_path / "copy"
    convert.convert_to_mlx(source, copy)
    refused(copy, copy, OutputError, "holds the checkpoint", force=True)


def test_a_failed_conversion_leaves_the_old_folder(source: Path, out: Path) -> None:
    convert.convert_to_mlx(source, out, bits=4)
    before = (out / "localqwen.json").read_bytes()
    damaged = weights(Shape(), "BF16")
    damaged["model.norm.weight"][0] = 0x7F80
    write_weights(source, damaged, "BF16")
    refused(source, out, CheckpointError, "infinite", force=True)
    assert (out / "localqwen.json").read_bytes() == before


CONVERTS_AND_WAITS = """
import sys, time
from pathlib import Path
import convert
def progress(_):
    print("writing", flush=True)
    time.sleep(600)
convert.convert_to_mlx(Path(sys.argv[1]), Path(sys.argv[2]), bits=4, progress=progress)
"""


def test_a_killed_run_leaves_no_folder_and_the_next_run_cleans_up(source: Path, out: Path) -> None:
    """kill -9 leaves a hidden folder, never the final name; a run beside a living one does not touch the other's."""
    running = subprocess.Popen(
        [sys.executable, "-c", CONVERTS_AND_WAITS, str(source), str(out)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "writing\n"
    (part,) = out.parent.iterdir()
    assert part.name.startswith(f".model.{running.pid}-")
    convert.convert_to_mlx(source, out, bits=4)
    assert part.exists()
    shutil.rmtree(out)

    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert list(out.parent.iterdir()) == [part]
    convert.convert_to_mlx(source, out, bits=4)
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_a_killed_run_had_set_aside_comes_back(source: Path, out: Path) -> None:
    """Killed between its two renames, --force leaves the old folder under a hidden name: the next run restores it."""
    convert.convert_to_mlx(source, out, bits=8)
    out.rename(out.with_name(".model.999999999-0123abcd.old"))
    other = out.with_name(f".model.{os.getpid()}-0123abcd.part")
    other.mkdir()
    damaged = weights(Shape(), "BF16")
    damaged["model.norm.weight"][0] = 0x7FC0
    write_weights(source, damaged, "BF16")
    with pytest.raises(CheckpointError, match="NaN"):
        convert.convert_to_mlx(source, out, bits=4)
    assert sorted(out.parent.iterdir()) == [other, out]
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 8


def test_a_folder_that_appears_meanwhile_stays(source: Path, out: Path) -> None:
    """Two runs to one target: without force the later one does not replace the earlier one's folder."""
    started = False

    def other_run(_: convert.Progress) -> None:
        nonlocal started
        if not started:
            started = True
            convert.convert_to_mlx(source, out, bits=8)

    with pytest.raises(OutputError, match="exists"):
        convert.convert_to_mlx(source, out, bits=4, progress=other_run)
    assert list(out.parent.iterdir()) == [out]
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 8


CONVERTS_WITH_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import convert
from localqwen.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert.convert_to_mlx(Path(sys.argv[1]), Path(sys.argv[2]), bits=4)
except OutputError as error:
    print(error.message)
"""


def in_child(script: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_disk_that_fills_up_while_writing(source: Path, out: Path) -> None:
    """The system refuses a write half-way: our error with the numbers, and no folder."""
    assert f"{out.parent} takes no file of" in in_child(CONVERTS_WITH_A_FULL_DISK, source, out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_conversion_cleans_up(interrupt: type[BaseException], source: Path, out: Path) -> None:
    """Ctrl-C, or a signal turned into an exception: the hidden folder goes, the exception stays itself."""

    def progress(_: convert.Progress) -> None:
        assert [path.suffix for path in out.parent.iterdir()] == [".part"]
        raise interrupt

    with pytest.raises(interrupt):
        convert.convert_to_mlx(source, out, bits=4, progress=progress)
    assert list(out.parent.iterdir()) == []


def test_progress_counts_every_byte_once(source: Path, out: Path) -> None:
    seen: list[convert.Progress] = []
    convert.convert_to_mlx(source, out, bits=4, progress=seen.append)
    done = [step.done_bytes for step in seen]
    elements = sum(int(np.prod(tensor.shape)) for tensor in architecture.tensors(qwen3_config.parse(config(Shape()))))
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes == 2 * elements


MEASURES_MEMORY = """
import resource, sys
from pathlib import Path
import convert
unit = 1 if sys.platform == "darwin" else 1024
for source in sys.argv[1:]:
    convert.convert_to_mlx(Path(source), Path(source) / "out", bits=4)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count mapped pages differently")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A mixture of 490 MB whose stacks of experts have 134 MB each takes at most 100 MB more than a model of 3 MB."""
    small = make_checkpoint(tmp_path / "small")
    shape = Shape(1024, 512, 1, 8, 8, 128, 32768, experts=128, expert_feed_forward=512)
    large = sparse_checkpoint(tmp_path / "large", shape)
    before, after = map(int, in_child(MEASURES_MEMORY, small, large).split())
    assert (large / "model.safetensors").stat().st_size > 450_000_000
    assert after - before < 100_000_000


def sparse_checkpoint(folder: Path, shape: Shape) -> Path:
    """A checkpoint of zeros that takes hardly any disk: its weights are a hole in the file."""
    make_checkpoint(folder)
    write_json(folder / "config.json", config(shape))
    header, offset = {}, 0
    for weight in mlx_layout.weights(qwen3_config.parse(config(shape))):
        size = weight.shape[len(weight.sources) > 1 :]
        for name in weight.sources:
            end = offset + 2 * int(np.prod(size))
            header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, end]}
            offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder
