"""Hostile questions to a model that is all right: each is a function of a random generator and the model's name that
returns a path and a body."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from attacks import schemas as hostile_schemas

Body = dict[str, Any]
Question = tuple[str, Body | bytes]
Make = Callable[[Random, str], Question]
#: The most bytes of a hostile text: a little less than the largest body that a server takes, or a little more.
_MOST = (7 << 20, 8 << 20, (8 << 20) + 1000)
_MARKS = (
    "\u0301", "\u0316\u0301", "\u0301\u0316", "e\u0301", "\u1161", "\u1100\u1161\u11a8", "\u0f71\u0f72",
    "\u05b0\u094d\u3099", "\U0001d15e",
)  # fmt: skip
_WORDS = (
    "a", "word ", "9", " ", "\n", "\t \n", "'s", ".", "日", "ä", "Aa", "aaaaaaaab", "\r\n", "x=", "0x", "\u00a0", "🙂",
    "👨‍👩‍👧",
)  # fmt: skip
_CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_response>", "<|",
)  # fmt: skip
_TAGS = (
    *_CONTROL, " ".join(_CONTROL), "<|im_start|>user\n", "<think></think>", "<" * 9, "/think ", "/no_think\n",
    "<tool_call>{}",
)  # fmt: skip

#: Names of the demo, or of the first model of the command line.
MEAN_THE_DEFAULT = ("", "DEMO", "demo:latest", ":latest")
_NAMES = (
    *MEAN_THE_DEFAULT,
    "🙂" * 80, "x" * 300, "x" * 5000, "../" * 50 + "etc/passwd", "/etc/passwd", "a\0b", "qwen3:9b",
    "qwen3:4b:q4:q4", "~root/x.gguf", ".", "..",
    " ", "hf:", "hf:/", "hf:a/b/c:d", "hf:" + "a" * 500 + "/b", "ms:..", "hf.co/../..:x",
    "demo:latest:latest", "demo\n", "\x1b[2J",
    "con", "CON.gguf", "file:///etc/passwd", "%00", "%2e%2e%2f", "é" * 130, "\ud83d", "-x", "--help", ":",
    "::", "*", "[a-z]*", "a" * 251 + ".gguf",
)  # fmt: skip
_ODD: Sequence[Any] = (
    None, True, -1, 1e300, "", "x" * 70_000, [], {}, [[]], [None] * 1000, {"a": {"a": {}}}, "\ud800", "\0", 2**70,
)  # fmt: skip


def asked(random: Random, model: str, messages: Sequence[Body], tools: Sequence[Body] = ()) -> Question:
    """Return a conversation as a request of one of the APIs."""
    call = random.choice([chat, responses, ollama_chat, anthropic, count_tokens])
    return call(model, messages, tools)


def chat(model: str, messages: Sequence[Body], tools: Sequence[Body] = ()) -> Question:
    """Return a request of OpenAI's chat completions."""
    body: Body = {"model": model, "messages": list(messages), "max_tokens": 8, "temperature": 0}
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    return "/v1/chat/completions", body | ({"tools": wrapped} if tools else {})


def responses(model: str, messages: Sequence[Body], tools: Sequence[Body] = ()) -> Question:
    """Return a request of OpenAI's responses."""
    body: Body = {"model": model, "input": list(messages), "max_output_tokens": 16}
    flat = [{"type": "function", **tool} for tool in tools]
    return "/v1/responses", body | ({"tools": flat} if tools else {})


def ollama_chat(model: str, messages: Sequence[Body], tools: Sequence[Body] = ()) -> Question:
    """Return a request of Ollama's chat."""
    body: Body = {"model": model, "messages": list(messages), "options": {"num_predict": 8}, "stream": False}
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    return "/api/chat", body | ({"tools": wrapped} if tools else {})


def anthropic(model: str, messages: Sequence[Body], tools: Sequence[Body] = ()) -> Question:
    """Return a request of Anthropic's messages."""
    path, body = count_tokens(model, messages, tools)
    assert isinstance(body, dict)
    return path.removesuffix("/count_tokens"), body | {"max_tokens": 8}


def count_tokens(model: str, messages: Sequence[Body], tools: Sequence[Body] = ()) -> Question:
    """Return a request of Anthropic's count of tokens."""
    body: Body = {"model": model, "messages": [each for each in messages if each["role"] != "system"]}
    theirs = [
        {"name": tool["name"], "description": tool.get("description", ""), "input_schema": tool["parameters"]}
        for tool in tools
    ]
    return "/v1/messages/count_tokens", body | ({"tools": theirs} if tools else {})


def raw(random: Random, model: str, text: str) -> Question:
    """Return a text as a prompt without a template."""
    completion: Body = {"model": model, "prompt": text, "max_tokens": 8}
    generate: Body = {"model": model, "prompt": text, "stream": False, "options": {"num_predict": 8}, "raw": True}
    return random.choice([("/v1/completions", completion), ("/api/generate", generate)])


def said(random: Random, model: str, text: str) -> Question:
    """Return a text as a user's question, or as a raw prompt."""
    if random.random() < 0.25:
        return raw(random, model, text)
    return asked(random, model, [{"role": "user", "content": text}])


def long(random: Random, model: str, pieces: Callable[[Random], str]) -> Question:
    """Return a question of 100 KB to 8 MiB that repeats a piece."""
    piece = pieces(random)
    size = random.choice([100_000, 1_000_000, *_MOST])
    return said(random, model, "a" + piece * (size // len(piece.encode())) + random.choice(["", "b"]))


def marks(random: Random) -> str:
    """Return combining marks: in order, out of order, or decomposed letters, whose composition takes time."""
    return random.choice(_MARKS)


def words(random: Random) -> str:
    """Return a piece of a word, a number or white space without end."""
    return random.choice(_WORDS)


def tags(random: Random) -> str:
    """Return a tag of the template, whole, cut or mixed."""
    return random.choice(_TAGS)


def unicode_noise(random: Random) -> str:
    """Return random characters of all planes, without surrogates."""
    codes = (random.choice([random.randrange(1, 0xD800), random.randrange(0xE000, 0x110000)]) for _ in range(5_000))
    return "".join(map(chr, codes))


def noncharacters(random: Random, model: str) -> Question:
    """Return a question with every noncharacter, private use and control characters."""
    text = "".join(map(chr, [*range(1, 32), *range(0xFDD0, 0xFDF0), *range(0xE000, 0xE400), 0xFEFF, 0xFFFE, 0x10FFFF]))
    return said(random, model, text * random.choice([1, 100]))


def tools(random: Random, model: str) -> Question:
    """Return thousands of tools with required arguments."""
    count = random.choice([500, 2_000, 5_000, 20_000])
    names = [f"argument_{number}" for number in range(random.choice([1, 5, 20]))]
    parameters = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    made = [{"name": f"tool_{number}", "description": "x" * 9, "parameters": parameters} for number in range(count)]
    path, body = asked(random, model, [{"role": "user", "content": "hi"}], made)
    assert isinstance(body, dict)
    forced: Body = {"tool_choice": random.choice(["required", "auto"])} if path == "/v1/chat/completions" else {}
    return path, body | forced


def schemas(random: Random, model: str) -> Question:
    """Return a question whose answer must follow a hostile schema."""
    made = hostile_schemas.schema(random)
    messages = [{"role": "user", "content": "hi /no_think"}]
    named = {"name": "x", "schema": made, "strict": random.random() < 0.5}
    way = random.randrange(4)
    if way == 0:
        path, body = chat(model, messages)
        more: Body = {"response_format": {"type": "json_schema", "json_schema": named}}
    elif way == 1:
        path, body = ollama_chat(model, messages)
        more = {"format": made}
    elif way == 2:
        path, body = responses(model, messages)
        more = {"text": {"format": {"type": "json_schema", **named}}}
    else:
        path, body = chat(model, messages, [{"name": "f", "parameters": made, "strict": True}])
        more = {"tool_choice": "required"}
    assert isinstance(body, dict)
    return path, body | more


def messages(random: Random, model: str) -> Question:
    """Return thousands of messages."""
    count = random.choice([1_000, 10_000, 60_000])
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    question: Body = {"role": "user", "content": "x"}
    thinking: Body = {"role": "assistant", "content": "<think>" * 9 + "</think>"}
    calling: Body = {"role": "assistant", "content": "", "tool_calls": [call] * 9}
    made: Sequence[Body] = random.choice(
        [
            [{"role": role, "content": "hi"} for role in ("user", "assistant")] * (count // 2),
            [{"role": "user", "content": ""}] * count,
            [{"role": "system", "content": "x"}] * count,
            [question, thinking] * (count // 2),
            [question, calling] * (count // 9),
        ]
    )  # fmt: skip
    return asked(random, model, [*made, {"role": "user", "content": "hi"}])


def dense_json(random: Random, model: str) -> Question:
    """Return a body of a few bytes per value, or whose nesting, numbers or keys take time to parse."""
    size = random.choice([400_000, 2_000_000, *_MOST])
    head = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8})[:-1].encode()
    piece, end = random.choice(
        [
            (b"[],", b"[]]"), (b"1,", b"1]"), (b"{},", b"{}]"), (b'"",', b'""]'), (b"[", b"]"), (b'{"a":', b"1}"),
            (b"1e9,", b"1]"),
            (b"0.1234567890123456789,", b"1]"), (b"null,", b"1]"), (b'"\\u0301",', b"1]"),
            (b"9" * 4000 + b",", b"1]"), (b'{"a":1,"a":2},', b"1]"),
        ]
    )  # fmt: skip
    if piece in (b"[", b'{"a":'):
        filled = piece * (size // len(piece)) + b"1" + end[-1:] * (size // len(piece))
        return "/v1/chat/completions", head + b', "x": ' + filled[: _MOST[0]] + b"}"
    keys = b",".join(b'"k%d":1' % number for number in range(size // 12))
    filled = random.choice([b"[" + piece * (size // len(piece)) + end] * 3 + [b"{" + keys + b"}"])
    name = random.choice([b"x", b"stop", b"metadata", b"tools", b"messages", b"logit_bias"])
    path = random.choice(["/v1/chat/completions", "/v1/messages", "/api/chat"])
    return path, head + b', "%b": ' % name + filled + b"}"


def wishes(random: Random, model: str) -> Question:
    """Return small questions with wishes beyond measure."""
    path, body = chat(model, [{"role": "user", "content": f"Say hello {random.random()} /no_think"}])
    assert isinstance(body, dict)
    stops = ["".join(random.choices("ab", k=9)) for _ in range(random.choice([64, 65, 100_000]))]
    more: Body = random.choice(
        [
            {"stop": stops}, {"stop": ["x" * 1_000_000]}, {"stop": [""]}, {"logprobs": True, "top_logprobs": 10**9},
            {"logprobs": True, "top_logprobs": 20, "n": 8},
            {"n": 10**9}, {"n": 128, "max_tokens": 500}, {"max_tokens": 10**18}, {"max_tokens": -(10**30)},
            {"max_tokens": 10**6, "temperature": 2}, {"seed": 2**64},
            {"temperature": 1e308}, {"top_p": 5e-324}, {"top_k": 2**31}, {"repetition_penalty": 1e308},
            {"repetition_penalty": 1e-308}, {"presence_penalty": -1e308},
            {"frequency_penalty": 2, "max_tokens": 3000},
            {"logit_bias": {str(number): 100 for number in range(100_000)}}, {"thinking_budget": 10**12},
            {"chat_template_kwargs": {"enable_thinking": True, "x" * 100_000: 1}},
            {"stream": True, "max_tokens": 4000}, {"user": "x" * 5_000_000}, {"num_ctx": 2**31},
            {"response_format": {"type": "json_object"}, "max_tokens": 10**6},
            {"reasoning_effort": "high", "max_tokens": 10**6, "temperature": 2.0},
        ]
    )  # fmt: skip
    return path, body | more


def odd_fields(random: Random, model: str) -> Question:
    """Return a question in which one field, at any depth, has a value of any type."""
    tool = {"name": "f", "parameters": {"type": "object"}}
    path, body = asked(random, model, [{"role": "user", "content": "hi"}], [tool])
    place: Any = body
    while True:
        key: Any = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or random.random() < 0.4:
            break
        place = place[key]
    place[key] = random.choice(_ODD)
    return path, body


def names(random: Random, model: str) -> Question:
    """Return a question to a model that does not exist, or to a path."""
    name = random.choice(_NAMES)
    show: Question = ("/api/show", {"model": name})
    load: Question = ("/api/generate", {"model": name, "stream": False})
    pull: Question = ("/api/pull", {"model": name, "stream": random.random() < 0.5})
    return random.choice([asked(random, name, [{"role": "user", "content": "hi"}]), show, load, pull])


QUESTIONS: Mapping[str, Make] = {
    "marks": partial(long, pieces=marks), "words": partial(long, pieces=words), "tags": partial(long, pieces=tags),
    "unicode noise": partial(long, pieces=unicode_noise), "noncharacters": noncharacters, "tools": tools,
    "schemas": schemas, "messages": messages, "dense json": dense_json, "wishes": wishes, "odd fields": odd_fields,
}  # fmt: skip
