"""JSON from strangers: counted before it is parsed, so that no text is parsed that takes long."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from starlette.requests import Request
from starlette.types import Message

from localqwen import json_text
from localqwen.errors import BadField
from localqwen.json_text import DEEPEST, LONGEST_NUMBER, MOST_VALUES, Refused
from localqwen.serve.fields import Fields
from localqwen.serve.http import request_body
from localqwen.serve.openai import request as openai_request

_SCALARS = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False)
_TEXTS = some.text() | some.lists(some.sampled_from('\\"[]{},:\n0é😀'), max_size=12).map("".join)
_VALUES = some.recursive(
    _SCALARS | _TEXTS, lambda inner: some.lists(inner) | some.dictionaries(_TEXTS, inner), max_leaves=30
)


def counted(value: Any) -> int:
    """All values and keys; an empty list or object counts as two."""
    if isinstance(value, list):
        return 1 + (sum(map(counted, value)) or 1)
    if isinstance(value, dict):
        return 1 + (len(value) + sum(map(counted, value.values())) or 1)
    return 1


@given(value=_VALUES, ascii_only=some.booleans(), indent=some.sampled_from([None, 2]))
def test_json_is_read_as_python_reads_it_and_counted(value: Any, ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert json_text.parse(data) == (value, counted(value))


@given(data=some.binary() | _TEXTS.map(str.encode))
def test_any_bytes_are_read_as_python_reads_them_or_refused(data: bytes) -> None:
    try:
        expected = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        expected = Refused
    if expected is Refused:
        with pytest.raises(Refused):
            json_text.parse(data)
    else:
        assert json_text.parse(data)[0] == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" + b"0," * MOST_VALUES + b"0]", "has 200,002 values and keys, at most 200,000 are allowed"),
        (b"{" + b'"k":0,' * (MOST_VALUES // 2) + b'"k":0}', "has 200,003 values"),
        (b"[" + b"[]," * (MOST_VALUES // 2) + b"[]]", "has 200,003 values"),
        (b'"' * 2 * (MOST_VALUES + 1), "has 200,001 values"),
        (b'""' * (MOST_VALUES + 1), "has 200,001 values"),
        (b"[" * (DEEPEST + 1), "is nested too deeply: more than 100"),
        (b'{"a":' * (DEEPEST + 1) + b"0" + b"}" * (DEEPEST + 1), "is nested too deeply"),
        (b"[" * (MOST_VALUES - 1), "is nested too deeply"),
        (b"9" * (LONGEST_NUMBER + 1), "has a number of more than 400 characters"),
        (b"[1, -1." + b"0" * LONGEST_NUMBER + b"e5]", "has a number"),
        (b"1e" + b"9" * LONGEST_NUMBER, "has a number"),
        (b"\\" * 1001, "is not JSON"),
        (b'"' + b"\\" * 1001 + b'"', "is not JSON: Unterminated string"),
        (b'"\xed\xa0\x80"', "is not UTF-8: byte 1"),
        (b'"\\ud83d\\ude00\\ud83d"', "half a surrogate pair"),
        (b'{"\\udfff": 0}', "half a surrogate pair"),
        ('{"a": 0}'.encode("utf-16"), "is not UTF-8: byte 0"),
        ('{"a": 0}'.encode("utf-16-le"), "is not JSON"),
        ('{"a": 0}'.encode("utf-32"), "is not UTF-8: byte 0"),
        (b"-Infinity", "-Infinity is not a number"),
        (b"[1}", "is not JSON: Expecting ',' delimiter at line 1, column 3"),
    ],
    ids=range(21),
)
def test_what_is_beyond_the_limits_is_refused_with_the_numbers(data: bytes, said: str) -> None:
    with pytest.raises(Refused) as caught:
        json_text.parse(data)
    assert said in str(caught.value)


@pytest.mark.parametrize("inside", ["[", "]", "{", ",", ":", '"', "\\", "\\\\", '\\"', "9"])
def test_what_stands_in_a_string_counts_as_one_value(inside: str) -> None:
    text = inside * 300_000
    assert json_text.parse(json.dumps([text]).encode()) == ([text], 2)


def test_the_limits_themselves_are_allowed() -> None:
    assert json_text.parse(b"[" + b"0," * (MOST_VALUES - 3) + b"0]")[1] == MOST_VALUES - 1
    assert json_text.parse(b"[" * DEEPEST + b"]" * DEEPEST)[1] == DEEPEST + 1
    assert json_text.parse(b"9" * LONGEST_NUMBER)[0] == 10**LONGEST_NUMBER - 1
    assert json_text.parse(b"\xef\xbb\xbf{}")[0] == {}
    assert json_text.parse(b'"\\ud83d\\ude00"')[0] == "😀"


def test_nothing_that_is_refused_for_its_numbers_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(json_text.json, "loads", lambda text, **_: parsed.append(text))
    for data in (b"[0," * MOST_VALUES, b"[" * MOST_VALUES, b"9" * 1000, b'"",' * 300_000, b":" * 300_000):
        with pytest.raises(Refused):
            json_text.parse(data)
    assert not parsed


def test_strings_with_json_share_the_allowance_of_one_request() -> None:
    """Else a body of a few values, with a hundred thousand values in each of its strings, would be parsed."""
    dense = '{"x": [' + "0," * (MOST_VALUES // 4) + "0]}"
    calls = [{"function": {"name": "f", "arguments": dense}} for _ in range(5)]
    body = {"messages": [{"role": "assistant", "tool_calls": calls[:3]}, {"role": "user", "content": "x"}]}
    assert len(openai_request.messages(Fields(body))[0].tool_calls) == 3
    body["messages"][0]["tool_calls"] = calls
    with pytest.raises(BadField, match=r"tool_calls\[3\].*has 50,004 values and keys, at most 49,988"):
        openai_request.messages(Fields(body))


@pytest.mark.parametrize(
    "piece",
    [b"\\u0041", b'\\"', b"\\\\", b"\\n", b"a", "é😀".encode(), b'","', b'\\u4e2d","', b" ", b'",1.2345678901,"'],
    ids=range(10),
)
def test_four_times_the_text_takes_about_four_times_as_long(piece: bytes) -> None:
    def seconds(size: int) -> float:
        data = b'["' + piece * (size // len(piece)) + b'"]'
        began = time.thread_time()
        json_text.parse(data)
        return time.thread_time() - began

    size = 100_000
    assert min(seconds(4 * size) for _ in range(5)) < 8 * min(seconds(size) for _ in range(5)) + 1e-3


def test_other_threads_run_while_many_numbers_are_parsed() -> None:
    """The parser is one call in C; only where it calls Python can another thread run."""
    data = b"[" + b"1.2345678901234567890123456789e-10," * 190_000 + b"0]"
    turns, done = [0], threading.Event()

    def turn() -> None:
        while not done.is_set():
            turns[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=turn)
    thread.start()
    before = turns[0]
    json_text.parse(data)
    taken = turns[0] - before
    done.set()
    thread.join()
    assert taken > 3


@pytest.mark.parametrize(("size", "elsewhere"), [(1000, False), (100_000, True)])
def test_a_large_body_is_parsed_and_read_outside_the_event_loop(size: int, elsewhere: bool) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps({"x": "a" * size}).encode()}

    async def thread_of_reader() -> threading.Thread:
        return await request_body.read(Request({"type": "http", "headers": []}, receive), reader)

    def reader(body: dict[str, Any]) -> threading.Thread:
        assert body == {"x": "a" * size}
        return threading.current_thread()

    assert (asyncio.run(thread_of_reader()) is not threading.current_thread()) == elsewhere
