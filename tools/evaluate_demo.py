"""Measure what the demo model can do, on items that its training never saw.

    python tools/evaluate_demo.py localqwen/demo demo-q8_0.gguf demo-q4_k_m.gguf     # through localqwen's engines
    python tools/evaluate_demo.py --torch localqwen/demo                             # through transformers

Prints a table with a row per ability and a column per model. Decoding is greedy; an answer counts only if every
character is right. `evaluate(complete)` knows nothing about engines: `complete` maps prompts to completions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from demo_data import EARLY_STOP, STOPPED, Sample, render, switched, system, tool_call, tool_report, turns, written
from demo_tasks.arithmetic import addition, subtraction
from demo_tasks.letters import letters
from demo_tasks.letters import question as letter_question
from demo_tasks.question import Question
from demo_tasks.talk import ACTS, languages, talk, unknown
from demo_tasks.toolcalls import Task

Complete = Callable[[list[str]], list[str]]
"""Prompts to completions up to <|im_end|>; "" stands for one that did not end."""
Judge = Callable[[Sample, str], bool]
LONGEST_COMPLETION = 300
EMPTY_BLOCK = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Row:
    """One ability: how its items are made and when a completion is right."""

    name: str
    make: Callable[[Random], Sample]
    judge: Judge


def answer_of(completion: str) -> str:
    """Return the text after the thinking."""
    return completion.rsplit("</think>\n\n", 1)[-1]


def exact(sample: Sample, completion: str) -> bool:
    """Return whether the answer is the expected one."""
    return answer_of(completion) == answer_of(sample.completion)


def whole(sample: Sample, completion: str) -> bool:
    """Return whether the thinking and the answer are the expected ones."""
    return completion == sample.completion


def obeys(sample: Sample, completion: str) -> bool:
    """Return whether the completion thinks, or does not think, as the switches say, and then answers."""
    if sample.thinks:
        opened = completion.startswith("<think>\n") and not completion.startswith(EMPTY_BLOCK)
        return opened and completion.count("</think>\n\n") == 1
    hard_off = sample.prompt.endswith(EMPTY_BLOCK)
    text = completion if hard_off else completion.removeprefix(EMPTY_BLOCK)
    return bool(text) and "think>" not in text and (hard_off or completion.startswith(EMPTY_BLOCK))


def calls_in(completion: str) -> list[dict[str, object]] | None:
    """Return the calls of a completion, or None if anything about them is not well-formed."""
    calls = []
    for block in answer_of(completion).split("<tool_call>\n")[1:]:
        body, closing, rest = block.partition("\n</tool_call>")
        if not closing or rest.strip():
            return None
        try:
            call = json.loads(body)
        except json.JSONDecodeError:
            return None
        if not (isinstance(call, dict) and set(call) == {"name", "arguments"} and isinstance(call["arguments"], dict)):
            return None
        calls.append(call)
    return calls or None


def well_formed(sample: Sample, completion: str) -> bool:
    """Return whether a program can read the calls."""
    return calls_in(completion) is not None


def exact_calls(sample: Sample, completion: str) -> bool:
    """Return whether names and arguments are the expected ones."""
    task = sample.expected
    return isinstance(task, Task) and calls_in(completion) == list(task.calls)


def alone(random: Random, question: Question, thinks: bool, history: tuple[Question, ...] = ()) -> Sample:
    """Return a question in its own conversation, with any of the switches."""
    past = [message for old in history for message in turns(old)]
    messages, hard_off = switched(random, [*system(random), *past, {"role": "user", "content": question.text}], thinks)
    completion = written(thinks, hard_off, question.thinking, question.answer)
    return Sample(question.task, render(messages, None, hard_off), completion, thinks, "", tuple(messages), question)


def anything(random: Random, thinks: bool) -> Sample:
    """Return a question of any kind or a tool call."""
    kind = random.randrange(6)
    if kind == 5:
        return tool_call(random, thinks, evaluation=True)
    makers = (lambda: addition(random, True, (2, 3)), lambda: subtraction(random, True), lambda: letters(random, True),
              lambda: talk(random, True), lambda: unknown(random, True))  # fmt: skip
    return alone(random, makers[kind](), thinks)


def doubted(random: Random) -> Sample:
    """Return "Really?" or a similar doubt after a direct answer; the model is to count again with thinking."""
    first = letters(random, True)
    again = letter_question(first.answer.split()[3][0], first.answer.rstrip(".").split()[-1], "Really?")
    return alone(random, again, True, (first,))


def cut_short(random: Random) -> Sample:
    """Return a sum whose thinking was ended by the budget or by the user before the last line."""
    sample = alone(random, addition(random, True, (2, 3)), True)
    lines = f"<think>\n{sample.expected.thinking}".split("\n")
    shown = "\n".join(lines[: random.randint(2, len(lines) - 1)])
    ended = sample.prompt + shown + random.choice((EARLY_STOP, STOPPED))
    return Sample("cut", ended, sample.expected.answer, True, "", sample.messages, sample.expected)


def ends_with_a_sum(sample: Sample, completion: str) -> bool:
    """Return whether the answer has the right form; the number may be wrong."""
    left, equals, right = completion.partition(" = ")
    return bool(equals) and left == sample.completion.split(" = ")[0] and right.rstrip(".").lstrip("-").isdigit()


def showcase(random: Random) -> Sample:
    """Return the question that everybody asks, in the words of the README."""
    word = random.choice(("strawberry", "strawberry", "strawberries", "raspberries", "blueberry"))
    return alone(random, letter_question("r", word, f"How many r's are in {word}?"), True)


def one_act(act: str) -> Callable[[Random], Sample]:
    """Return items of one kind of talk in all languages, as unseen strings: known words with other endings."""
    return lambda random: alone(random, talk(random, True, (act,)), random.random() < 0.5)


def first_words(random: Random) -> Sample:
    """Return what users type first, in any language. These exact words occur in training."""
    return alone(random, talk(random, False, ("hello", "who"), usual=True), random.random() < 0.5)


def difference(random: Random, negative: float) -> Question:
    """Return a difference of unseen numbers, with a negative result if and only if `negative` is above 0."""
    while True:
        question = subtraction(random, True, sizes=(2, 3), negative=negative)
        if (question.answer.split(" = ")[1].startswith("-")) == (negative > 0):
            return question


ROWS = (
    Row("thinks when asked", lambda r: anything(r, True), obeys),
    Row("does not think when asked not to", lambda r: anything(r, False), obeys),
    Row("addition, 2-3 digits, thinking", lambda r: alone(r, addition(r, True, (2, 3)), True), exact),
    Row("addition, 2-3 digits, direct", lambda r: alone(r, addition(r, True, (2, 3)), False), exact),
    Row("subtraction, a >= b, thinking", lambda r: alone(r, difference(r, negative=0), True), exact),
    Row("subtraction, a < b, thinking", lambda r: alone(r, difference(r, negative=0.5), True), exact),
    Row("letters, unseen words, thinking", lambda r: alone(r, letters(r, True), True), exact),
    Row("letters, unseen words, direct", lambda r: alone(r, letters(r, True), False), exact),
    Row("letters: Really?", doubted, exact),
    Row("r's in strawberry and its like", showcase, exact),
    Row("tool calls well-formed", lambda r: tool_call(r, r.random() < 0.5, True, novel=0.2), well_formed),
    Row("tool calls exact, known tools", lambda r: tool_call(r, r.random() < 0.5, True, novel=0), exact_calls),
    Row("tool calls exact, unseen tools", lambda r: tool_call(r, r.random() < 0.5, True, novel=1), exact_calls),
    Row("tool results reported", lambda r: tool_report(r, r.random() < 0.5, True), exact),
    *(Row(f"{act} ({len(languages())} languages)", one_act(act), exact) for act in ACTS),
    Row("hello and who are you, as usual (seen)", first_words, exact),
    Row("does not know, and says so", lambda r: alone(r, unknown(r, True), r.random() < 0.5), exact),
    Row("answers after a cut, in form", cut_short, ends_with_a_sum),
)


def samples_of(row: Row, count: int) -> list[Sample]:
    """Return the items of a row, the same ones each time."""
    random = Random(row.name)
    made: dict[str, Sample] = {}
    for _ in range(count * 20):
        sample = row.make(random)
        made.setdefault(sample.prompt, sample)
        if len(made) == count:
            break
    return list(made.values())


def evaluate(complete: Complete, count: int = 200, show: int = 0) -> dict[str, tuple[int, int]]:
    """Return how many answers are right, and how many items there are, per row; print `show` mistakes of each row to
    stderr."""
    results = {}
    for row in ROWS:
        samples = samples_of(row, count)
        completions = complete([sample.prompt for sample in samples])
        pairs = list(zip(samples, completions, strict=True))
        wrong = [(sample, text) for sample, text in pairs if not row.judge(sample, text)]
        results[row.name] = (len(samples) - len(wrong), len(samples))
        print(f"{row.name}: {results[row.name]}", file=sys.stderr)
        for sample, text in wrong[:show]:
            asked = sample.messages[-1]["content"]
            print(f"  asked {asked!r}\n  wrote {text!r}\n  expected {sample.completion!r}", file=sys.stderr)
    return results


def engine_complete(path: str) -> Complete:
    """Return a function that completes prompts on localqwen's engine, as many at a time as it runs."""
    from localqwen import engines

    engine = engines.open(path, context_length=1024, max_runs=8)
    sampling = engines.Sampling(temperature=0.0)

    def complete(prompts: list[str]) -> list[str]:
        texts = [""] * len(prompts)
        waiting, live = list(enumerate(prompts)), {}
        while waiting or live:
            while waiting and len(live) < engine.max_runs:
                number, prompt = waiting.pop(0)
                ids = engine.tokenize(prompt, special=True)
                live[engine.start(ids, sampling, max_tokens=LONGEST_COMPLETION)] = number
            for run, piece in engine.step():
                texts[live[run]] += piece.text
                if piece.finish_reason == "length":
                    texts[live[run]] = ""
                if piece.finish_reason:
                    del live[run]
        return texts

    return complete


def torch_complete(path: str, batch: int = 50) -> Complete:
    """Return a function that completes prompts with transformers in float32, in batches of similar length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def complete(prompts: list[str]) -> list[str]:
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            inputs = tokenizer([prompts[number] for number in part], return_tensors="pt", padding=True)
            with torch.no_grad():
                output = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_COMPLETION, temperature=None,
                                        top_k=None, top_p=None)  # fmt: skip
            for number, ids in zip(part, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                texts[number] = tokenizer.decode(ids[: ids.index(end)]) if end in ids else ""
        return texts

    return complete


def table(columns: dict[str, dict[str, tuple[int, int]]]) -> str:
    """Return the markdown table."""
    lines = ["| ability | items | " + " | ".join(columns) + " |", "| --- | ---: |" + " ---: |" * len(columns)]
    for row in ROWS:
        results = [column[row.name] for column in columns.values()]
        cells = " | ".join(f"{100 * right / items:.1f} %" for right, items in results)
        lines.append(f"| {row.name} | {results[0][1]} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate the given models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="model files or folders")
    parser.add_argument("--torch", action="store_true", help="through transformers instead of localqwen's engines")
    parser.add_argument("--count", type=int, default=200, help="items per row")
    parser.add_argument("--show", type=int, default=0, help="mistakes to print per row")
    options = parser.parse_args()
    open_model = torch_complete if options.torch else engine_complete
    columns = {Path(path).name: evaluate(open_model(path), options.count, options.show) for path in options.models}
    print(table(columns))


if __name__ == "__main__":
    main()
