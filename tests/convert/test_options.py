"""What a user changes on the way: types of single tensors, importance matrices, YaRN, LoRA, and the way back."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import Shape, as_dtype, config, make_adapter, make_checkpoint, weights, write_json

import convert
from convert import Options
from convert.gguf import quants
from convert.imatrix import file as imatrix_file
from localqwen.errors import CheckpointError, ConversionError, LocalqwenError, UsageError

ROOT = Path(__file__).parents[2]

#: stdin: source, target, file type, [[pattern, ggml type], …], imatrix as JSON or null, [[key, value], …].
QUANTIZES = """
import ctypes, json, sys
from llama_cpp import llama_cpp as c
silent = c.llama_log_callback(lambda *_: None)
c.llama_log_set(silent, ctypes.c_void_p(0))
source, target, file_type, overrides, matrix, keys = json.load(sys.stdin)
params = c.llama_model_quantize_default_params()
params.ftype, params.nthread = file_type, 1
if overrides:
    types = (c.llama_model_tensor_override * (len(overrides) + 1))()
    for each, (pattern, kind) in zip(types, overrides):
        each.pattern, each.type = pattern.encode(), kind
    params.tt_overrides = types
if matrix:
    kept = []
    entries = (c.llama_model_imatrix_data * (len(matrix) + 1))()
    for each, (name, values) in zip(entries, matrix.items()):
        data = (ctypes.c_float * len(values))(*values)
        kept.append(data)
        each.name, each.data, each.size = name.encode(), data, len(values)
    params.imatrix = entries
    pairs = (c.llama_model_kv_override * (len(keys) + 1))()
    for pair, (key, value) in zip(pairs, keys):
        pair.key = key.encode()
        if isinstance(value, str):
            pair.tag = c.LLAMA_KV_OVERRIDE_TYPE_STR
            pair.value.val_str = value.encode()
        else:
            pair.tag = c.LLAMA_KV_OVERRIDE_TYPE_INT
            pair.value.val_i64 = value
    params.kv_overrides = pairs
assert c.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) == 0
"""


def llama_cpp_quantizes(*job: Any) -> None:
    command = [sys.executable, "-c", QUANTIZES]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def fields(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "Tiny-2M")


# Types of single tensors


def test_a_pattern_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    """A dense model has no experts; norms and routers are never quantized."""
    source = make_checkpoint(tmp_path / "source")
    for pattern in ("ffn_down_exps", "attn_norm"):
        options = convert.Options(tensor_types=(f"{pattern}=q6_k",))
        with pytest.raises(UsageError, match=f"matches '{pattern}'") as caught:
            convert.convert(source, tmp_path / "a.gguf", quant="q4_0", options=options)
        assert "blk.1.ffn_down.weight" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_rows_that_the_blocks_do_not_divide_are_told(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", Shape(hidden=80, head_dim=32, tied=False, layers=1))
    report = convert.convert(source, tmp_path / "a.gguf", quant="q4_k_m", threads=1)
    assert report.notes == ("8 of 9 matrices do not divide into blocks of 256: F16, Q5_0 instead",)
    assert convert.forecast_gguf(source, tmp_path / "b.gguf", quant="q4_k_m").notes == report.notes
    assert convert.convert(source, tmp_path / "b.gguf", quant="bf16", threads=1).notes == ()


def test_single_types_are_llama_cpps(tmp_path: Path) -> None:
    """Patterns are searched, the first wins, and the rules of the others count only what was not overridden."""
    source = make_checkpoint(tmp_path / "source", Shape(feed_forward=256, layers=9))
    base, ours, theirs = (tmp_path / name for name in ("base.gguf", "ours.gguf", "theirs.gguf"))
    convert.convert(source, base, quant="bf16", threads=1)
    overrides = [[r"blk\.[02]\.attn_v", 8], ["ffn_down", 6], ["token_embd", 14]]
    llama_cpp_quantizes(str(base), str(theirs), 15, overrides, None, [])
    given = (r"blk\.[02]\.attn_v=q8_0", "FFN_down=Q5_0", "token_embd=q6_k")
    convert.convert(source, ours, quant="q4_k_m", threads=1, options=Options(tensor_types=given))
    assert types(ours) == types(theirs)
    assert types(ours)["blk.2.attn_v.weight"] == "Q8_0"
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("text", ["ffn_down", "ffn_down=", "=q6_k", "ffn_down=q9", "(=q6_k"])
def test_malformed_types_are_usage_errors(text: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        convert.convert(source, tmp_path / "a.gguf", quant="q4_0", options=Options(tensor_types=(text,)))
    assert "blk.*.ffn_down=q6_k" in caught.value.hint


def test_single_types_belong_to_a_quantization(source: Path, tmp_path: Path) -> None:
    """llama.cpp would pass over them without a word."""
    with pytest.raises(UsageError, match="bf16 is none"):
        convert.convert(source, tmp_path / "a.gguf", quant="bf16", options=Options(tensor_types=("ffn_down=q6_k",)))


# Importance matrices


def sums(shape: Shape, *, counts: int) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Sums of squares and counts for every matrix of a model but the embeddings; expert 0 was never reached."""
    random = np.random.default_rng(9)
    result = {}
    feed_forward = {"ffn_down_exps": 256, "ffn_up_exps": 256} if shape.experts else {"ffn_down": 512, "ffn_up": 256}
    for layer in range(shape.layers):
        for name, columns in {"attn_q": 256, "attn_v": 256, **feed_forward}.items():
            experts = shape.experts if "exps" in name else 1
            times = np.full((experts, 1), counts, np.float32)
            times[0] = 0 if experts > 1 else counts
            values = random.gamma(0.5, 3.0, (experts, columns)).astype(np.float32) * counts
            result[f"blk.{layer}.{name}.weight"] = (values, times)
    return result


def write_gguf_matrix(path: Path, found: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> None:
    """tools/imatrix/imatrix.cpp: save_imatrix."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["some text.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (values, times) in found.items():
        writer.add_tensor(f"{name}.in_sum2", values)
        writer.add_tensor(f"{name}.counts", times)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_old_matrix(path: Path, found: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> None:
    parts = [ctypes.c_int32(len(found))]
    data = b"".join(map(bytes, parts))
    for name, (values, times) in found.items():
        data += len(name).to_bytes(4, "little") + name.encode() + int(times.max()).to_bytes(4, "little")
        data += values.size.to_bytes(4, "little") + values.tobytes()
    path.write_bytes(data + (7).to_bytes(4, "little") + (13).to_bytes(4, "little") + b"some text.txt")


@pytest.mark.parametrize(
    ("shape", "old", "quant"),
    [
        (Shape(layers=9), False, "q4_0"),
        (Shape(layers=9), True, "iq4_xs"),
        (Shape(layers=1, experts=3), False, "q4_k_m"),
    ],
)
def test_with_an_importance_matrix_files_are_llama_cpps(shape: Shape, old: bool, quant: str, tmp_path: Path) -> None:
    """Both formats; types that change because of it; a matrix per expert; what is noted in the file."""
    source = make_checkpoint(tmp_path / "source", shape)
    base, ours, theirs, file = (tmp_path / name for name in ("base.gguf", "ours.gguf", "theirs.gguf", "my.imatrix"))
    convert.convert(source, base, quant="bf16", threads=1)
    found = sums(shape, counts=64)
    (write_old_matrix if old else write_gguf_matrix)(file, found)
    matrix = {
        name: np.where(times > 0, values / np.maximum(times, 1), 1).astype(np.float32).ravel().tolist()
        for name, (values, times) in found.items()
    }
    keys = [
        ["quantize.imatrix.file", "my.imatrix"],
        ["quantize.imatrix.dataset", "some text.txt"],
        ["quantize.imatrix.entries_count", len(matrix)],
        ["quantize.imatrix.chunks_count", 7],
    ]
    llama_cpp_quantizes(str(base), str(theirs), quants.QUANTIZATIONS[quant].file_type, [], matrix, keys)
    convert.convert(source, ours, quant=quant, threads=2, options=Options(imatrix=file))
    assert types(ours) == types(theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    convert.convert(source, tmp_path / "without.gguf", quant=quant, threads=1)
    assert (tmp_path / "without.gguf").read_bytes() != ours.read_bytes()


def test_matrices_of_another_model_and_files_that_are_none(source: Path, tmp_path: Path) -> None:
    """Another width, NaN, cut files, texts, a missing file: our error, with the tensor's name where there is one."""
    found = {"blk.0.attn_q.weight": (np.ones((1, 128), np.float32), np.ones((1, 1), np.float32))}
    file = tmp_path / "a.imatrix"
    write_gguf_matrix(file, found)
    with pytest.raises(ConversionError, match=r"128 numbers for blk\.0\.attn_q\.weight"):
        convert.convert(source, tmp_path / "a.gguf", quant="q4_0", options=Options(imatrix=file))
    found["blk.0.attn_q.weight"][0][0, 5] = np.nan
    write_gguf_matrix(file, found)
    with pytest.raises(ConversionError, match="NaN"):
        imatrix_file.read(file)
    write_old_matrix(file, sums(Shape(), counts=3))
    whole = file.read_bytes()
    for content in (b"", b"hello", whole[:1000], b"\xff" * 50, (3).to_bytes(4, "little") + b"\xff\xff\xff\x7f"):
        file.write_bytes(content)
        with pytest.raises(ConversionError, match="is not an importance matrix"):
            imatrix_file.read(file)
    with pytest.raises(ConversionError, match="nowhere does not exist"):
        imatrix_file.read(tmp_path / "nowhere")


# YaRN


@pytest.mark.parametrize(("factor", "context"), [(2, 65_536), (4, 131_072)])
def test_yarn_stretches_the_hybrids(factor: int, context: int, source: Path, tmp_path: Path) -> None:
    """The makers' advice: over the 32,768 that were trained. MLX's config says the same; a note warns of short ones."""
    write_json(source / "config.json", config(Shape()) | {"max_position_embeddings": 40_960})
    report = convert.convert(source, tmp_path / "a.gguf", quant="q8_0", threads=1, options=Options(yarn=factor))
    found = fields(tmp_path / "a.gguf")
    assert found["qwen3.context_length"] == context
    scaling = {key: value for key, value in found.items() if ".rope.scaling." in key}
    assert scaling == {
        "qwen3.rope.scaling.type": "yarn",
        "qwen3.rope.scaling.factor": factor,
        "qwen3.rope.scaling.original_context_length": 32_768,
    }
    assert any("shorter than 32,768" in note for note in report.notes)
    pytest.importorskip("mlx.core")
    convert.convert_to_mlx(source, tmp_path / "mlx", bits=8, options=Options(yarn=factor))
    written = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert written["max_position_embeddings"] == context
    assert written["rope_scaling"] == {
        "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32_768,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "change", "words"),
    [
        (8, {}, "YaRN by 8"),
        (4, {"max_position_embeddings": 262_144}, "262,144 tokens without YaRN"),
        (
            2,
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}},
            "stretched already, by YaRN 4",
        ),
    ],
)
def test_yarn_is_refused_where_the_model_was_not_made_for_it(
    factor: int, change: dict[str, Any], words: str, source: Path, tmp_path: Path
) -> None:
    write_json(source / "config.json", config(Shape()) | change)
    with pytest.raises(LocalqwenError) as caught:
        convert.convert(source, tmp_path / "a.gguf", quant="q8_0", options=Options(yarn=factor))
    assert words in caught.value.message
    assert caught.value.hint


# LoRA


def exact(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    widened: np.ndarray[Any, Any] = (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return widened


UP, QUERY = "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "lora_alpha": 4}, {"alpha_pattern": {"up_proj": 8}}])
def test_an_adapter_is_merged_in_float32(settings: dict[str, Any], source: Path, tmp_path: Path) -> None:
    """W + scale * B A for the weights that it names; the others keep their bits. alpha / r, or alpha / sqrt(r)."""
    added = make_adapter(tmp_path / "lora", {UP: (512, 256), QUERY: (256, 256)}, **settings)
    convert.convert(source, tmp_path / "a.gguf", quant="f32", threads=2, options=Options(adapter=tmp_path / "lora"))
    convert.convert(source, tmp_path / "b.gguf", quant="f32", threads=2)
    merged, plain = ({t.name: t.data for t in gguf.GGUFReader(tmp_path / n).tensors} for n in ("a.gguf", "b.gguf"))
    names = {f"{UP}.weight": "blk.1.ffn_up.weight", f"{QUERY}.weight": "blk.0.attn_q.weight"}
    before = weights(Shape())
    for official, name in names.items():
        expected = exact(before[official]) + added[official]
        np.testing.assert_allclose(merged[name], expected, rtol=0, atol=1e-6)
    assert all((merged[name] == plain[name]).all() for name in plain if name not in names.values())


def test_an_adapter_is_merged_into_mlx_folders_too(source: Path, tmp_path: Path) -> None:
    """Equal to a folder made from a checkpoint with the merged weights."""
    pytest.importorskip("mlx.core")
    added = make_adapter(tmp_path / "lora", {UP: (512, 256)})
    convert.convert_to_mlx(source, tmp_path / "direct", options=Options(adapter=tmp_path / "lora"))
    tensors = weights(Shape())
    expected = as_dtype((exact(tensors[f"{UP}.weight"]) + added[f"{UP}.weight"]).astype(np.float32), "BF16")
    data = (tmp_path / "direct" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[f"{UP}.weight"]["data_offsets"]
    found = np.frombuffer(data[8 + length + begin : 8 + length + end], np.uint16)
    assert (found != expected.ravel()).mean() < 0.001, "but for numbers that float32 rounds to the other neighbour"


@pytest.mark.parametrize(
    ("targets", "settings", "words"),
    [
        ({UP: (512, 256)}, {"peft_type": "IA3"}, "'IA3', not LORA"),
        ({UP: (512, 256)}, {"use_dora": True}, "use_dora"),
        ({UP: (512, 256)}, {"bias": "all"}, "biases"),
        ({UP: (512, 256)}, {"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({UP: (256, 256)}, {}, "the weight [512, 256]"),
        ({"model.layers.7.mlp.up_proj": (512, 256)}, {}, "model.layers.7.mlp.up_proj.weight, which the checkpoint"),
    ],
)
def test_adapters_that_do_not_fit(
    targets: dict[str, tuple[int, int]], settings: dict[str, Any], words: str, source: Path, tmp_path: Path
) -> None:
    make_adapter(tmp_path / "lora", targets, **settings)
    with pytest.raises(CheckpointError) as caught:
        convert.convert(source, tmp_path / "a.gguf", quant="q8_0", options=Options(adapter=tmp_path / "lora"))
    assert words in caught.value.message
    assert caught.value.hint


def test_pickled_adapters_are_never_loaded(source: Path, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(CheckpointError, match="never loaded"):
        convert.convert(source, tmp_path / "a.gguf", quant="q8_0", options=Options(adapter=tmp_path / "lora"))


# The way back from MLX


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (Shape(), {"bits": 4}),
        (Shape(tied=False), {"mode": "mxfp4"}),
        (Shape(layers=1, experts=3), {"bits": 4}),
        (Shape(layers=1, experts=3), {}),
        (Shape(layers=9, feed_forward=320), {"recipe": "mixed_3_6", "group_size": 128}),
    ],
    ids=["dense", "mxfp4", "mixture", "mixture in 16 bit", "mixed, some weights left whole"],
)
def test_mlx_folders_go_back_to_the_official_layout(shape: Shape, options: dict[str, Any], tmp_path: Path) -> None:
    """The numbers of mx.dequantize under official names, a config without quantization; llama.cpp's formats follow."""
    mx = pytest.importorskip("mlx.core")
    source = make_checkpoint(tmp_path / "source", shape)
    convert.convert_to_mlx(source, tmp_path / "mlx", **options)
    report = convert.dequantize(tmp_path / "mlx", tmp_path / "back")
    assert report.path == tmp_path / "back"
    packed, back = (mx.load(str(tmp_path / name / "model.safetensors")) for name in ("mlx", "back"))
    assert set(back) == set(weights(shape))
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & written.keys()
    how = json.loads((tmp_path / "mlx" / "config.json").read_text()).get("quantization", {})
    for name, values in back.items():
        stacked, _, expert = name.partition(".experts.")
        number, _, part = expert.partition(".")
        path = (f"{stacked}.switch_mlp.{part}" if expert else name).removesuffix(".weight")
        theirs = packed[f"{path}.weight"]
        if f"{path}.scales" in packed:
            own = how.get(path, how)
            scales, biases = packed[f"{path}.scales"], packed.get(f"{path}.biases")
            theirs = mx.dequantize(
                theirs, scales, biases, own["group_size"], own["bits"], mode=own.get("mode", "affine")
            )
        if expert:
            theirs = theirs[int(number)]
        assert values.dtype == theirs.dtype, name
        assert mx.array_equal(values, theirs), name
    convert.convert(tmp_path / "back", tmp_path / "a.gguf", quant="q8_0", threads=1)


def test_an_mlx_folder_without_its_packing_is_refused(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlx.core")
    convert.convert_to_mlx(source, tmp_path / "mlx", bits=4)
    path = tmp_path / "mlx" / "config.json"
    for change in (
        {"quantization": None},
        {"quantization": {"bits": 4}},
        {"quantization": {"bits": 3, "group_size": 64}},
    ):
        write_json(path, json.loads(path.read_text()) | change)
        with pytest.raises(CheckpointError):
            convert.dequantize(tmp_path / "mlx", tmp_path / "back")
        assert not (tmp_path / "back").exists()
