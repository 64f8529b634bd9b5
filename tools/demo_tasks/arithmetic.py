"""Sums and differences, column by column, with the carry and the borrow always written."""

from __future__ import annotations

from random import Random

from .question import DOUBTS, Question
from .words import held_out

COLUMNS = ("ones", "tens", "hundreds")
SUMS = (
    "What is {a} + {b}?", "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "What's {a} + {b}?", "{a} + {b} = ?",
    "{a}+{b}=", "What is {a}+{b}?", "Add {a} and {b}.", "Please add {a} and {b}", "How much is {a} plus {b}?",
    "Calculate {a} + {b}", "Compute {a} + {b}.", "What is {a} plus {b}?", "How much is {a} + {b}?",
    "what is {a} plus {b}", "Sum of {a} and {b}?", "What is the sum of {a} and {b}?", "Can you add {a} and {b}?",
    "Tell me {a} + {b}.", "Solve {a} + {b}", "Hi! What is {a} + {b}?", "Was ist {a} + {b}?",
    "Combien font {a} + {b} ?", "¿Cuánto es {a} + {b}?", "Quanto fa {a} + {b}?", "{a} + {b} 等于多少？",
)  # fmt: skip
DIFFERENCES = (
    "What is {a} - {b}?", "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "What's {a} - {b}?", "{a} - {b} = ?",
    "{a}-{b}=", "What is {a}-{b}?", "Subtract {b} from {a}.", "Take {b} away from {a}.", "How much is {a} minus {b}?",
    "Calculate {a} - {b}", "Compute {a} - {b}.", "What is {a} minus {b}?", "How much is {a} - {b}?",
    "what is {a} minus {b}", "Solve {a} - {b}", "Please subtract {b} from {a}", "Can you subtract {b} from {a}?",
    "Tell me {a} - {b}.", "What is the difference of {a} and {b}?", "Was ist {a} - {b}?", "Combien font {a} - {b} ?",
    "¿Cuánto es {a} - {b}?", "{a} - {b} 等于多少？",
)  # fmt: skip
NEXT = (
    "And {a} {sign} {b}?", "and {a}{sign}{b}?", "Then {a} {sign} {b}?", "What about {a} {sign} {b}?",
    "Now {a} {sign} {b}.", "{a} {sign} {b}?", "Then, what is {a} {sign} {b}?",
)  # fmt: skip


def digit(number: int, column: int) -> int:
    """Return the digit of a number in a column, counted from the ones."""
    return number // 10**column % 10


def columns(a: int, b: int) -> int:
    """Return how many columns the longer of two numbers has."""
    return len(str(max(a, b)))


def add_columns(a: int, b: int) -> str:
    """Return the written addition, e.g. `ones: 7+5+0=12, write 2, carry 1`."""
    carry, lines = 0, [f"Add {a} and {b}."]
    for column in range(columns(a, b)):
        x, y = digit(a, column), digit(b, column)
        total = x + y + carry
        lines.append(f"{COLUMNS[column]}: {x}+{y}+{carry}={total}, write {total % 10}, carry {total // 10}")
        carry = total // 10
    lines.append(f"{a} + {b} = {a + b}")
    return "\n".join(lines)


def subtract_columns(a: int, b: int) -> str:
    """Return the written subtraction of the smaller number from the larger, which is named first."""
    large, small = max(a, b), min(a, b)
    swap = f"{a} < {b}: swap and put a minus." if a < b else f"{a} >= {b}: no swap."
    borrow, lines = 0, [f"Subtract {b} from {a}.", swap]
    for column in range(columns(a, b)):
        x, y = digit(large, column), digit(small, column)
        rest = x - y - borrow
        lines.append(f"{COLUMNS[column]}: {x}-{y}-{borrow}={rest}, write {rest % 10}, borrow {int(rest < 0)}")
        borrow = int(rest < 0)
    lines.append(f"{a} - {b} = {a - b}")
    return "\n".join(lines)


def operand(random: Random, digits: int) -> int:
    """Return a number of exactly that many digits (a single digit may be 0)."""
    return random.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def pair(random: Random, evaluation: bool, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return two operands of the wanted side. Single-digit pairs are all for training: there are too few to keep some
    back."""
    while True:
        a, b = operand(random, random.choice(sizes)), operand(random, random.choice(sizes))
        if (max(a, b) >= 10 and held_out(f"{a},{b}")) == evaluation:
            return a, b


def question(sign: str, a: int, b: int, text: str) -> Question:
    """Return the question with its solution and its follow-up questions."""
    result = a + b if sign == "+" else a - b
    thinking = add_columns(a, b) if sign == "+" else subtract_columns(a, b)

    def again(random: Random) -> Question:
        if random.random() < 0.5:
            return question(sign, a, b, random.choice(DOUBTS))
        return addition(random, False, (1, 2, 2, 3), NEXT) if sign == "+" else subtraction(random, False, NEXT)

    off = random_slip(a, b)
    task = "addition" if sign == "+" else "subtraction"
    return Question(task, text, thinking, f"{a} {sign} {b} = {result}.", again, f"{a} {sign} {b} = {result + off}.")


def random_slip(a: int, b: int) -> int:
    """Return how far a wrong answer is off: it depends only on the numbers, so that the data is repeatable."""
    return (1, -1, 10, -10, 2, 100)[(a * 7 + b) % 6]


def addition(random: Random, evaluation: bool, sizes: tuple[int, ...], phrases: tuple[str, ...] = SUMS) -> Question:
    """Return a sum with operands of the given numbers of digits."""
    a, b = pair(random, evaluation, sizes)
    return question("+", a, b, random.choice(phrases).format(a=a, b=b, sign="+"))


def subtraction(random: Random, evaluation: bool, phrases: tuple[str, ...] = DIFFERENCES,
                sizes: tuple[int, ...] = (1, 2, 2, 3, 3, 3), negative: float = 0.12) -> Question:  # fmt: skip
    """Return a difference, mostly of a larger and a smaller number."""
    a, b = pair(random, evaluation, sizes)
    if a < b and random.random() >= negative * 2:
        a, b = b, a
    if (max(a, b) >= 10 and held_out(f"{a},{b}")) != evaluation:
        return subtraction(random, evaluation, phrases, sizes, negative)
    return question("-", a, b, random.choice(phrases).format(a=a, b=b, sign="-"))
