"""The tokenizer of the demo model: byte-level BPE in the layout of Qwen3's, trained on fixed phrases only.

Its corpus has no words, names and cities on purpose. So they split into letters and short pieces, and a tiny model can
copy and spell words that it has never seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

import demo_data
from demo_tasks import arithmetic, letters, talk, toolcalls
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ORDINARY = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
VOCABULARY = 576
SLOT = re.compile(r"\{\w*\}")
ADDED = re.compile("|".join(re.escape(text) for text in (*SPECIAL, *ORDINARY)))


def phrases() -> Iterator[tuple[str, int]]:
    """Yield fixed texts and how many times each counts, roughly as often as the model meets them."""
    skeleton = toolcalls.schema("", "", {"": {"type": "string"}}, [""])
    yield demo_data.render([{"role": "user", "content": ""}], [skeleton], True), 300
    yield (
        (
            '", "description": "", "parameters": {"type": "object", "properties": '
            '{"": {"type": "integer"}, "": {"type": "string"'
        ),
        100,
    )
    system = {"role": "system", "content": ""}
    yield demo_data.render([system, {"role": "user", "content": " /no_think"}], None, False), 150
    yield demo_data.render([{"role": "user", "content": " /think"}], None, False), 150
    yield demo_data.EARLY_STOP, 100
    yield from ((text, 4) for text in demo_data.SYSTEMS)
    for group in (arithmetic.SUMS, arithmetic.DIFFERENCES, letters.PHRASES, letters.NEXT_WORD, letters.NEXT_LETTER):
        yield from ((text, 12) for text in group)
    yield from ((text, 2) for text in (*talk.UNKNOWN, *demo_data.DOUBTS))
    yield talk.CANNOT, 80
    yield "This is not a task that I can do. I say what I can do.", 60


def greetings() -> Iterator[tuple[str, int]]:
    """Yield what is said and answered in each language."""
    for name, texts in talk.languages().items():
        for act, kind in talk.ACTS.items():
            yield texts[f"{act}_answer"], 8
            yield f"A {kind} in {name}. I answer in {name}.", 6
            yield from ((text, 2) for text in texts[act])


def tool_phrases() -> Iterator[tuple[str, int]]:
    """Yield requests, thinking and reports of the tools without the values; the tools' names are left out as well."""
    for family in toolcalls.families():
        yield from ((text, 3) for text in family["asks"])
        yield family["thinking"] + " I call {tool}.", 25
        yield family["subject"], 10
    yield "The tool has answered. I report it.", 30


def workings(random: Random) -> Iterator[str]:
    """Yield written sums and spelled letters (single letters, so they teach no word)."""
    for _ in range(1000):
        a, b = random.randint(0, 999), random.randint(0, 999)
        yield f"<think>\n{arithmetic.add_columns(a, b)}\n</think>\n\n{a} + {b} = {a + b}."
        yield f"<think>\n{arithmetic.subtract_columns(a, b)}\n</think>\n\n{a} - {b} = {a - b}."
        text = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=8))
        yield f"Spell {{word}}, count {text[0]}: {letters.spell(text, text[0])}. That makes 3."
        yield f"There are 3 {text[0]}'s in {{word}}."


def fixed_parts(text: str) -> list[str]:
    """Return the text without its slots and without added tokens, split where they stood."""
    return [part for piece in ADDED.split(text) for part in SLOT.split(piece) if part]


def corpus() -> Iterator[str]:
    """Yield all texts that the merges are learnt from."""
    for source in (phrases(), greetings(), tool_phrases()):
        for text, times in source:
            yield from fixed_parts(text) * times
    for text in workings(Random(0)):
        yield from fixed_parts(text)


def build() -> Tokenizer:
    """Train the merges and add Qwen3's added tokens, in their order and with their flags."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.post_processor = None
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = VOCABULARY - len(SPECIAL) - len(ORDINARY)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ORDINARY])
    return tokenizer


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer_config.json with the keys of the official one; the chat template is ours."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(tokenizer.token_to_id(text)): {"content": text, **plain, "special": text in SPECIAL}
        for text in (*SPECIAL, *ORDINARY)
    }
    return {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]), "bos_token": None,
        "chat_template": demo_data.TEMPLATE.read_text("utf-8"), "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 8192, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip


def main() -> None:
    """Print the learnt tokens and how some texts are split."""
    tokenizer = build()
    print(json.dumps(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[256:], ensure_ascii=False))
    for text in ("How many r's are in strawberry?", "strawberry", "What is the weather in São Paulo?", "नमस्ते", "京都"):
        print(tokenizer.encode(text).tokens)


if __name__ == "__main__":
    main()
