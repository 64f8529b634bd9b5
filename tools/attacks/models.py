"""Hostile models: each is a function of a random generator and an intact model that returns the bytes of a file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from attacks.gguf_file import (
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    TOKENS,
    UINT32,
    UINT64,
    Gguf,
    data_start,
    numbers,
    scalar,
    text,
    texts,
)
from attacks.templates import TEMPLATES
from localqwen.errors import LocalqwenError
from localqwen.formats import model_header
from localqwen.formats.gguf import GgufFile

Make = Callable[[Random, Gguf], bytes]
EPSILON = ".attention.layer_norm_rms_epsilon"
_SIZES = (
    ".block_count", ".context_length", ".embedding_length", ".feed_forward_length", ".attention.head_count",
    ".attention.head_count_kv", ".attention.key_length", ".attention.value_length",
)  # fmt: skip
_ODD_SIZES = (0, 1, 2, 3, 5, 7, 63, 65, 255, 1000, 4097, 65_537, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_TOKENIZERS = ("llama", "bert", "t5", "rwkv", "none", "no_vocab", "", "plamo2", "x")
_SPLITTERS = ("default", "", "x" * 100_000, "llama-bpe", "tekken", "\0")
_ARCHITECTURES = (
    "llama", "qwen2", "qwen3moe", "bert", "mamba", "gpt2", "clip", "t5", "rwkv6", "gemma3", "deepseek2", "phi3",
    "falcon", "wavtokenizer-dec", "qwen3vl", "", "qwen3\0", "x" * 5000,
)  # fmt: skip


def template(name: str, random: Random, good: Gguf) -> bytes:
    """Return the model with a template of one kind."""
    return _templated(good, TEMPLATES[name](random))


def _templated(good: Gguf, source: str) -> bytes:
    return good.with_value("tokenizer.chat_template", scalar(STRING, source)).written()


def eos_text(random: Random, good: Gguf) -> bytes:
    """Change the text of the token that ends an answer, or which token that is."""
    tokens: list[str | bytes] = [*good.list_of_texts(TOKENS)]
    end = good.number("tokenizer.ggml.eos_token_id")
    odd: list[str | bytes] = [b"\xff\xfe", "ÿ", "Ãł", b"", b"\xed\xa0\x80", "<|im_start|>", b"\0", "x" * 100_000]
    tokens[end] = random.choice(odd)
    changed = good.with_value(TOKENS, texts(tokens))
    ids = [scalar(UINT32, end), scalar(UINT32, 2**32 - 1), scalar(UINT32, len(tokens)), scalar(INT32, -2)]
    key = random.choice(["eos", "bos", "padding", "eot", "eom", "unknown"])
    return changed.with_value(f"tokenizer.ggml.{key}_token_id", random.choice(ids)).written()


def epsilon(random: Random, good: Gguf) -> bytes:
    """Make a floating point setting senseless."""
    key = random.choice([EPSILON, EPSILON, ".rope.freq_base"])
    value = random.choice([float("nan"), float("inf"), -1.0, 0.0, 1e-45, 1e38])
    return good.with_value(key, scalar(random.choice([FLOAT32, FLOAT32, FLOAT64]), value)).written()


def tokens(random: Random, good: Gguf) -> bytes:
    """Change, empty, repeat or drop texts of the vocabulary."""
    found: list[str | bytes] = [*good.list_of_texts(TOKENS)]
    other: list[str | bytes] = ["", "a", b"\xff", found[5], "changed", "<|im_end|>", b"\0\0", "日本" * 5000, "\u0301"]
    for _ in range(random.choice([1, 1, 10, 400])):
        found[random.randrange(len(found))] = random.choice(other)
    if random.random() < 0.3:
        found = random.choice([found[:100], [], found + ["more"] * 5000, [""] * len(found), found[::-1]])
    return good.with_value(TOKENS, texts(found)).written()


def vocabulary(random: Random, good: Gguf) -> bytes:
    """Change what else the tokenizer is made of: its kind, merges, types, scores."""
    count = len(good.list_of_texts(TOKENS))
    merges: Sequence[Sequence[str]] = ([], ["noSpace"] * 99, ["a b"] * 200_000, [" "], ["a b c d"], ["é " * 9])
    key, value = random.choice(
        [
            ("tokenizer.ggml.model", scalar(STRING, random.choice(_TOKENIZERS))),
            ("tokenizer.ggml.pre", scalar(STRING, random.choice(_SPLITTERS))),
            ("tokenizer.ggml.merges", texts(random.choice(merges))),
            ("tokenizer.ggml.merges", numbers(UINT32, [1, 2, 3])),
            ("tokenizer.ggml.token_type", numbers(INT32, [random.randint(-9, 99) for _ in range(count)])),
            ("tokenizer.ggml.token_type", numbers(INT32, [6] * count)),
            ("tokenizer.ggml.token_type", numbers(INT32, [3])),
            ("tokenizer.ggml.token_type", numbers(INT32, [])),
            ("tokenizer.ggml.scores", numbers(FLOAT32, [float("nan")] * count)),
            ("tokenizer.ggml.precompiled_charsmap", texts(["x"])),
            ("tokenizer.ggml.token_type_count", scalar(UINT32, 2**32 - 1)),
            (TOKENS, numbers(UINT32, [1] * count)),
        ]
    )  # fmt: skip
    return good.with_value(key, value).written()


def rope(random: Random, good: Gguf) -> bytes:
    """Give the model a rope scaling that does not exist or makes no sense."""
    kind = random.choice(["wild", "linear", "yarn", "longrope", "", "none", "\0"])
    factor = random.choice([4.0, 1e30, 1e-30, 0.5])
    original = random.choice([1, 8192, 2**31 - 1, 2**32 - 1])
    changed = good.with_value(".rope.scaling.type", scalar(STRING, kind))
    changed = changed.with_value(".rope.scaling.factor", scalar(FLOAT32, factor))
    more = random.choice(
        [
            (".rope.dimension_count", scalar(UINT32, random.choice(_ODD_SIZES))),
            (".rope.scaling.yarn_log_multiplier", scalar(FLOAT32, float("nan"))),
            (".rope.dimension_sections", numbers(INT32, [-1, 2**31 - 1, 0, 7])),
        ]
    )
    return (
        changed.with_value(".rope.scaling.original_context_length", scalar(UINT32, original))
        .with_value(*more)
        .written()
    )


def sizes(random: Random, good: Gguf) -> bytes:
    """Make one or two sizes odd, zero or huge, or of another type."""
    changed = good
    for key in random.sample(_SIZES, random.choice([1, 1, 2])):
        value = random.choice(_ODD_SIZES)
        other = [scalar(UINT64, 2**63), scalar(INT64, -1), scalar(INT32, -4), numbers(UINT32, [value] * 4)]
        changed = changed.with_value(key, random.choice([scalar(UINT32, value)] * 4 + other))
    return changed.written()


def context_length(random: Random, good: Gguf) -> bytes:
    """Claim a context of no, few or very many tokens."""
    values = [scalar(UINT32, number) for number in (1, 2, 31, 2**20, 2**31 - 1, 2**32 - 1)]
    values += [scalar(INT32, -1), scalar(INT64, -(2**63)), scalar(UINT64, 2**63), scalar(UINT64, 2**64 - 1)]
    return good.with_value(".context_length", random.choice(values)).written()


def extra_keys(random: Random, good: Gguf) -> bytes:
    """Give the model settings of other models, keys twice, or text with control sequences."""
    changed = random.choice(
        [
            good.with_value(".expert_count", scalar(UINT32, random.choice(_ODD_SIZES))),
            good.with_value(".attention.sliding_window", scalar(UINT32, random.choice(_ODD_SIZES))),
            good.with_value(".attention.causal", scalar(7, False)),
            good.with_value(".pooling_type", scalar(UINT32, random.choice([1, 2, 3, 99]))),
            good.with_value("general.name", scalar(STRING, "\x1b[2J\x1b]0;x\a" * 100)),
            good.with_value("general.name", scalar(STRING, b"\xff\xfe")),
            good.with_value("general.alignment", scalar(UINT32, random.choice([0, 1, 8, 33, 2**20, 2**31]))),
            good.with_value("general.file_type", scalar(UINT32, 2**32 - 1)),
            good.with_value("general.type", scalar(STRING, "adapter")), good.without("general.type"),
            good.with_value("split.count", scalar(UINT32, 65_535)).with_value("split.no", scalar(UINT32, 7)),
            good.with_value("split.count", numbers(UINT32, [1])),
            good.with_value("general.architecture", scalar(STRING, random.choice(_ARCHITECTURES))),
            replace(good, repeated=(random.choice(list(good.values)),)),
            good.without(random.choice(list(good.values))),
        ]
    )  # fmt: skip
    return changed.written(version=random.choice([3, 3, 3, 2, 1, 4]))


def tensors(random: Random, good: Gguf) -> bytes:
    """Change the type, the shape, the name or the presence of a tensor."""
    chosen = random.choice(good.tensors)
    others = [each for each in good.tensors if each != chosen]
    swapped = replace(chosen, dimensions=chosen.dimensions[::-1])
    half = replace(chosen, dimensions=(chosen.dimensions[0], *(max(1, size // 2) for size in chosen.dimensions[1:])))
    other_type = replace(chosen, kind=random.choice([0, 1, 2, 3, 6, 7, 10, 14, 16, 24, 28, 30, 39, 99]))
    changed = random.choice(
        [
            good.with_tensor(swapped), good.with_tensor(half), good.with_tensor(other_type),
            good.with_tensor(replace(chosen, name="x")),
            good.with_tensor(replace(chosen, name=random.choice(others).name)),
            good.with_tensor(replace(random.choice(others), name=chosen.name)),
            replace(good, tensors=tuple(others)), replace(good, tensors=()),
            replace(good, tensors=(*good.tensors, chosen)),
            replace(good, tensors=(*good.tensors, replace(chosen, name="output.weight"))),
            replace(good, tensors=(*good.tensors, replace(chosen, name="blk.4000000000.attn_q.weight"))),
            replace(good, tensors=tuple(random.sample(good.tensors, len(good.tensors)))),
        ]
    )  # fmt: skip
    return changed.written()


def dimensions(random: Random, good: Gguf) -> bytes:
    """Give a tensor dimensions without number or measure."""
    chosen = random.choice(good.tensors)
    odd = random.choice(
        [
            (2**63,) * 20, (2**64 - 1,) * 4, (1,) * 60_000, (0,), (), (32, 0), (2**32, 2**32), (2**62, 4), (32, 2**59),
            (chosen.dimensions[0], 1, 1, 1, 1), (2**63,) * 60_000, (1,) * 5, (3, 3),
        ]
    )  # fmt: skip
    return good.with_tensor(replace(chosen, dimensions=odd)).written()


def weights(random: Random, good: Gguf) -> bytes:
    """Fill some tensors with random bytes, NaN, infinity or zero."""
    changed = good
    for tensor in random.sample(good.tensors, random.choice([1, 5, len(good.tensors)])):
        count = len(tensor.data)
        fills = [
            random.randbytes(count),
            bytes(count),
            b"\xff" * count,
            b"\x00\x7c" * (count // 2),
            b"\xff\x7f\x00\x00" * (count // 4),
        ]
        changed = changed.with_tensor(replace(tensor, data=random.choice(fills).ljust(count, b"\0")))
    return changed.written()


def cut(random: Random, good: Gguf) -> bytes:
    """End the file early, in its header or in its data."""
    content = good.written()
    header = data_start(content)
    return content[
        : random.choice([0, 3, 23, random.randrange(header), random.randrange(header, len(content)), len(content) - 1])
    ]


def flips(random: Random, good: Gguf) -> bytes:
    """Flip some bits of the header until the strict readers accept it, or have refused fifty."""
    content = good.written()
    header = data_start(content)
    for _ in range(50):
        flipped = bytearray(content)
        for _ in range(random.choice([1, 2, 8])):
            flipped[random.randrange(24, header)] ^= 1 << random.randrange(8)
        if accepted(bytes(flipped)):
            return bytes(flipped)
    return bytes(flipped)


def accepted(content: bytes) -> bool:
    """Return whether the strict readers of localqwen take the header."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        try:
            model_header.read(Path(file.name))
            GgufFile(Path(file.name)).close()
        except LocalqwenError:
            return False
        return True


def no_gguf(random: Random, good: Gguf) -> bytes:
    """Write something that is no model at all."""
    counts = struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 2**63)
    deep = (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + text("general.tags")
        + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 50_000
    )
    return random.choice(
        [b"", b"GGUF", random.randbytes(5000), b"\x7fELF" + bytes(999), counts, bytes(100_000), deep, b"PK\3\4"]
    )


MODELS: Mapping[str, Make] = {
    **{f"template: {name}": partial(template, name) for name in TEMPLATES},
    "eos text": eos_text, "epsilon": epsilon, "token texts": tokens, "vocabulary": vocabulary, "rope": rope,
    "sizes": sizes, "context length": context_length, "extra keys": extra_keys, "tensors": tensors,
    "dimensions": dimensions, "weights": weights, "cut": cut, "bit flips": flips, "no gguf": no_gguf,
}  # fmt: skip
