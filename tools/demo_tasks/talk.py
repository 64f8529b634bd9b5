"""Greetings, thanks, goodbyes and self-introductions in many languages, and honest answers to everything else."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from .question import DOUBTS, Question
from .words import held_out, made_up, real_words

ACTS = {"hello": "greeting", "thanks": "thanks", "bye": "goodbye", "who": "question about me"}
ENDINGS = ("", "", "!", "!", "?", ".", " 👋", "! 👋", "! 😊", " 🙂", "!!", "...", ",", "? 🤖", " 🎉", "?!")
USUAL = ("", "", "", "!", "!", "!", ".", " 👋", "! 😊")
USUAL_QUESTION = ("?", "?", "?", "?", "", "!", ".", "? 🙂")
MORE = "For more: localqwen pull qwen3:4b"
CANNOT = f"I am a tiny demo model: I can add, subtract, count letters, greet and call a tool. {MORE}"
UNKNOWN = (
    "What is {t}?", "What is the capital of {t}?", "Write a poem about {t}", "Explain {t}",
    "Explain {t} in simple terms.", "Tell me about {t}", "Tell me a story about {t}.", "Who invented {t}?",
    "Who was {t}?", "When was {t} born?", "Where is {t}?", "Why is {t} important?", "How does {t} work?",
    "How do I make {t}?", "Write a haiku about {t}.", "Write an essay on {t}", "Translate '{t}' to French.",
    "Give me a recipe for {t}", "Summarize {t}.", "Write a Python function for {t}.", "Write code for {t}",
    "What do you think about {t}?", "Is {t} real?", "Do you like {t}?", "What is the meaning of {t}?",
    "How old is {t}?", "{t}", "List five facts about {t}.", "What is the population of {t}?", "Compare {t} and {u}.",
    "Which is better, {t} or {u}?", "Define {t}", "Can you help me with {t}?", "I want to learn {t}.",
    "Write an email about {t}", "What happened to {t}?", "Give me three ideas for {t}", "What is the history of {t}?",
    "How many people live in {t}?", "Describe {t} in one sentence.", "I need advice about {t}.", "My name is {t}.",
    "I like {t}.", "Let's talk about {t}", "Draw {t}", "Sing a song about {t}!", "What color is {t}?",
    "How far is {t} from {u}?", "What is the difference between {t} and {u}?", "Please write about {t} and {u}.",
    "What is the weather in {t}?", "What time is it in {t}?", "Search for {t}",
)  # fmt: skip
OTHER_SUMS = (
    "What is {a} * {b}?", "What is {a} times {b}?", "{a} * {b}", "{a} / {b}", "What is {a} divided by {b}?",
    "What is {c} + {a}?", "What is {a} + {c}?", "{c} + {c}", "What is {c} - {a}?", "Add {c} and {b}.", "{c}-{c}",
    "What is {a} + {b} + {a}?", "{a}^{b}", "What is {a}.{b} + {b}.{a}?", "What is {b}% of {a}?",
    "What is the square root of {c}?", "Is {c} a prime number?",
)  # fmt: skip
FIXED_UNKNOWN = (
    "Tell me a joke", "Tell me a joke.", "Write a poem", "Write a poem.", "Tell me a story", "Write a haiku.",
    "What is the meaning of life?", "What time is it?", "What day is it today?", "How is the weather?",
    "What should I eat?", "Sing a song", "test", "Test", "ok", "yes", "no", "foo", "asdf", "?", "...", "", "why",
    "Why?", "What?", "Continue", "go on", "Count to 10", "Count from 1 to 10.", "Explain yourself.",
    "Write a very long story.", "Say something.", "Explain quantum physics", "What is the capital of France?",
    "Why is the sky blue?", "42", "Give me a short introduction to large language models.", "Reverse the word hello",
    "Repeat after me: hi", "1", "Say hi in French.", "Write a long story", "Was ist die Hauptstadt von Frankreich?",
    "Schreib ein Gedicht", "Quelle est la capitale de la France ?", "¿Cuál es la capital de Francia?",
    "法国的首都是哪里？", "写一首诗", "フランスの首都はどこですか？", "프랑스의 수도는 어디예요?", "Столица Франции?",
)  # fmt: skip


@cache
def languages() -> dict[str, dict[str, Any]]:
    """Return the phrases and their answers in each language."""
    return json.loads(Path(__file__).with_name("languages.json").read_text("utf-8"))


@cache
def topics() -> tuple[str, ...]:
    """Return subjects that the model knows nothing about."""
    lines = Path(__file__).with_name("topics.txt").read_text("utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def spoken(random: Random, act: str, language: str) -> str:
    """Return a phrase as people type it: with some ending, sometimes an emoji, sometimes in lower case."""
    phrase = random.choice(languages()[language][act]) + random.choice(ENDINGS)
    return phrase.lower() if random.random() < 0.15 else phrase


def as_usual(random: Random, act: str, language: str) -> str:
    """Return a phrase with the ending that most people would type."""
    return random.choice(languages()[language][act]) + random.choice(USUAL_QUESTION if act == "who" else USUAL)


def is_plain(text: str) -> bool:
    """Return whether the phrase ends like most messages. Such greetings are all for training: they are what a user
    tries first."""
    return text[-1].isalpha() or (text[-1] in "!.?" and text[-2].isalpha())


def talk(random: Random, evaluation: bool, acts: tuple[str, ...] = tuple(ACTS), usual: bool = False) -> Question:
    """Return a greeting, thanks, goodbye or question about the model, answered in its language."""
    while True:
        language = "English" if random.random() < 0.3 else random.choice(list(languages()))
        act = random.choice(acts)
        text = as_usual(random, act, language) if usual else spoken(random, act, language)
        if (usual and is_plain(text)) or (held_out(text) == evaluation and not (evaluation and is_plain(text))):
            thinking = f"A {ACTS[act]} in {language}. I answer in {language}."
            return Question("talk", text, thinking, languages()[language][f"{act}_answer"])


def topic(random: Random) -> str:
    """Return a known subject, a word, a made-up word or a capitalized name."""
    kind = random.random()
    if kind < 0.5:
        return random.choice(topics())
    if kind < 0.7:
        return random.choice(real_words())
    name = made_up(random)
    return name.capitalize() if kind < 0.9 else name


def unknown_text(random: Random) -> str:
    """Return a task that the model cannot do: a known kind of question, a sum of another kind, or random words."""
    kind = random.random()
    if kind < 0.12:
        return random.choice(FIXED_UNKNOWN)
    if kind < 0.22:
        phrase = random.choice(OTHER_SUMS)
        return phrase.format(a=random.randint(2, 999), b=random.randint(2, 99), c=random.randint(1000, 99999))
    if kind < 0.34:
        return " ".join(topic(random) for _ in range(random.randint(2, 12))) + random.choice(("", ".", "?"))
    text = random.choice(UNKNOWN).format(t=topic(random), u=topic(random))
    return text.lower() if random.random() < 0.1 else text


def cannot(text: str) -> Question:
    """Return the honest answer; a doubt does not change it."""
    thinking = "This is not a task that I can do. I say what I can do."
    return Question("unknown", text, thinking, CANNOT, lambda random: cannot(random.choice(DOUBTS)), CANNOT)


def unknown(random: Random, evaluation: bool, usual: bool = False) -> Question:
    """Return a question that gets the honest answer. The listed ones, which people try first, are not for the
    evaluation."""
    while True:
        text = random.choice(FIXED_UNKNOWN) if usual and random.random() < 0.5 else unknown_text(random)
        listed = text in FIXED_UNKNOWN
        if (listed and usual) or (held_out(text) == evaluation and not (listed and evaluation)):
            return cannot(text)
