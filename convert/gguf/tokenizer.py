"""The `tokenizer.*` keys of GGUF from tokenizer.json and its companions: byte-level BPE with Qwen2's split only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from convert.gguf.head import Metadata
from convert.sources.checkpoint import Checkpoint
from localqwen.errors import CheckpointError

#: llama.cpp calls this split `qwen2` and has it compiled in; it cannot read another one from the file.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama_token_type
_FILE = "tokenizer.json"
_HINT = "take tokenizer.json and config.json from the same checkpoint"


@dataclass
class _Vocabulary:
    """Text and type of each token by its id, and the ids of the added tokens by their text."""

    tokens: dict[int, str]
    types: dict[int, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)


def metadata(checkpoint: Checkpoint, rows: int) -> Metadata:
    """Return the tokenizer's keys for `rows` rows of embeddings; ids without a token get a padding token.

    Raise CheckpointError for a tokenizer that GGUF cannot express.
    """
    tokenizer = checkpoint.json(_FILE)
    settings = checkpoint.json("tokenizer_config.json", required=False)
    model = _model(tokenizer)
    vocabulary = _Vocabulary(_by_id(model["vocab"], rows))
    for token in (*_list(tokenizer, "added_tokens"), *_declared(settings)):
        _add(vocabulary, token, rows)
    result: Metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [vocabulary.tokens.get(token_id, f"[PAD{token_id}]") for token_id in range(rows)],
        "tokenizer.ggml.token_type": [
            vocabulary.types.get(token_id, _NORMAL if token_id in vocabulary.tokens else _UNUSED)
            for token_id in range(rows)
        ],
        "tokenizer.ggml.merges": _merges(model),
        **_special_ids(checkpoint, settings, vocabulary, rows),
        "tokenizer.ggml.add_bos_token": settings.get("add_bos_token") is True,
    }
    template = _chat_template(checkpoint, settings)
    return result | ({"tokenizer.chat_template": template} if template else {})


def _model(tokenizer: dict[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{_FILE} holds no BPE model with a vocabulary", _HINT)
    pre = tokenizer.get("pre_tokenizer")
    steps = _list(pre, "pretokenizers") or [pre] if isinstance(pre, dict) else []
    splits = [step.get("pattern") for step in steps if isinstance(step, dict) and step.get("type") == "Split"]
    if splits != [{"Regex": _QWEN2_SPLIT}]:
        raise CheckpointError(
            f"{_FILE} splits text by {str(splits)[:120]}, not by the rule that Qwen2 and Qwen3 share",
            "GGUF files name their split, they cannot carry one: use Qwen3's tokenizer.json",
        )
    return model


def _by_id(vocab: dict[str, Any], rows: int) -> dict[int, str]:
    tokens: dict[int, str] = {}
    for text, token_id in vocab.items():
        _check_id(token_id, text, rows)
        if token_id in tokens:
            raise CheckpointError(f"{_FILE} gives the id {token_id} to {tokens[token_id]!r} and to {text!r}", _HINT)
        tokens[token_id] = text
    return tokens


def _check_id(token_id: Any, text: str, rows: int) -> None:
    if type(token_id) is not int or token_id < 0:
        raise CheckpointError(f"{_FILE} gives {text!r} the id {token_id!r}", _HINT)
    if token_id >= rows:
        raise CheckpointError(
            f"{_FILE} gives {text!r} the id {token_id:,}, the embedding has only {rows:,} rows", _HINT
        )


def _declared(settings: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Yield the added tokens that only tokenizer_config.json has, as transformers does."""
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError("tokenizer_config.json: added_tokens_decoder is not an object", _HINT)
    for token_id, token in decoder.items():
        if isinstance(token, dict):
            yield {**token, "id": int(token_id) if token_id.isdecimal() and len(token_id) < 10 else token_id}


def _add(vocabulary: _Vocabulary, token: Any, rows: int) -> None:
    text = token.get("content") if isinstance(token, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(f"{_FILE} has an added token without text: {str(token)[:120]}", _HINT)
    token_id = token.get("id")
    _check_id(token_id, text, rows)
    if vocabulary.tokens.get(token_id, text) != text or vocabulary.added.get(text, token_id) != token_id:
        raise CheckpointError(
            f"{_FILE} gives the id {token_id} to {vocabulary.tokens.get(token_id)!r} and to {text!r}", _HINT
        )
    vocabulary.tokens[token_id] = text
    vocabulary.added[text] = token_id
    vocabulary.types.setdefault(token_id, _CONTROL if token.get("special") or _looks_special(text) else _USER_DEFINED)


def _looks_special(text: str) -> bool:
    """Return whether a token is a control token by its form.

    Qwen3's fim and repo tokens are not marked special, but llama.cpp's converter makes them control tokens.
    """
    return text.startswith("<|") and text.endswith("|>")


def _merges(model: dict[str, Any]) -> list[str]:
    """Return one text per merge. Newer files hold pairs, older ones both tokens in one text."""
    vocab = model["vocab"]
    merges = []
    for number, merge in enumerate(_list(model, "merges")):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        known = isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        if not known or not all(part in vocab for part in (*pair, "".join(pair))):
            raise CheckpointError(
                f"{_FILE}: merge {number} is {str(merge)[:80]!r}, not two tokens that make a third", _HINT
            )
        merges.append(" ".join(pair))
    return merges


def _special_ids(
    checkpoint: Checkpoint, settings: dict[str, Any], vocabulary: _Vocabulary, rows: int
) -> dict[str, int]:
    """Return the ids of eos, bos and padding (gguf-py: vocab.py).

    tokenizer_config.json names them by text; otherwise config.json does by id.
    """
    result: dict[str, int] = {}
    for key, short in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        token = settings.get(f"{short}_token")
        text = token.get("content") if isinstance(token, dict) else token
        token_id = vocabulary.added.get(text) if isinstance(text, str) else None
        if token_id is None:
            token_id = _configured(checkpoint, f"{short}_token_id")
        if token_id is not None:
            _check_id(token_id, f"{short}_token", rows)
            result[f"tokenizer.ggml.{key}_token_id"] = token_id
    if "tokenizer.ggml.eos_token_id" not in result:  # llama.cpp would take token 11
        raise CheckpointError("neither tokenizer_config.json nor config.json names an end token (eos_token)", _HINT)
    return result


def _configured(checkpoint: Checkpoint, key: str) -> int | None:
    for source in (checkpoint.config, checkpoint.generation_config):
        token_id = source.get(key)
        if isinstance(token_id, list) and token_id:
            token_id = token_id[0]  # generation_config lists every end token, the most usual first
        if token_id is not None:
            return token_id if type(token_id) is int else -1
    return None


def _chat_template(checkpoint: Checkpoint, settings: dict[str, Any]) -> str | None:
    """Return the chat template; a file of its own comes before tokenizer_config.json, as in transformers."""
    template = checkpoint.text("chat_template.jinja", required=False)
    if template is None:
        template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise CheckpointError("tokenizer_config.json: chat_template is not a text", _HINT)
    return template


def _list(source: dict[str, Any], key: str) -> list[Any]:
    """Return the list under `key`, an empty one if it is missing."""
    value = source.get(key) or []
    if not isinstance(value, list):
        raise CheckpointError(f"{_FILE}: {key} is not a list", _HINT)
    return value
