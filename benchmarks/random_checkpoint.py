"""Write a checkpoint in the official layout with the dimensions of a real Qwen3 and random weights.

    python benchmarks/random_checkpoint.py 0.6b build/qwen3-0.6b-random

Speed and memory do not depend on the values of the weights, so both can be measured with such a model. Its answers are
meaningless: its tokenizer is that of the demo model, and the rows above this vocabulary are unused. With
--real-vocabulary (needs qwen-agent, whose wheel has the ranks) it has Qwen3's vocabulary and answers with random words.
With --always-thinking its answers begin inside a think block, like those of the thinking-2507 models, so that the work
of a server between turns can be measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VOCABULARY = 151_936
HEAD_DIM = 128
#: size -> hidden, layers, attention heads, kv heads, ffn, tied (config.json of the official repositories)
SIZES = {
    "0.6b": (1024, 28, 16, 8, 3072, True),
    "1.7b": (2048, 28, 16, 8, 6144, True),
    "4b": (2560, 36, 32, 8, 9728, True),
    "8b": (4096, 36, 32, 8, 12288, False),
    "14b": (5120, 40, 40, 8, 17408, False),
    "32b": (5120, 64, 64, 8, 25600, False),
}
DEMO = Path(__file__).parents[1] / "localqwen" / "demo"


def config(size: str) -> dict[str, object]:
    """Return config.json of a size."""
    hidden, layers, heads, kv_heads, ffn, tied = SIZES[size]
    demo = json.loads((DEMO / "config.json").read_text())
    return demo | {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "tie_word_embeddings": tied,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40_960,
        "max_window_layers": layers,
    }


def shapes(size: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the tensors, as in the official files."""
    hidden, layers, heads, kv_heads, ffn, tied = SIZES[size]
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_norm.weight", (HEAD_DIM,)
        yield f"{prefix}.self_attn.k_norm.weight", (HEAD_DIM,)
        yield f"{prefix}.self_attn.q_proj.weight", (heads * HEAD_DIM, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv_heads * HEAD_DIM, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv_heads * HEAD_DIM, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, heads * HEAD_DIM)
        yield f"{prefix}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (VOCABULARY, hidden)


def write_weights(path: Path, size: str, seed: int) -> None:
    """Write one safetensors file in bfloat16, tensor by tensor: matrices are normal with deviation 0.02, norms are
    one."""
    tensors, header, at = list(shapes(size)), {}, 0
    for name, shape in tensors:
        length = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors:
            values = np.ones(shape, np.float32) if len(shape) == 1 else random.standard_normal(shape, np.float32) * 0.02
            (values.view(np.uint32) >> 16).astype(np.uint16).tofile(file)


def give_real_vocabulary(folder: Path) -> None:
    """Write Qwen3's tokenizer.json, and put its ids into the other files."""
    sys.path.insert(0, str(DEMO.parents[1] / "tests" / "support"))
    import real_vocabulary

    (folder / "tokenizer.json").write_bytes(real_vocabulary.tokenizer_json())
    end, text_end = (real_vocabulary.token_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    for name, ids in (
        ("config.json", {"eos_token_id": end, "bos_token_id": text_end}),
        ("generation_config.json", {"eos_token_id": [end, text_end], "pad_token_id": text_end}),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | ids, indent=2))
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values.pop("added_tokens_decoder", None)  # tokenizer.json contains the same
    (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2))


def think_always(folder: Path) -> None:
    """Let the template open the thinking, as those of the thinking-2507 models do."""
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    before = "{%- if add_generation_prompt -%}\n    {{- '<|im_start|>assistant\\n' -}}"
    if before not in values["chat_template"]:
        raise SystemExit("the demo's template has changed: say here where its generation prompt is")
    after = before.replace("assistant\\n", "assistant\\n<think>\\n")
    path.write_text(json.dumps(values | {"chat_template": values["chat_template"].replace(before, after)}))


def make(size: str, folder: Path, seed: int = 0, *, real_vocabulary: bool = False, thinking: bool = False) -> Path:
    """Write a checkpoint of a size to a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config(size), indent=2))
    if real_vocabulary:
        give_real_vocabulary(folder)
    if thinking:
        think_always(folder)
    write_weights(folder / "model.safetensors", size, seed)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real-vocabulary", action="store_true")
    parser.add_argument("--always-thinking", action="store_true")
    arguments = parser.parse_args()
    options = {"real_vocabulary": arguments.real_vocabulary, "thinking": arguments.always_thinking}
    print(make(arguments.size, arguments.folder, arguments.seed, **options))
