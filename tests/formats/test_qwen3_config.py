"""config.json: the names of transformers 4 and 5, what is refused, and that running and converting read it alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape, config, make_checkpoint, write_json
from transformers import Qwen3Config as TheirConfig
from transformers import Qwen3MoeConfig as TheirMoeConfig

import convert
from localqwen.errors import FormatError, LocalqwenError, ModelNotFound
from localqwen.formats import model_header, qwen3_config
from localqwen.formats.yarn import Scaling

DENSE, MIXTURE = Shape(), Shape(layers=1, experts=6)
#: 4 heads of 64 make up the width of 256, so that a head's length may be left out.
NATURAL = config(DENSE)


def without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


@pytest.mark.parametrize("shape", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_a_folder_says_what_its_conversion_says(shape: Shape, tmp_path: Path) -> None:
    """One value for both: whoever reads it need not know which it is."""
    folder = make_checkpoint(tmp_path / "m", shape)
    convert.convert(folder, tmp_path / "m.gguf", quant="bf16", threads=1)
    ours, theirs = model_header.read(folder), model_header.read(tmp_path / "m.gguf")
    own = ("path", "bytes", "name")
    assert without(vars(ours), *own) == without(vars(theirs), *own)
    assert ours.bytes == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("theirs", [TheirConfig, TheirMoeConfig])
def test_what_transformers_writes_is_read(theirs: type[TheirConfig], tmp_path: Path) -> None:
    """`save_pretrained` of the installed transformers 5: `rope_parameters`, `dtype`, `num_local_experts`."""
    mixture = {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True} if theirs is TheirMoeConfig else {}
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768, "rope_theta": 5e5}
    written = theirs(
        architectures=[theirs.__name__.replace("Config", "ForCausalLM")],
        hidden_size=1024, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=3, head_dim=64,
        rope_parameters=scaling, dtype="bfloat16", tie_word_embeddings=True, **mixture,
    )  # fmt: skip
    written.save_pretrained(tmp_path)
    assert (
        not {"rope_scaling", "rope_theta", "torch_dtype", "num_experts"}
        & json.loads((tmp_path / "config.json").read_text()).keys()
    )
    found = qwen3_config.read(tmp_path)
    assert (found.layers, found.hidden, found.heads, found.kv_heads, found.head_size) == (3, 1024, 8, 2, 64)
    assert (found.rope_theta, found.scaling, found.dtype, found.tied) == (5e5, Scaling(4.0, 32_768), "BF16", True)
    assert (found.experts, found.experts_used) == ((6, 2) if mixture else (0, 0))


def test_both_generations_of_names_say_the_same() -> None:
    old = config(MIXTURE) | {"torch_dtype": "float16", "rope_theta": 5e5}
    new = without(old, "torch_dtype", "rope_theta", "rope_scaling", "num_experts") | {
        "dtype": "float16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "num_local_experts": 6,
    }
    assert qwen3_config.parse(new) == qwen3_config.parse(old)
    assert (qwen3_config.parse(new).dtype, qwen3_config.parse(new).experts) == ("F16", 6)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        (NATURAL | {"head_dim": 32}, 32),
        (NATURAL | {"head_dim": None}, 64),
        (without(NATURAL, "head_dim"), 128),  # transformers' default of Qwen3Config
        (config(MIXTURE) | {"head_dim": None}, 64),
        (without(config(MIXTURE), "head_dim"), 64),  # Qwen3MoeConfig has none
    ],
)
def test_a_head_may_be_null_or_absent(values: dict[str, Any], size: int) -> None:
    assert qwen3_config.parse(values).head_size == size


@pytest.mark.parametrize("change", [{"head_dim": None}, {"num_key_value_heads": None}])
def test_null_runs_and_converts(change: dict[str, Any], tmp_path: Path) -> None:
    """To the same bytes as the number that it stands for."""
    shape = Shape(layers=1, kv_heads=4)
    folder = make_checkpoint(tmp_path / "m", shape)
    convert.convert(folder, tmp_path / "a.gguf", quant="q8_0", threads=1)
    before = model_header.read(folder)
    write_json(folder / "config.json", config(shape) | change)
    assert model_header.read(folder) == before
    convert.convert(folder, tmp_path / "b.gguf", quant="q8_0", threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_either_of_two_names_tells_the_architecture() -> None:
    """mlx-lm looks at model_type alone, llama.cpp's converter at architectures."""
    for values in (without(NATURAL, "architectures"), without(NATURAL, "model_type")):
        assert qwen3_config.parse(values).gguf_architecture == "qwen3"


def test_quantization_has_two_names(tmp_path: Path) -> None:
    for key in ("quantization", "quantization_config"):
        assert qwen3_config.parse(NATURAL | {key: {"bits": 4}}).quantization == {"bits": 4}
        write_json(tmp_path / "config.json", {key: {"bits": 4}})
        assert qwen3_config.is_for_mlx(tmp_path) == (key == "quantization")
    assert qwen3_config.parse(NATURAL).quantization == {}
    assert not qwen3_config.is_for_mlx(tmp_path / "nowhere")


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        model_header.read(tmp_path)


# What is refused

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
REFUSED: list[tuple[Shape, dict[str, Any], list[str]]] = [
    (DENSE, {"architectures": ["LlamaForCausalLM"]}, ["LlamaForCausalLM", "Qwen3ForCausalLM"]),
    (DENSE, {"architectures": [["Qwen3ForCausalLM"]]}, ["the architecture is ['Qwen3ForCausalLM']"]),
    (DENSE, {"architectures": None, "model_type": None}, ["the architecture is none"]),
    (DENSE, {"model_type": "llama"}, ["this is a llama model"]),
    (DENSE, {"model_type": ["qwen3"]}, ["this is a ['qwen3'] model"]),
    (DENSE, {"model_type": "qwen3_moe"}, ["qwen3_moe", "Qwen3ForCausalLM"]),
    (DENSE, {"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000", "512"]),
    (DENSE, {"num_hidden_layers": None}, ["num_hidden_layers is None"]),
    (DENSE, {"num_attention_heads": "4"}, ["num_attention_heads is '4'"]),
    (DENSE, {"num_attention_heads": 0}, ["num_attention_heads is 0"]),
    (DENSE, {"num_key_value_heads": 3}, ["4 heads on 3 key-value heads"]),
    (DENSE, {"head_dim": 63}, ["key-value heads of 63"]),
    (DENSE, {"head_dim": "64"}, ["head_dim is '64'"]),
    (DENSE, {"vocab_size": -1}, ["vocab_size is -1"]),
    (DENSE, {"vocab_size": True}, ["vocab_size is True"]),
    (DENSE, {"max_position_embeddings": 4096.0}, ["max_position_embeddings is 4096.0"]),
    (DENSE, {"rms_norm_eps": True}, ["rms_norm_eps is True"]),
    (DENSE, {"rope_theta": float("nan")}, ["rope_theta is nan"]),
    (DENSE, {"rope_theta": None}, ["rope_theta is None"]),
    (DENSE, {"rope_scaling": 4}, ["rope_scaling is 4"]),
    (DENSE, {"rope_scaling": "yarn"}, ["rope_scaling is 'yarn'"]),
    (DENSE, {"rope_parameters": [4]}, ["rope_scaling is [4]"]),
    (DENSE, {"rope_scaling": YARN | {"factor": "4"}}, ["rope_scaling: factor is '4'"]),
    (DENSE, {"rope_scaling": YARN | {"factor": -1}}, ["rope_scaling: factor is -1"]),
    (DENSE, {"rope_scaling": YARN | {"original_max_position_embeddings": None}}, ["rope_scaling is {"]),
    (DENSE, {"rope_scaling": YARN | {"rope_type": 7}}, ["rope_scaling is {"]),
    (DENSE, {"tie_word_embeddings": "yes"}, ["tie_word_embeddings is 'yes'"]),
    (DENSE, {"torch_dtype": 16}, ["dtype is 16"]),
    (DENSE, {"attention_bias": True}, ["attention_bias"]),
    (DENSE, {"use_sliding_window": True}, ["sliding window"]),
    (DENSE, {"layer_types": ["full_attention", "sliding_attention"]}, ["sliding window"]),
    (DENSE, {"hidden_act": "gelu"}, ["gelu", "silu"]),
    (MIXTURE, {"mlp_only_layers": [0]}, ["layers without experts"]),
    (MIXTURE, {"decoder_sparse_step": 2}, ["layers without experts"]),
    (MIXTURE, {"norm_topk_prob": False}, ["norm_topk_prob"]),
    (MIXTURE, {"num_experts": 1000}, ["num_experts is 1000", "512"]),
    (MIXTURE, {"num_experts_per_tok": 7}, ["num_experts_per_tok is 7", "1 to 6"]),
    (MIXTURE, {"moe_intermediate_size": None}, ["moe_intermediate_size is None"]),
]


@pytest.mark.parametrize(("shape", "change", "words"), REFUSED)
def test_configs_that_no_qwen3_has(shape: Shape, change: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    """Running and converting say the same: the error names what differs."""
    folder = make_checkpoint(tmp_path / "m", shape)
    write_json(folder / "config.json", config(shape) | change)
    for read in (model_header.read, lambda folder: convert.plan(folder, "q8_0")):
        with pytest.raises(FormatError) as caught:
            read(folder)
        assert all(word in caught.value.message for word in words)
        assert caught.value.hint


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'"' + b"x" * 100, b" " * 64_000_001])
def test_files_that_are_no_object(text: bytes, tmp_path: Path) -> None:
    """Cut, of another kind, not UTF-8, nested without end, without end."""
    (tmp_path / "config.json").write_bytes(text)
    for read in (model_header.read, qwen3_config.is_for_mlx, lambda folder: convert.plan(folder, "q8_0")):
        with pytest.raises(LocalqwenError, match=r"config\.json") as caught:
            read(tmp_path)
        assert caught.value.hint


# Rotary positions


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_a_config_says_what_scaling_it_carries(key: str, name: str) -> None:
    rope = {name: "yarn", "factor": 4, "original_max_position_embeddings": 32_768, "beta_fast": 16}
    found = qwen3_config.parse(NATURAL | {key: rope})
    assert found.scaling == Scaling(4.0, 32_768)
    assert found.rope == {**rope, "rope_type": "yarn"}, "engines are given all of it"
    plain = qwen3_config.parse(NATURAL | {key: {name: "default", "rope_theta": 1e6}})
    assert (plain.scaling, plain.rope) == (None, None)


def test_scalings_other_than_yarn_run_and_are_not_converted_to_gguf(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", DENSE)
    write_json(folder / "config.json", NATURAL | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    assert model_header.read(folder).scaling == Scaling(2.0, 0, "linear")
    with pytest.raises(LocalqwenError, match="'linear' is not converted, yarn is"):
        convert.plan(folder, "q8_0")


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_stretched_config_says_so_under_the_name_that_it_has(key: str) -> None:
    before = NATURAL | {"max_position_embeddings": 40_960, "rope_parameters": None}
    if key == "rope_parameters":
        before = without(before, "rope_theta") | {key: {"rope_type": "default", "rope_theta": 5e5}}
    after, scaling = qwen3_config.stretched(before, 4)
    theta = {"rope_theta": 5e5} if key == "rope_parameters" else {}
    assert scaling == Scaling(4.0, 32_768) == qwen3_config.parse(after).scaling
    assert (after[key], after["max_position_embeddings"]) == ({**theta, **YARN}, 131_072)
    assert without(after, key, "max_position_embeddings") == without(before, key, "max_position_embeddings")
