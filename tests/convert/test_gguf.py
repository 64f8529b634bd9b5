"""Conversion of sound checkpoints: bytes, metadata, sizes, tokens, memory. llama.cpp itself is the reference."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from checkpoints import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    LAYERED,
    Shape,
    config,
    make_checkpoint,
    token_id,
    tokenizer,
    write_json,
)

import convert
from convert import Progress
from convert.gguf import architecture, planning, quants
from convert.gguf import head as gguf_head
from localqwen.formats import qwen3_config
from localqwen.formats.dtypes import F32

ROOT = Path(__file__).parents[2]

#: Runs in a process of its own, so that its log settings and its threads meet no other test.
LLAMA_CPP_QUANTIZES = """
import ctypes, json, sys
from llama_cpp import llama_cpp
silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
for source, target, file_type in json.loads(sys.argv[1]):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) == 0
"""
LLAMA_CPP_TOKENIZES = """
import ctypes, json, sys
from llama_cpp import llama_cpp
silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
params = llama_cpp.llama_model_default_params()
params.vocab_only = True
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params)
vocab = llama_cpp.llama_model_get_vocab(model)
result = {"eos": llama_cpp.llama_vocab_eos(vocab), "ids": []}
for text in json.loads(sys.argv[2]):
    data = text.encode()
    ids = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)
    result["ids"].append(list(ids[:count]))
print(json.dumps(result))
"""


def in_child(script: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "Tiny-2M")


def fields(path: Path) -> dict[str, Any]:
    """All metadata of a GGUF file, without what the format itself stores."""
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


REFERENCES = {
    "tied, f16": (Shape(feed_forward=256, layers=1, kv_heads=1), "F16", 1),
    "own head, f32 in three shards": (Shape(tied=False, layers=1, heads=8, head_dim=32, kv_heads=1), "F32", 3),
    "rows that K-quants cannot divide": (
        Shape(hidden=96, feed_forward=160, head_dim=32, heads=3, kv_heads=1),
        "F16",
        1,
    ),
    "eight experts, which llama.cpp treats apart": (Shape(layers=1, experts=8), "F32", 1),
    "three experts, two shards": (Shape(layers=1, tied=False, experts=3), "BF16", 2),
    "rows that nothing can divide": (Shape(hidden=80, head_dim=32, tied=False), "BF16", 1),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_every_file_is_byte_for_byte_what_llama_cpp_quantizes(case: str, tmp_path: Path) -> None:
    """From our unquantized file, llama.cpp's quantizer makes the same bytes as our one pass from the checkpoint."""
    shape, dtype, shards = REFERENCES[case]
    source = make_checkpoint(tmp_path / "source", shape, dtype=dtype, shards=shards)
    assert_same_files(source, dtype.lower(), convert.QUANTIZATIONS)


@pytest.mark.parametrize("case", LAYERED)
def test_files_with_many_layers_are_llama_cpps(case: str, tmp_path: Path) -> None:
    """Every branch of the rules, whose types are compared below, comes to bytes as well."""
    assert_same_files(make_checkpoint(tmp_path / "source", LAYERED[case]), "bf16", ["q4_k_m"])


def assert_same_files(source: Path, unquantized: str, chosen: Sequence[str]) -> None:
    folder = source.parent
    base = folder / "base.gguf"
    convert.convert(source, base, quant=unquantized, threads=1)
    jobs = []
    for quant in chosen:
        convert.convert(source, folder / f"{quant}.gguf", quant=quant, threads=1)
        jobs.append([str(base), str(folder / f"{quant}.reference"), quants.QUANTIZATIONS[quant].file_type])
    in_child(LLAMA_CPP_QUANTIZES, json.dumps(jobs))

    for quant in chosen:
        ours, theirs = folder / f"{quant}.gguf", folder / f"{quant}.reference"
        assert types_by_name(ours) == types_by_name(theirs), quant
        assert ours.read_bytes() == theirs.read_bytes(), quant


@pytest.mark.parametrize("case", LAYERED)
def test_every_tensor_of_many_layers_has_the_recorded_type(case: str, tmp_path: Path) -> None:
    """tools/tensor_types.py ran llama.cpp's quantizer and recorded what it chose, layer by layer."""
    recorded = json.loads((ROOT / "tests" / "vectors" / "tensor_types.json").read_text())[case]
    assert recorded.keys() == {each.name for each in quants.QUANTIZATIONS.values() if each.base.quantized}
    source = make_checkpoint(tmp_path / "source", LAYERED[case])
    for quant, expected in recorded.items():
        (planned,) = convert.plan(source, quant).files
        layers: dict[str, list[str]] = {}
        for tensor in planned.tensors:
            if tensor.stored.type is not F32:
                kind = tensor.stored.name.removesuffix(".weight").rpartition(".")[2]
                layers.setdefault(kind, []).append(tensor.stored.type.name)
        assert layers.keys() == expected.keys()
        for kind, found in layers.items():
            types = expected[kind].split()
            assert found == (types if len(types) > 1 else types * len(found)), (quant, kind)


def test_tensors_have_the_recorded_hashes_of_llama_cpps_own_converter(tmp_path: Path) -> None:
    """benchmarks/convert_against_llama.py runs that converter and the quantizer behind it, and records that."""
    spec = importlib.util.spec_from_file_location("against_llama", ROOT / "benchmarks" / "convert_against_llama.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    recorded = json.loads((ROOT / "tests" / "vectors" / "conversions.json").read_text())
    for name, source in script.checkpoints(tmp_path):
        for quant, expected in recorded[name].items():
            convert.convert(source, tmp_path / "a.gguf", quant=quant, threads=2, force=True)
            assert script.digest(script.tensors(tmp_path / "a.gguf")) == expected, (name, quant)


def types_by_name(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_k_quants_are_really_used(tied: Path, tmp_path: Path) -> None:
    """The checkpoints of these tests are wide enough: Q4_K_M holds Q4_K and Q6_K matrices, and F32 norms."""
    convert.convert(tied, tmp_path / "a.gguf", quant="q4_k_m", threads=1)
    types = types_by_name(tmp_path / "a.gguf")
    assert set(types.values()) == {"F32", "Q4_K", "Q6_K"}
    assert types["token_embd.weight"] == "Q6_K"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_unquantized_weights_keep_their_values(tied: Path, tmp_path: Path) -> None:
    """bf16 is copied bit by bit under its GGUF name; f32 holds the same numbers."""
    convert.convert(tied, tmp_path / "a.gguf", quant="bf16", threads=1)
    convert.convert(tied, tmp_path / "b.gguf", quant="f32", threads=1)
    source = raw_tensor(tied / "model.safetensors", "model.layers.1.mlp.down_proj.weight")
    assert tensor_data(tmp_path / "a.gguf", "blk.1.ffn_down.weight").tobytes() == source.tobytes()
    assert (tensor_data(tmp_path / "b.gguf", "blk.1.ffn_down.weight").view(np.uint32).ravel() >> 16 == source).all()


def raw_tensor(path: Path, name: str) -> np.ndarray[Any, Any]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return np.frombuffer(data[8 + length + begin : 8 + length + end], np.uint16)


def tensor_data(path: Path, name: str) -> np.ndarray[Any, Any]:
    (tensor,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name]
    return tensor.data


def test_threads_do_not_change_the_file(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of a few rows on three threads give the bytes of one slice on one thread."""
    convert.convert(tied, tmp_path / "one.gguf", quant="q4_k_m", threads=1)
    monkeypatch.setattr("convert.gguf.encoding.SLICE", 1000)
    convert.convert(tied, tmp_path / "three.gguf", quant="q4_k_m", threads=3)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "three.gguf").read_bytes()


def test_shards_give_the_file_of_one_piece(tied: Path, tmp_path: Path) -> None:
    """Where a tensor lies in the checkpoint does not matter."""
    sharded = make_checkpoint(tmp_path / "Tiny-2M", shards=4)
    convert.convert(tied, tmp_path / "a.gguf", quant="q8_0", threads=1)
    convert.convert(sharded, tmp_path / "b.gguf", quant="q8_0", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_duplicate_head_does_not_grow_the_file(tied: Path, tmp_path: Path) -> None:
    """Tied checkpoints that carry lm_head once more become the same file as those that do not."""
    duplicate = make_checkpoint(tmp_path / "Tiny-2M", duplicate_head=True)
    assert (duplicate / "model.safetensors").stat().st_size > (tied / "model.safetensors").stat().st_size
    convert.convert(tied, tmp_path / "a.gguf", quant="q8_0", threads=1)
    convert.convert(duplicate, tmp_path / "b.gguf", quant="q8_0", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_head_of_its_own_stays(tmp_path: Path) -> None:
    """Untied checkpoints keep output.weight, apart from the embeddings."""
    source = make_checkpoint(tmp_path / "source", Shape(tied=False))
    report = convert.convert(source, tmp_path / "a.gguf", quant="q5_k_m", threads=1)
    types = types_by_name(tmp_path / "a.gguf")
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q6_K", "Q5_K")
    assert report.tensors == len(types) == 3 + 2 * 11


def test_metadata_tell_the_loader_everything(tied: Path, tmp_path: Path) -> None:
    """Keys and values as llama.cpp's converter writes them for Qwen3."""
    convert.convert(tied, tmp_path / "a.gguf", quant="q4_k_m", threads=1)
    found = fields(tmp_path / "a.gguf")
    expected = {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "Tiny 2M",
        "general.basename": "Tiny",
        "general.size_label": "2M",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": pytest.approx(0.95),
        "general.sampling.temp": pytest.approx(0.6),
        "qwen3.block_count": 2,
        "qwen3.context_length": 4096,
        "qwen3.embedding_length": 256,
        "qwen3.feed_forward_length": 512,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 64,
        "qwen3.attention.value_length": 64,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": token_id("<|im_end|>"),
        "tokenizer.ggml.bos_token_id": token_id("<|endoftext|>"),
        "tokenizer.ggml.padding_token_id": token_id("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"}
    assert {key: value for key, value in found.items() if key not in lists} == expected
    assert lists <= found.keys()


def test_numbers_have_the_types_of_llama_cpp(tied: Path, tmp_path: Path) -> None:
    """Counts are uint32, top_k is int32, everything else that is a number is float32."""
    convert.convert(tied, tmp_path / "a.gguf", quant="q8_0", threads=1)
    types = {key: field.types[0].name for key, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert types["qwen3.block_count"] == types["tokenizer.ggml.eos_token_id"] == "UINT32"
    assert types["general.sampling.top_k"] == "INT32"
    assert types["qwen3.rope.freq_base"] == types["general.sampling.temp"] == "FLOAT32"
    assert types["tokenizer.ggml.add_bos_token"] == "BOOL"


def test_token_types(tied: Path, tmp_path: Path) -> None:
    """Bytes are normal, think and tool tags user-defined, `<|…|>` control, rows beyond the tokenizer unused."""
    convert.convert(tied, tmp_path / "a.gguf", quant="q8_0", threads=1)
    found = fields(tmp_path / "a.gguf")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 320
    assert types[:268] == [1] * 268
    for text, special in ADDED_TOKENS:
        assert tokens[token_id(text)] == text
        assert types[token_id(text)] == (3 if special or text.startswith("<|") else 4), text
    assert tokens[294:] == [f"[PAD{number}]" for number in range(294, 320)]
    assert types[294:] == [5] * 26


def test_both_spellings_of_merges_mean_the_same(tied: Path, tmp_path: Path) -> None:
    """`"t h"` of older files and `["t", "h"]` of newer ones."""
    older = make_checkpoint(tmp_path / "Tiny-2M")
    write_json(older / "tokenizer.json", tokenizer(merges_as_pairs=False))
    convert.convert(tied, tmp_path / "a.gguf", quant="q8_0", threads=1)
    convert.convert(older, tmp_path / "b.gguf", quant="q8_0", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert fields(tmp_path / "b.gguf")["tokenizer.ggml.merges"][:3] == ["t h", "th e", "Ġ the"]


def test_a_template_in_its_own_file_wins(tmp_path: Path) -> None:
    """chat_template.jinja stands before tokenizer_config.json, as in transformers."""
    source = make_checkpoint(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    convert.convert(source, tmp_path / "a.gguf", quant="q8_0", threads=1)
    assert fields(tmp_path / "a.gguf")["tokenizer.chat_template"] == "{{ messages[0].content }}"


def test_a_given_name_is_written(tied: Path, tmp_path: Path) -> None:
    """`name` replaces the folder's name."""
    convert.convert(tied, tmp_path / "a.gguf", quant="q8_0", name="demo", threads=1)
    assert fields(tmp_path / "a.gguf")["general.name"] == "Demo"


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {
            "rope_scaling": None,
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 1000000,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_yarn_is_written(change: dict[str, Any], tmp_path: Path) -> None:
    """Long-context checkpoints keep their scaling, wherever the config says it."""
    source = make_checkpoint(tmp_path / "source")
    write_json(source / "config.json", config(Shape()) | change)
    convert.convert(source, tmp_path / "a.gguf", quant="q8_0", threads=1)
    found = fields(tmp_path / "a.gguf")
    assert found["qwen3.rope.scaling.type"] == "yarn"
    assert found["qwen3.rope.scaling.factor"] == 4.0
    assert found["qwen3.rope.scaling.original_context_length"] == 32768
    assert found["qwen3.rope.freq_base"] == 1e6


TEXTS = [
    "the other one",
    "  two  spaces\tand a tab\n\nthen\r\nmore",
    "12345 and 3.14",
    "Grüße, 你好, привет, سلام, 👩‍💻!",
    "I'll re-think it's THE'S",
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nan answer",
    '<tool_call>\n{"name": "on"}\n</tool_call>',
    "",
]


def test_llama_cpp_reads_the_same_tokens_as_hugging_face(tied: Path, tmp_path: Path) -> None:
    """Ids of llama.cpp from our file equal those of `tokenizers` from tokenizer.json."""
    from tokenizers import Tokenizer

    convert.convert(tied, tmp_path / "a.gguf", quant="q8_0", threads=1)
    reference = Tokenizer.from_file(str(tied / "tokenizer.json"))
    texts = [unicodedata.normalize("NFC", text) for text in TEXTS]
    result = json.loads(in_child(LLAMA_CPP_TOKENIZES, str(tmp_path / "a.gguf"), json.dumps(texts)))
    assert result["ids"] == [reference.encode(text).ids for text in texts]
    assert result["eos"] == token_id("<|im_end|>")


@pytest.mark.parametrize("quant", convert.QUANTIZATIONS)
def test_the_plan_knows_the_size_to_the_byte(quant: str, tied: Path, tmp_path: Path) -> None:
    """What `plan` predicts is what `convert` writes and reports."""
    plan = convert.plan(tied, quant)
    report = convert.convert(tied, tmp_path / "a.gguf", quant=quant, threads=1)
    assert plan.size == report.bytes == (tmp_path / "a.gguf").stat().st_size
    assert sum(plan.types.values()) == report.tensors == 24
    assert report.quant == quant


#: layers, hidden, feed-forward, heads, tied; then the bytes of the makers' own GGUF files.
OFFICIAL = {
    "0.6B": ((28, 1024, 3072, 16, True), {"q8_0": 639446688}),
    "1.7B": ((28, 2048, 6144, 16, True), {"q8_0": 1834426016}),
    "4B": (
        (36, 2560, 9728, 32, True),
        {"q4_k_m": 2497280256, "q5_0": 2823710976, "q5_k_m": 2889513184, "q6_k": 3306260704, "q8_0": 4280404704},
    ),
    "8B": (
        (36, 4096, 12288, 32, False),
        {"q4_k_m": 5027783488, "q5_0": 5720761152, "q5_k_m": 5851112224, "q6_k": 6725899040, "q8_0": 8709518112},
    ),
    "14B": (
        (40, 5120, 17408, 40, False),
        {"q4_k_m": 9001752960, "q5_0": 10263894400, "q5_k_m": 10514569568, "q6_k": 12121937248, "q8_0": 15698533728},
    ),
    "32B": (
        (64, 5120, 25600, 64, False),
        {"q4_k_m": 19762149024, "q5_0": 22635493024, "q5_k_m": 23214831232, "q6_k": 26883306112, "q8_0": 34817718912},
    ),
}
#: The mixtures: layers, hidden, feed-forward width of an expert and of the config, heads. The makers publish the larger
#: one in parts; this is the sum of their data behind a single head.
OFFICIAL_MIXTURES = {
    "30B-A3B": (
        (48, 2048, 768, 6144, 32),
        {"q4_k_m": 18556685824, "q5_0": 21080509952, "q5_k_m": 21725580800, "q6_k": 25092531712, "q8_0": 32483931648},
    ),
    "235B-A22B": ((94, 4096, 1536, 12288, 64), {"q4_k_m": 142154073632}),
}
#: A text that takes the place of the official tokenizer's keys: 151,936 tokens and their types (2,588,260 and 607,756
#: bytes), 151,387 merges (2,731,560), the ids, and the older chat template of 4,100 bytes that those files embed.
OFFICIAL_TOKENIZER = "x" * 5932045


def official_files() -> list[Any]:
    cases = []
    for size, ((layers, hidden, feed_forward, heads, tied), files) in OFFICIAL.items():
        for quant, expected in files.items():
            awq = quant in ("q4_k_m", "q5_0")  # made from other weights, in the same layout
            shape = Shape(hidden, feed_forward, layers, heads, 8, 128, 151936, tied)
            cases.append((size, quant, shape, awq, expected))
    for size, ((layers, hidden, expert, feed_forward, heads), files) in OFFICIAL_MIXTURES.items():
        for quant, expected in files.items():
            shape = Shape(hidden, feed_forward, layers, heads, 4, 128, 151936, False, 128, 8, expert)
            cases.append((size, quant, shape, False, expected))
    return cases


@pytest.mark.parametrize(
    ("size", "quant", "shape", "awq", "expected"),
    official_files(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_of_the_official_files_are_reproduced(
    size: str, quant: str, shape: Shape, awq: bool, expected: int
) -> None:
    """Head and data planned from the official configs have exactly the bytes of the makers' GGUF files."""
    official = qwen3_config.parse(config(shape) | {"max_position_embeddings": 40960})
    recipe = quants.Recipe(quants.QUANTIZATIONS[quant])
    tensors = [tensor.stored for tensor in planning.planned_tensors(official, recipe)]
    metadata: gguf_head.Metadata = {
        "general.architecture": official.gguf_architecture,
        "general.type": "model",
        "general.name": f"Qwen3 {size} Awq Compatible Instruct" if awq else f"Qwen3 {size} Instruct",
        "general.finetune": "awq-compatible-Instruct" if awq else "Instruct",
        "general.basename": "Qwen3",
        "general.size_label": size,
        **architecture.metadata(official),
        "tokenizer.stand_in": OFFICIAL_TOKENIZER,
        "general.quantization_version": 2,
        "general.file_type": recipe.quantization.file_type,
    }
    head = gguf_head.head(gguf_head.entries(metadata), tensors)
    assert len(head) + planning.data_size(tensors) == expected


def test_progress_counts_every_byte_once(tied: Path, tmp_path: Path) -> None:
    """Progress rises to the total, the weights' bytes in the checkpoint."""
    seen: list[Progress] = []
    convert.convert(tied, tmp_path / "a.gguf", quant="q4_0", threads=2, progress=seen.append)
    done = [step.done_bytes for step in seen]
    elements = sum(math.prod(tensor.shape) for tensor in architecture.tensors(qwen3_config.parse(config(Shape()))))
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes == 2 * elements
    assert {step.tensor for step in seen} == set(types_by_name(tmp_path / "a.gguf"))


MEASURES_MEMORY = """
import resource, sys
from pathlib import Path
import convert
unit = 1 if sys.platform == "darwin" else 1024
for source in sys.argv[2:]:
    convert.convert(Path(source), Path(source) / "out.gguf", quant=sys.argv[1], threads=2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count mapped pages differently")
@pytest.mark.parametrize("quant", ["q4_0", "bf16"])
def test_memory_does_not_grow_with_the_model(quant: str, tmp_path: Path) -> None:
    """A checkpoint of 320 MB takes at most 40 MB more than one of 3 MB, though one tensor alone has 128 MB."""
    small = make_checkpoint(tmp_path / "small")
    large = sparse_checkpoint(tmp_path / "large", Shape(1024, 8192, 3, 8, 8, 128, 65536))
    before, after = map(int, in_child(MEASURES_MEMORY, quant, str(small), str(large)).split())
    assert (large / "model.safetensors").stat().st_size > 300_000_000
    assert after - before < 40_000_000


def sparse_checkpoint(folder: Path, shape: Shape) -> Path:
    """A checkpoint of zeros that takes hardly any disk: its weights are a hole in the file."""
    make_checkpoint(folder)
    write_json(folder / "config.json", config(shape))
    header, offset = {}, 0
    for tensor in architecture.tensors(qwen3_config.parse(config(shape))):
        end = offset + 2 * math.prod(tensor.shape)
        header[tensor.sources[0]] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder
