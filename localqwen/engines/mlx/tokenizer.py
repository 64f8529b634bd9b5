"""The tokenizer of a checkpoint folder: the same ids and bytes that its GGUF file has in llama.cpp.

Uses the `tokenizers` library itself. transformers, and mlx_lm's wrapper around it, bring settings of their own.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from localqwen.engines.text_encoder import QWEN2_SPLIT, Tag, TextEncoder
from localqwen.errors import EngineError
from localqwen.formats import json_file

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a batch has one text: no threads for it

_HINT = "download the folder again: it needs tokenizer.json, tokenizer_config.json and config.json of one checkpoint"


class FolderTokenizer:
    """The vocabulary, special tokens and chat template of a folder. Raises EngineError where files are missing or do
    not agree, FormatError where they are not JSON. `rows` is the number of rows of the embedding."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder = folder
        self._rows = rows
        self._settings = self._json("tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as exc:  # the library raises nothing narrower
            raise EngineError(f"{folder / 'tokenizer.json'} cannot be read: {exc}", _HINT) from exc
        self._added = self._add_declared()
        control = [token for token in self._added.values() if _is_control(token)]
        # Qwen3's fim and repo tokens are not marked special; llama.cpp's files make them control tokens all the same.
        self._tokenizer.add_special_tokens([_as_special(token) for token in control])
        self._control = {number for number, token in self._added.items() if _is_control(token)}
        tags = [Tag(token.content, number, number in self._control) for number, token in self._added.items()]
        self._encoder = TextEncoder(
            tags, self._encode_plain, lambda token: self.bytes_by_id[token], divisible=self._splits_as_qwen2()
        )
        self._tokenizer.encode_special_tokens = True  # as text: the encoder has cut the text at them

    def _add_declared(self) -> dict[int, AddedToken]:
        """Add the tokens of tokenizer_config.json, which belong to the vocabulary as in transformers; return all added
        tokens by id."""
        for number, token in sorted((self._settings.get("added_tokens_decoder") or {}).items(), key=_number):
            if self._tokenizer.token_to_id(token["content"]) is None:
                self._tokenizer.add_tokens([AddedToken(token["content"], normalized=False, special=False)])
            if self._tokenizer.token_to_id(token["content"]) != int(number):
                raise EngineError(f"tokenizer.json has {token['content']!r} not at {number}", _HINT)
        added: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        if max(self._tokenizer.get_vocab().values()) >= self._rows:
            raise EngineError(f"tokenizer.json has more tokens than the embedding's {self._rows:,} rows", _HINT)
        return added

    def encode(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        """Return the ids of the NFC form, as `Engine.tokenize` does."""
        return self._encoder.encode(text, special=special, limit=limit)

    def _splits_as_qwen2(self) -> bool:
        normalizer, splitter = (_state(part) for part in (self._tokenizer.normalizer, self._tokenizer.pre_tokenizer))
        steps = splitter.get("pretokenizers", ())
        patterns = [step.get("pattern") for step in steps]
        prefixed = any(step.get("add_prefix_space") for step in steps)
        return normalizer.get("type") in (None, "NFC") and patterns == [{"Regex": QWEN2_SPLIT}, None] and not prefixed

    def _encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text without tags. Other threads run meanwhile, which `encode` of a single text does not
        allow; "fast" means without the places of the tokens in the text."""
        (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoded.ids
        return ids

    @cached_property
    def bytes_by_id(self) -> list[bytes]:
        """The bytes of every row of the embedding; b"" for control tokens and unused rows."""
        result = [b""] * self._rows
        for text, number in self._tokenizer.get_vocab(with_added_tokens=False).items():
            result[number] = bytes(_BYTES[character] for character in text)
        for number, token in self._added.items():
            result[number] = b"" if number in self._control else token.content.encode()
        return result

    @property
    def special_tokens(self) -> dict[str, str]:
        """The text of tokens by the names that chat templates use. Qwen3 has no bos_token: its prompts begin without
        one."""
        found = {name: self._special(name) for name in ("eos_token", "pad_token")}
        return {name: text for name, text in found.items() if text is not None}

    def _special(self, name: str) -> str | None:
        token = self._settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return text
        for file in ("config.json", "generation_config.json"):
            number = self._json(file).get(f"{name}_id")
            number = number[0] if isinstance(number, list) and number else number  # the most usual stands first
            if isinstance(number, int) and number in self._added:
                return str(self._added[number].content)
        return None

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The ids that end an answer: of `<|im_end|>`, which ends a turn, of `<|endoftext|>`, which ends a text
        (Qwen3's generation_config.json: eos_token_id), and of what the folder declares."""
        texts = ("<|im_end|>", "<|endoftext|>", self.special_tokens.get("eos_token", ""))
        ids = (self._tokenizer.token_to_id(text) for text in texts)
        return frozenset(number for number in ids if number in self._added)

    @property
    def chat_template(self) -> str:
        """The chat template, "" where there is none. A file of its own wins over tokenizer_config.json, as in
        transformers."""
        file = self._folder / "chat_template.jinja"
        template = (
            file.read_text(encoding="utf-8", errors="replace")
            if file.is_file()
            else self._settings.get("chat_template")
        )
        if isinstance(template, list):  # several, by name
            template = next(
                (each.get("template") for each in template if isinstance(each, dict) and each.get("name") == "default"),
                None,
            )
        return template if isinstance(template, str) else ""

    def _json(self, name: str) -> dict[str, Any]:
        file = self._folder / name
        return json_file.read_object(file) if file.is_file() else {}


def _state(part: Any) -> dict[str, Any]:
    """Return what tokenizer.json says of a part of the tokenizer, {} where it has none."""
    return json.loads(part.__getstate__()) if part is not None else {}


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _is_control(token: AddedToken) -> bool:
    return token.special or (token.content.startswith("<|") and token.content.endswith("|>"))


def _as_special(token: AddedToken) -> AddedToken:
    return AddedToken(token.content, normalized=False, special=True)


def _byte_characters() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE, which writes printable bytes as they are and the others as
    characters from U+0100 (GPT-2, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()
