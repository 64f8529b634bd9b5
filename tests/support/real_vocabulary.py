"""Qwen3's own tokenizer.json, rebuilt without a model hub from the ranks that the `qwen-agent` wheel ships.

A byte-level BPE vocabulary is its ranks: the merge that makes a token is the last one when its bytes are encoded with
the ranks below its own. The result is the official file to the byte, which its sha256 proves.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from checkpoints import ADDED_TOKENS, Shape, byte_tokens, make_checkpoint, tokenizer, write_json

#: Of the official file, 11,422,654 bytes.
SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
#: Rows of the embedding in every Qwen3; 267 of them have no token.
ROWS = 151_936


def tokenizer_json() -> bytes:
    ranks = _ranks()
    letters = dict(zip(_byte_order(), byte_tokens(), strict=True))

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    content = tokenizer()
    for place, token in enumerate(content["added_tokens"]):
        token["id"] = len(ranks) + place
    model: dict[str, Any] = content["model"]
    del model["vocab"], model["merges"]
    model["ignore_merges"] = False
    model["vocab"] = {text(token): rank for token, rank in ranks.items()}
    model["merges"] = [[text(part) for part in _last_merge(token, ranks)] for token in ranks if len(token) > 1]
    data = json.dumps(content, ensure_ascii=False, indent=2).encode()
    assert hashlib.sha256(data).hexdigest() == SHA256
    return data


def checkpoint(folder: Path) -> Path:
    """Make a tiny random model with this vocabulary."""
    make_checkpoint(folder, Shape(hidden=64, feed_forward=64, layers=1, heads=1, kv_heads=1, rows=ROWS))
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    config = json.loads((folder / "config.json").read_text())
    ends = {"bos_token_id": token_id("<|endoftext|>"), "eos_token_id": token_id("<|im_end|>")}
    write_json(folder / "config.json", config | ends)
    return folder


def token_id(added: str) -> int:
    return 151_643 + [text for text, _ in ADDED_TOKENS].index(added)


def _ranks() -> dict[bytes, int]:
    """Found without importing the package, which would import half of the web."""
    spec = importlib.util.find_spec("qwen_agent")
    assert spec is not None, "pip install qwen-agent"
    assert spec.origin is not None
    lines = (Path(spec.origin).parent / "utils" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def _byte_order() -> list[int]:
    """The bytes in the order of `byte_tokens`: the printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*printable, *(byte for byte in range(256) if byte not in printable)]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that are left when the lowest-ranked neighbours are joined until no more than two remain."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[place] + parts[place + 1], len(ranks)) for place in range(len(parts) - 1)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
