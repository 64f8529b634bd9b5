"""Tool calls: which tool, which arguments, and what came back.

Tools are renamed at random and some have made-up names, so that names are read from the list and not remembered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from .arithmetic import operand
from .talk import topic
from .words import held_out, made_up, real_words

VERBS = ("get", "set", "find", "do", "run", "make", "check", "open", "read", "load", "fetch", "update", "list", "show")
ORDERS = (
    "Call {n} with {v}", "Use {n} with {v}", "Use {n} for {v}", "Call {n} for {v}", "Please run {n} on {v}", "{n} {v}",
    "Use the tool {n} with {p} {v}", "Call {n} with {p} = {v}", "Use {n} with {p} {v}", "Run {n} for {v}", "{n}: {v}",
)  # fmt: skip
UNSPLIT = ("language", "currency", "room", "condition", "message")  # lists too short to keep some back
ENDS = ("?", "?", "", ".", "!", " please", ", please")


@dataclass(frozen=True)
class Task:
    """One request that needs a tool: what the user says, the calls, and how the results are reported."""

    text: str
    schema: dict[str, Any]
    calls: tuple[dict[str, Any], ...]
    thinking: str
    subjects: tuple[str, ...]
    results: tuple[str, ...]
    known: bool
    """Is it one of the trained families (as opposed to a tool with a made-up purpose)?"""


@cache
def families() -> list[dict[str, Any]]:
    """Return the trained kinds of tools."""
    return json.loads(Path(__file__).with_name("tools.json").read_text("utf-8"))


@cache
def values() -> dict[str, list[str]]:
    """Return the lists of values by kind."""
    lines = Path(__file__).with_name("values.txt").read_text("utf-8").splitlines()
    rows = [line.split("|") for line in lines if not line.startswith("#")]
    return {row[0]: row[1:] for row in rows}


def foreign(random: Random) -> str:
    """Return two to four characters of another script, so that the model learns to copy any bytes."""
    first, last = random.choice(((0x4E00, 0x9FA0), (0x430, 0x44F), (0xAC00, 0xD7A0), (0x3B1, 0x3C9), (0x3041, 0x3093)))
    return "".join(chr(random.randint(first, last)) for _ in range(random.randint(2, 4)))


def name_like(random: Random, kind: str) -> str:
    """Return a value of a listed kind, a made-up name, or a name in another script."""
    chance = random.random()
    if chance < 0.55 or kind not in ("city", "person", "song"):
        return random.choice(values()[kind])
    return foreign(random) if chance > 0.93 else made_up(random, 3, 10).capitalize()


def value(random: Random, kind: str, evaluation: bool) -> Any:
    """Return a value of the wanted side; numbers and short lists are not split."""
    if kind == "number":
        return operand(random, random.choice((1, 2, 2, 3)))
    if kind == "minutes":
        return random.randint(1, 60)
    if kind == "clock":
        return f"{random.randint(0, 23)}:{random.choice(('00', '15', '30', '45'))}"
    if kind == "expression":
        return f"{operand(random, 2)} {random.choice('+-*/')} {operand(random, random.choice((1, 2)))}"
    while True:
        if kind in ("topic", "word"):
            text = random.choice(real_words()) if kind == "word" else topic(random)
        else:
            text = name_like(random, kind)
        if kind in UNSPLIT or held_out(text) == evaluation:
            return text


def schema(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return a tool in OpenAI's format."""
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def made_up_name(random: Random) -> str:
    """Return a name that no list holds, such as `get_frobnik`."""
    return random.choice((f"{random.choice(VERBS)}_{made_up(random, 3, 8)}", made_up(random, 4, 9)))


def family_schema(random: Random, family: dict[str, Any]) -> dict[str, Any]:
    """Return one family's schema under one of its names."""
    name = made_up_name(random) if random.random() < 0.08 else random.choice(family["names"])
    properties: dict[str, Any] = {}
    for parameter in family["parameters"]:
        entry = {"type": parameter["type"]}
        if "description" in parameter and random.random() < 0.6:
            entry["description"] = parameter["description"]
        properties[random.choice([n for n in parameter["names"] if n not in properties])] = entry
    required = list(properties)
    option = family.get("option")
    if option and random.random() < 0.5:
        properties[option["name"]] = {"type": "string", "enum": option["enum"]}
    return schema(name, random.choice(family["descriptions"]), properties, required)


def weather(random: Random) -> str:
    """Return a weather service's answer, in one of its many shapes."""
    degrees, sky = random.randint(-15, 38), random.choice(values()["condition"])
    shapes: list[Any] = [{"temperature": degrees, "condition": sky}, {"temp": degrees}, {"temperature": degrees}]
    shapes += [{"temp_c": degrees, "sky": sky}, f"{degrees}", f"{degrees} degrees"]
    shapes += [f"{degrees}°C, {sky}", f"{sky}, {degrees}"]
    shape = random.choice(shapes)
    return shape if isinstance(shape, str) else json.dumps(shape, ensure_ascii=False)


def result(random: Random, kind: str) -> str:
    """Return what a tool returns: plain text or a small JSON object."""
    if kind == "weather":
        return weather(random)
    if kind == "time":
        content: Any = f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"
    elif kind == "number":
        content = random.choice((random.randint(0, 9999), round(random.uniform(0, 999), 2)))
    elif kind == "done":
        content = random.choice(("ok", "done", "success", "error", "not found", "true", "failed: no connection"))
    else:
        content = " ".join(topic(random) for _ in range(random.randint(1, 3)))
    if random.random() < 0.4:
        return json.dumps({random.choice((kind, "result", "value", "status")): content}, ensure_ascii=False)
    return str(content)


def flat(text: str) -> str:
    """Return a result in words: the fields of an object by name, any other value as it is."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        return text
    return ", ".join(f"{key} {content}" for key, content in data.items()) if isinstance(data, dict) else text


def report(subjects: Sequence[str], results: Sequence[str]) -> str:
    """Return the one sentence per result that follows a tool's answer."""
    return " ".join(f"{subject}: {flat(text)}." for subject, text in zip(subjects, results, strict=True))


def family_task(random: Random, evaluation: bool, family: dict[str, Any]) -> Task:
    """Return a request to one of the trained families; sometimes for two cities at once."""
    tool = family_schema(random, family)
    names = tool["function"]["parameters"]["required"]
    filled = [value(random, parameter["value"], evaluation) for parameter in family["parameters"]]
    calls, subjects = [dict(zip(names, filled, strict=True))], [family["subject"].format(*filled)]
    if "both" in family and random.random() < 0.1:
        filled.append(value(random, "city", evaluation))
        calls.append({names[0]: filled[1]})
        subjects.append(family["subject"].format(filled[1]))
        text = family["both"].format(*filled)
    else:
        text = random.choice(family["asks"]).format(*filled)
    option = family.get("option")
    if option and option["name"] in tool["function"]["parameters"]["properties"] and random.random() < 0.6:
        unit = random.choice(option["enum"])
        text += random.choice(option["phrases"][unit])
        calls = [call | {option["name"]: unit} for call in calls]
    results = tuple(result(random, family["results"][0]) for _ in calls)
    thinking = f"{family['thinking'].format(*filled)} I call {tool['function']['name']}."
    made = tuple({"name": tool["function"]["name"], "arguments": call} for call in calls)
    return Task(text + random.choice(ENDS), tool, made, thinking, tuple(subjects), results, known=True)


def novel_task(random: Random) -> Task:
    """Return a request that names a made-up tool and gives its one or two arguments (or none)."""
    name = made_up_name(random)
    count = random.choices((0, 1, 2), (1, 6, 2))[0]
    properties, arguments = {}, {}
    for _ in range(count):
        whole = random.random() < 0.3
        key = random.choice(("name", "value", "id", "item", "level", "query", "key", made_up(random, 3, 7)))
        properties[key] = {"type": "integer" if whole else "string"}
        arguments[key] = operand(random, random.choice((1, 2, 3))) if whole else topic(random)
    text = f"{random.choice(('Call', 'Use', 'Run', 'Please call'))} {name}"
    if len(arguments) == 1:
        key, content = next(iter(arguments.items()))
        text = random.choice(ORDERS).format(n=name, p=key, v=content)
    elif arguments:
        text += " with " + random.choice((" and ", ", ")).join(f"{key} {content}" for key, content in arguments.items())
    tool = schema(name, f"{random.choice(VERBS).capitalize()} a {made_up(random, 3, 8)}.", properties, list(properties))
    call = {"name": name, "arguments": arguments}
    thinking = f"The user asks for {name}. I call it."
    return Task(text, tool, (call,), thinking, (name,), (result(random, "text"),), known=False)


def tool_task(random: Random, evaluation: bool, novel: float = 0.22) -> Task:
    """Return a request that needs a tool."""
    return novel_task(random) if random.random() < novel else family_task(random, evaluation, random.choice(families()))


def tool_list(random: Random, wanted: dict[str, Any] | None, longest: int = 3) -> list[dict[str, Any]]:
    """Return one to three schemas of different kinds in random order, the wanted one among them."""
    others = random.sample(families(), random.choices(range(longest), (5, 3, 2)[:longest])[0])
    listed = [wanted] if wanted else [family_schema(random, others[0] if others else random.choice(families()))]
    taken = {kind_of(tool) for tool in listed}
    for family in others:
        tool = family_schema(random, family)
        if kind_of(tool) not in taken and tool["function"]["name"] not in {t["function"]["name"] for t in listed}:
            listed.append(tool)
            taken.add(kind_of(tool))
    random.shuffle(listed)
    return listed


def kind_of(tool: dict[str, Any]) -> str:
    """Return the purpose of a tool, by its description: no list may have two tools that do sums."""
    text = tool["function"]["description"]
    for number, family in enumerate(families()):
        if text in family["descriptions"]:
            return "sums" if family["names"][0] in ("add", "multiply", "calculator") else str(number)
    return text


def call_text(call: dict[str, Any]) -> str:
    """Return how the model writes a call."""
    body = f'{{"name": "{call["name"]}", "arguments": {json.dumps(call["arguments"], ensure_ascii=False)}}}'
    return f"<tool_call>\n{body}\n</tool_call>"
