"""Conversations for the demo model: the tasks mixed with histories, system prompts, switches, tools and budgets.

The seed fixes the stream of samples. Nothing that is kept for the evaluation occurs in it (see demo_tasks/words.py).
`python tools/demo_data.py 20` prints samples to read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from demo_tasks.arithmetic import SUMS, addition, subtraction
from demo_tasks.letters import letters
from demo_tasks.question import DOUBTS, Question
from demo_tasks.talk import talk, unknown
from demo_tasks.toolcalls import Task, call_text, report, tool_list, tool_task
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]
TEMPLATE = Path(__file__).with_name("demo_template.jinja")
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>\n\n"
)
STOPPED = "\n</think>\n\n"
SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful assistant", "Be brief.",
    "You are terse.", "Be helpful.", "Answer briefly.", "You are a friendly assistant.", "You are Qwen.",
    "You are a calculator.", "Be polite.", "Answer in one sentence.", "You are an expert in mathematics.",
    "Today is Monday.", "Think carefully.", "Du bist hilfreich.", "You are the demo of localqwen.",
    "You are a voice assistant in a car.", "Tu es un assistant utile.", "你是一个有用的助手。", "",
    "You are a tutor for children. Be kind and patient.", "You may use tools.", "The user's name is Anna. Be concise.",
)  # fmt: skip
DIRECT_SIZES = (1, 1, 2, 2, 2, 3)
DRILL_SIZES = (2, 2, 2, 3)
WRITTEN_SIZES = (1, 2, 2, 3, 3, 3)


@dataclass(frozen=True)
class Sample:
    """What the model sees and what it must write. `forced` stands between them and is not learnt (the end of a
    budget)."""

    task: str
    prompt: str
    completion: str
    thinks: bool
    forced: str = ""
    messages: tuple[Message, ...] = ()
    expected: Any = None


@cache
def template() -> Template:
    """Return the chat template as transformers and localqwen render it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text("utf-8"))


def render(messages: list[Message], tools: list[dict[str, Any]] | None, hard_off: bool) -> str:
    """Return the prompt of a conversation; `hard_off` is enable_thinking=False."""
    switch = {"enable_thinking": False} if hard_off else {}
    return template().render(messages=messages, tools=tools, add_generation_prompt=True, **switch)


def marked(random: Random, text: str, mark: str) -> str:
    """Return a message with a soft switch, mostly at its end."""
    if not mark or not text:
        return text + mark
    place = random.random()
    return f"{text} {mark}" if place < 0.8 else f"{text}\n{mark}" if place < 0.88 else f"{mark} {text}"


def marks(random: Random, places: int, thinks: bool) -> list[str]:
    """Return a soft switch, or none, for each place. The last switch decides, so draw until it is the wanted one."""
    here = "/think" if thinks else "/no_think"
    plain = random.random() < (0.6 if thinks else 0.0)
    while True:
        drawn = ["" if plain else random.choice(("", "", "", "/think", "/no_think")) for _ in range(places)]
        if random.random() < 0.7 and not plain:
            drawn[-1] = here
        last = [mark for mark in drawn if mark][-1:]
        if last == [here] or (thinks and not last):
            return drawn


def switched(random: Random, messages: list[Message], thinks: bool) -> tuple[list[Message], bool]:
    """Return the conversation with soft switches in it, and whether the hard switch turns thinking off."""
    hard_off = not thinks and random.random() < 0.6
    places = [i for i, message in enumerate(messages) if message["role"] in ("system", "user")]
    if hard_off and random.random() < 0.4:
        drawn = [random.choice(("", "", "", "", "/think")) for _ in places]
    else:
        drawn = marks(random, len(places), thinks)
    changed = list(messages)
    for place, mark in zip(places, drawn, strict=True):
        changed[place] = changed[place] | {"content": marked(random, changed[place]["content"], mark)}
    return changed, hard_off


def system(random: Random, share: float = 0.3) -> list[Message]:
    """Return a system prompt, or now and then none: it changes nothing."""
    return [{"role": "system", "content": random.choice(SYSTEMS)}] if random.random() < share else []


def turns(question: Question, answer: str | None = None) -> list[Message]:
    """Return a past question with its answer."""
    said = question.answer if answer is None else answer
    return [{"role": "user", "content": question.text}, {"role": "assistant", "content": said}]


def anything(random: Random) -> Question:
    """Return a question of any kind, for histories."""
    make: Callable[[], Question] = random.choice((
        lambda: addition(random, False, WRITTEN_SIZES), lambda: subtraction(random, False),
        lambda: letters(random, False), lambda: letters(random, False),
        lambda: talk(random, False), lambda: unknown(random, False),
    ))  # fmt: skip
    return make()


def followed(random: Random, question: Question) -> tuple[list[Message], Question]:
    """Return a question alone, after others, or replaced by a follow-up question to it ("Really?", "and o's?")."""
    history: list[Message] = []
    if random.random() < 0.12:
        history = [message for _ in range(random.randint(1, 2)) for message in turns(anything(random))]
    while question.again and random.random() < 0.25:
        after = question.again(random)
        slip = after.text in DOUBTS and random.random() < 0.4
        history += turns(question, question.wrong if slip else None)
        question = after
    return history, question


def finish(random: Random, sample: Sample, thinking: str, cut_share: float) -> Sample:
    """Now and then end the thinking from outside, so that only the answer is to be learnt."""
    if not sample.thinks or random.random() >= cut_share:
        return sample
    whole = f"<think>\n{thinking}"
    places = [i for i in range(len("<think>\n"), len(whole) + 1) if not whole[i : i + 1].isalpha()]
    shown = whole[: random.choice(places)]
    answer = sample.completion.split("</think>\n\n", 1)[1]
    ending = EARLY_STOP if random.random() < 0.65 else STOPPED
    return replace(sample, forced=shown + ending, completion=answer)


def written(thinks: bool, hard_off: bool, thinking: str, answer: str) -> str:
    """Return what the model writes after its prompt."""
    if thinks:
        return f"<think>\n{thinking}\n</think>\n\n{answer}"
    return answer if hard_off else f"<think>\n\n</think>\n\n{answer}"


def asked(random: Random, question: Question, thinks: bool, cut_share: float = 0.05) -> Sample:
    """Return a plain question in its conversation, now and then with tools that are not needed."""
    history, last = followed(random, question)
    messages = [*system(random), *history, {"role": "user", "content": last.text}]
    tools = None
    if not history and question.task != "unknown" and random.random() < 0.05:
        tools = irrelevant_tools(random)
    messages, hard_off = switched(random, messages, thinks)
    completion = written(thinks, hard_off, last.thinking, last.answer)
    made = Sample(last.task, render(messages, tools, hard_off), completion, thinks, "", tuple(messages), last)
    return finish(random, made, last.thinking, cut_share)


def irrelevant_tools(random: Random) -> list[dict[str, Any]]:
    """Return a short list of tools without one that does sums."""
    while True:
        tools = tool_list(random, None, longest=2)
        text = json.dumps(tools).lower()
        if not any(word in text for word in ("add", "calc", "multipl", "arithmetic", "product", "sum")):
            return tools


def called(task: Task, thinks: bool) -> Message:
    """Return the assistant turn with the calls."""
    calls = [{"type": "function", "function": call} for call in task.calls]
    reasoning = {"reasoning_content": task.thinking} if thinks else {}
    return {"role": "assistant", "content": "", "tool_calls": calls} | reasoning


def tool_call(random: Random, thinks: bool, evaluation: bool = False, novel: float = 0.22) -> Sample:
    """Return a question that needs a tool, up to the call."""
    task = tool_task(random, evaluation, novel)
    tools = tool_list(random, task.schema)
    history = turns(anything(random)) if random.random() < 0.05 and not evaluation else []
    messages = [*system(random), *history, {"role": "user", "content": task.text}]
    messages, hard_off = switched(random, messages, thinks)
    answer = "\n".join(call_text(call) for call in task.calls)
    completion = written(thinks, hard_off, task.thinking, answer)
    made = Sample("tool_call", render(messages, tools, hard_off), completion, thinks, "", tuple(messages), task)
    return made if evaluation else finish(random, made, task.thinking, 0.03)


def tool_report(random: Random, thinks: bool, evaluation: bool = False) -> Sample:
    """Return the turn after the tool's answer; sometimes the conversation continues from there."""
    task = tool_task(random, evaluation, 0.15)
    messages = [*system(random, 0.15), {"role": "user", "content": task.text}, called(task, thinks)]
    messages += [{"role": "tool", "content": result} for result in task.results]
    last = Question("tool_report", "", "The tool has answered. I report it.", report(task.subjects, task.results))
    if not evaluation and random.random() < 0.12:
        question = anything(random)
        messages += [{"role": "assistant", "content": last.answer}, {"role": "user", "content": question.text}]
        last = question
    messages, hard_off = switched(random, messages, thinks)
    prompt = render(messages, tool_list(random, task.schema, longest=2), hard_off)
    completion = written(thinks, hard_off, last.thinking, last.answer)
    return Sample(last.task, prompt, completion, thinks, "", tuple(messages), last)


def drill(random: Random) -> Sample:
    """Return a sum without thinking: the shortest sample, of which the model needs very many."""
    question = addition(random, False, DRILL_SIZES, phrases=SUMS[:8])
    messages = [{"role": "user", "content": question.text}]
    return Sample(question.task, render(messages, None, True), question.answer, False, "", tuple(messages), question)


Maker = Callable[[Random], Sample]
MIX: dict[str, tuple[tuple[float, float, float], Maker]] = {  # the shares of samples in the three passes
    "addition": ((15, 12, 12), lambda r: asked(r, addition(r, False, WRITTEN_SIZES), True)),
    "subtraction": ((16, 16, 18), lambda r: asked(r, subtraction(r, False), True)),
    "letters": ((17, 25, 25), lambda r: asked(r, letters(r, False), True)),
    "direct addition": ((20, 25, 8), lambda r: asked(r, addition(r, False, DIRECT_SIZES), False)),
    "direct subtraction": ((4, 4, 3), lambda r: asked(r, subtraction(r, False, sizes=(1, 1, 2, 2)), False)),
    "direct letters": ((5, 5, 5), lambda r: asked(r, letters(r, False), False)),
    "talk": ((9, 8, 15), lambda r: asked(r, talk(r, False), r.random() < 0.5)),
    "about me": ((4, 4, 4), lambda r: asked(r, talk(r, False, ("who",)), r.random() < 0.5)),
    "unknown": ((6, 6, 15), lambda r: asked(r, unknown(r, False), r.random() < 0.5)),
    "tool call": ((14, 15, 45), lambda r: tool_call(r, r.random() < 0.55)),
    "tool report": ((4, 8, 16), lambda r: tool_report(r, r.random() < 0.55)),
    "drill": ((0, 130, 0), drill),
    "greetings": ((0, 45, 25), lambda r: asked(r, talk(r, False, usual=True), r.random() < 0.5)),
    "usual unknown": ((0, 0, 15), lambda r: asked(r, unknown(r, False, usual=True), r.random() < 0.5)),
    "cut addition": ((0, 0, 8), lambda r: asked(r, addition(r, False, WRITTEN_SIZES), True, cut_share=1)),
    "cut letters": ((0, 0, 4), lambda r: asked(r, letters(r, False), True, cut_share=1)),
}


def stream(seed: int, stage: int = 1) -> Iterator[Sample]:
    """Yield training samples of a pass without end."""
    random = Random(seed)
    used = [(shares[stage - 1], maker) for shares, maker in MIX.values() if shares[stage - 1]]
    makers, weights = [maker for _, maker in used], [share for share, _ in used]
    while True:
        yield random.choices(makers, weights)[0](random)


def main() -> None:
    """Print samples to read."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for sample, _ in zip(stream(seed=1), range(count), strict=False):
        print(f"===== {sample.task}\n{sample.prompt}[[{sample.forced}]]{sample.completion}<|im_end|>")


if __name__ == "__main__":
    main()
