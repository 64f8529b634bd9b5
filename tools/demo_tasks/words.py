"""Words, made-up words and the split between training and evaluation.

A hash of its text assigns each item (a word, a pair of numbers, a value) to one side for ever, so that the evaluation
uses only items that the training never saw.
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path
from random import Random

SHOWCASE = ("strawberry", "strawberries", "blueberry", "blueberries", "raspberries", "butter")
ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sl sp st str t th tr v w x y z"
VOWELS = "a e i o u a e i o u ai au ea ee ie oo ou y"
CODAS = " b ck d f g k l ll m n nd ng nt p r rd rr s ss st t tt x z"


def held_out(item: str) -> bool:
    """Return whether this item is kept for the evaluation. About one in ten is."""
    return item not in SHOWCASE and zlib.crc32(item.encode()) % 10 == 0


def plural(word: str) -> str:
    """Return an English plural that is good enough."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


@cache
def real_words() -> tuple[str, ...]:
    """Return the word list and its plurals, 3 to 14 letters each."""
    words = Path(__file__).with_name("words.txt").read_text("utf-8").split()
    return tuple(sorted({form for word in words for form in (word, plural(word)) if 3 <= len(form) <= 14}))


def made_up(random: Random, shortest: int = 3, longest: int = 14) -> str:
    """Return a pronounceable word that probably does not exist, or now and then a plain string of letters."""
    if random.random() < 0.2:
        alphabet = random.choice(("abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz", "aelnrst"))
        return "".join(random.choices(alphabet, k=random.randint(shortest, min(longest, 11))))
    while True:
        parts = (ONSETS.split(), VOWELS.split(), CODAS.split(" "))
        word = "".join(random.choice(part) for _ in range(random.randint(1, 4)) for part in parts)
        if shortest <= len(word) <= longest:
            return word


def word(random: Random, evaluation: bool) -> str:
    """Return a word of the wanted side: half real, half made up; the showcase words turn up often in training."""
    if not evaluation and random.random() < 0.06:
        return random.choice(SHOWCASE)
    while True:
        candidate = random.choice(real_words()) if random.random() < 0.5 else made_up(random)
        if held_out(candidate) == evaluation:
            return candidate
