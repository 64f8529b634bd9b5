"""Counting a letter in a word: the word is spelled out with a running count."""

from __future__ import annotations

from random import Random

from .question import DOUBTS, Question
from .words import word

PHRASES = (
    "How many {l}'s are in {w}?", "How many {l}'s are in {w}?", "How many {l}'s are in {w}?",
    "How many {l} are in {w}?", "How many {l}'s are there in {w}?", "How many {l}s are in {w}?",
    "How many times does the letter {l} appear in '{w}'?", 'How many times does the letter {l} appear in "{w}"?',
    "How often does {l} appear in {w}?", "Count the letter {l} in {w}.", "Count the {l}'s in {w}.",
    "How many letters {l} are in the word {w}?", "How many {l}'s are in the word '{w}'?", "how many {l}'s in {w}",
    "How many {l}'s in {w}?", "How many {l}'s does {w} have?", "Please count the letter {l} in {w}",
    "How many {l}’s are in {w}?", 'How many "{l}" are in "{w}"?', "Tell me how many {l}'s are in {w}.",
)  # fmt: skip
NEXT_WORD = (
    "Then, how many {l}'s are in {w}?", "And in {w}?", "And how many {l}'s are in {w}?", "What about {w}?", "And {w}?",
    "Then, how many in {w}?", "And how many in {w}?",
)  # fmt: skip
NEXT_LETTER = (
    "And {l}'s?", "and {l}'s?", "And how many {l}'s?", "What about {l}'s?", "and the letter {l}?", "And {l}?",
)  # fmt: skip


def spell(text: str, letter: str) -> str:
    """Return the spelling with its running count: `s, t, r (1), a, w, b, e, r (2), r (3), y`."""
    seen, parts = 0, []
    for character in text:
        seen += character == letter
        parts.append(f"{character} ({seen})" if character == letter else character)
    return ", ".join(parts)


def answer(count: int, letter: str, text: str) -> str:
    """Return the sentence that gives the count."""
    return f"There is 1 {letter} in {text}." if count == 1 else f"There are {count} {letter}'s in {text}."


def pick_letter(random: Random, text: str) -> str:
    """Return mostly a letter of the word, double ones more often; now and then one that it lacks."""
    if random.random() < 0.1:
        return random.choice("abcdefghijklmnopqrstuvwxyz")
    return max(random.choices(text, k=random.randint(1, 3)), key=text.count)


def question(letter: str, text: str, phrase: str) -> Question:
    """Return the question with its counting and its follow-up questions."""
    count = text.count(letter)

    def again(random: Random) -> Question:
        kind = random.random()
        if kind < 0.4:
            return question(letter, text, random.choice(DOUBTS))
        if kind < 0.75:
            other = word(random, False)
            choice = max((letter, pick_letter(random, other)), key=other.count)
            phrases = NEXT_WORD if choice == letter else NEXT_WORD[:1]
            return question(choice, other, random.choice(phrases).format(l=choice, w=other))
        other_letter = pick_letter(random, text)
        return question(other_letter, text, random.choice(NEXT_LETTER).format(l=other_letter))

    thinking = f"Spell {text}, count {letter}: {spell(text, letter)}. That makes {count}."
    wrong = max(0, count + (1 if len(text) % 2 else -1))
    return Question("letters", phrase, thinking, answer(count, letter, text), again, answer(wrong, letter, text))


def letters(random: Random, evaluation: bool) -> Question:
    """Return a letter question about a word of the wanted side; sometimes written with capitals."""
    text = word(random, evaluation)
    letter = pick_letter(random, text)
    if not evaluation and text.startswith(("strawberr", "blueberr")) and random.random() < 0.5:
        letter = "r"
    style = random.random()
    shown_letter = letter.upper() if style < 0.12 else letter
    shown_word = text.capitalize() if 0.06 < style < 0.18 else text
    return question(letter, text, random.choice(PHRASES).format(l=shown_letter, w=shown_word))
