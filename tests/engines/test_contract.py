"""What `engines.engine.Engine` promises, on every real engine with the demo model, and nothing else.

The engines are compared with each other in test_agreement.py.
"""

from __future__ import annotations

import importlib
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint
from engine_runs import ENGINES, GREEDY, answer, chat, collect, evaluated, log_softmax, open_demo, text_of, tokens_of
from numpy.typing import NDArray

from localqwen import engines
from localqwen.engines import selection
from localqwen.engines.engine import Engine, Run, Sampling
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import ContextTooLong, EngineError, LocalqwenError, UsageError

WILD = Sampling(temperature=2.5, top_k=0, top_p=1)
STRICT = Sampling(temperature=0, presence_penalty=100)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    opened = open_demo(request.param)
    yield opened
    opened.close()


def forget(engine: Engine) -> None:
    """Fill every slot with something else, so that nothing of an earlier test is reused."""
    runs = [engine.start(engine.tokenize(word, special=False), GREEDY, max_tokens=1) for word in "4567"]
    collect(engine, *runs)


@pytest.mark.parametrize("name", ENGINES)
def test_both_real_engines_can_be_imported(name: str) -> None:
    """A missing engine would make every other test here pass by not being run: it is a failure, never a skip."""
    assert selection.installed()[name]
    assert importlib.import_module(selection.ENGINES[name]).open


def test_a_question_is_answered_and_ends_with_the_stop_token(engine: Engine) -> None:
    (pieces,) = collect(engine, engine.start(chat(engine, "What is 12 + 7?"), GREEDY, max_tokens=200))
    assert text_of(pieces).startswith("<think>\n")
    assert "19" in text_of(pieces).rpartition("</think>")[2]
    assert (pieces[-1].finish_reason, pieces[-1].text) == ("stop", "")
    assert pieces[-1].tokens[0] in engine.stop_tokens
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_greedy_answers_repeat(engine: Engine) -> None:
    prompt = chat(engine, "What is 321 + 456?")
    assert answer(engine, prompt) == answer(engine, prompt)


# Reuse


def test_a_prefix_that_is_still_cached_is_not_computed_again_and_changes_nothing(engine: Engine) -> None:
    prompt = chat(engine, "How many r's are in raspberry?")
    fresh = answer(engine, prompt)
    run = engine.start([*prompt, *fresh[:20]], GREEDY, max_tokens=40)
    assert run.cached_tokens == len(prompt) + 19  # the last id is computed for its logits
    (pieces,) = collect(engine, run)
    assert tokens_of(pieces) == fresh[20:60]


def test_another_continuation_of_a_cached_prefix_is_that_of_a_fresh_engine(engine: Engine) -> None:
    """What stood behind the shared prefix is forgotten, not mixed in."""
    prompt = chat(engine, "What is 64 + 28?")
    other = [*prompt, *engine.tokenize("<think>\n\n</think>\n\n", special=True)]
    forget(engine)
    fresh = answer(engine, other)
    forget(engine)
    answer(engine, prompt)
    run = engine.start(other, GREEDY, max_tokens=60)
    assert run.cached_tokens >= len(prompt)
    (pieces,) = collect(engine, run)
    assert tokens_of(pieces) == fresh


def test_a_free_slot_takes_a_shared_prefix_over_without_robbing_its_owner(engine: Engine) -> None:
    system = engine.tokenize(
        "<|im_start|>system\n" + "You are a helpful assistant. " * 8 + "<|im_end|>\n", special=True
    )
    prompts = [[*system, *chat(engine, f"What is {terms}?")] for terms in ("3 + 4", "9 + 8")]
    forget(engine)
    alone = []
    for prompt in prompts:
        alone.append(answer(engine, prompt, max_tokens=100))
        forget(engine)
    first = engine.start(prompts[0], GREEDY, max_tokens=100)
    said: list[int] = []
    while first.generated < 5:
        for _, piece in engine.step():
            said += piece.tokens
    second = engine.start(prompts[1], GREEDY, max_tokens=100)
    assert second.cached_tokens >= len(system)
    answers = collect(engine, first, second)
    assert [said + tokens_of(answers[0]), tokens_of(answers[1])] == alone


def test_a_run_of_no_tokens_reads_the_prompt_for_the_next_one(engine: Engine) -> None:
    prompt = chat(engine, "How many r's are in raspberry, please?")
    fresh = answer(engine, prompt)
    forget(engine)
    prepared = engine.start(prompt, GREEDY, max_tokens=0)
    assert collect(engine, prepared) == [[]]
    assert prepared.prefilled == len(prompt)
    run = engine.start(prompt, GREEDY, max_tokens=60)
    assert run.cached_tokens == len(prompt) - 1
    (pieces,) = collect(engine, run)
    assert tokens_of(pieces) == fresh


def test_reading_on_pushes_no_other_conversation_out(engine: Engine) -> None:
    forget(engine)
    prompts = [engine.tokenize(f"{letter} tells a tale", special=False) for letter in "abcd"]
    for prompt in prompts:
        answer(engine, prompt, max_tokens=40)
    longer = prompts[0] + engine.tokenize(" of old, and then another one of the very same kind", special=False)
    assert len(prompts[0]) <= engine.cached_prefix(longer) < len(longer)
    collect(engine, engine.start(longer, GREEDY, max_tokens=0))
    assert engine.cached_prefix(longer) == len(longer)
    assert [engine.cached_prefix(prompt) for prompt in prompts] == [len(prompt) for prompt in prompts]


# Several runs


def test_runs_together_give_the_answers_of_runs_alone(engine: Engine) -> None:
    questions = ("What is 8 + 5?", "Count the letter t in butter.", "Hello!", "What is 640 - 365?")
    prompts = [chat(engine, question) for question in questions]
    alone = [answer(engine, prompt) for prompt in prompts]
    forget(engine)
    runs = [engine.start(prompt, GREEDY, max_tokens=60) for prompt in prompts]
    assert [tokens_of(pieces) for pieces in collect(engine, *runs)] == alone


def test_a_run_that_joins_late_disturbs_no_one(engine: Engine) -> None:
    first, second = chat(engine, "What is 77 + 88?"), chat(engine, "What is 77 - 33?")
    alone = [answer(engine, first), answer(engine, second)]
    runs = [engine.start(first, GREEDY, max_tokens=60)]
    said: dict[Run, list[int]] = {runs[0]: []}
    for _ in range(10):
        for run, piece in engine.step():
            said[run] += piece.tokens
    late = engine.start(second, GREEDY, max_tokens=60)
    rest = collect(engine, runs[0], late)
    assert [said[runs[0]] + tokens_of(rest[0]), tokens_of(rest[1])] == alone


def test_a_long_prompt_is_prefilled_in_slices_beside_an_answering_run(engine: Engine) -> None:
    engine._passes.slice = 32  # type: ignore[attr-defined]  # as on a slow machine; there is no public way to be slow
    talking = engine.start(chat(engine, "What is 111 + 222?"), GREEDY, max_tokens=100)
    while not talking.generated:
        engine.step()
    long = engine.start(engine.tokenize("a b c " * 60, special=False), GREEDY, max_tokens=2)
    progress, said = [long.prefilled], [talking.generated]
    while not long.generated:
        engine.step()
        progress.append(long.prefilled)
        said.append(talking.generated)
        assert talking.finished or progress[-1] == progress[-2] or len(said) < 3 or said[-1] > said[-3]
    assert len(set(progress)) > 2
    assert progress == sorted(progress)
    assert progress[-1] == long.prompt_tokens
    engine.cancel(talking)
    engine.cancel(long)


def test_more_runs_than_the_engine_has_are_refused(engine: Engine) -> None:
    runs = [engine.start(chat(engine, str(n)), GREEDY, max_tokens=5) for n in range(4)]
    with pytest.raises(EngineError, match="busy"):
        engine.start(chat(engine, "x"), GREEDY, max_tokens=5)
    for run in runs:
        engine.cancel(run)


# Cancelling


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_run_can_be_cancelled_in_every_phase(engine: Engine, steps: int) -> None:
    prompt = chat(engine, f"What is {steps + 20} + 31?")
    expected = answer(engine, prompt)
    run = engine.start(prompt, GREEDY, max_tokens=60)
    for _ in range(steps):
        engine.step()
    engine.cancel(run)
    engine.cancel(run)  # once more does nothing
    assert run.finished
    assert engine.step() == []
    assert answer(engine, prompt) == expected


def test_a_run_cancelled_in_the_middle_of_its_prompt_leaves_what_it_read(engine: Engine) -> None:
    prompt = engine.tokenize("the quick brown fox " * 24, special=False)
    expected = answer(engine, prompt, max_tokens=8)
    forget(engine)
    engine._passes.slice = 32  # type: ignore[attr-defined]
    run = engine.start(prompt, GREEDY, max_tokens=8)
    engine.step()
    engine.cancel(run)
    assert 0 < run.prefilled < run.prompt_tokens
    again = engine.start(prompt, GREEDY, max_tokens=8)
    assert again.cached_tokens == run.prefilled
    (pieces,) = collect(engine, again)
    assert tokens_of(pieces) == expected


def test_cancelling_after_the_end_changes_nothing_for_the_run_that_came_next(engine: Engine) -> None:
    prompt = chat(engine, "What is 1 + 1?")
    first = engine.start(prompt, GREEDY, max_tokens=3)
    collect(engine, first)
    second = engine.start(prompt, GREEDY, max_tokens=3)
    engine.cancel(first)
    assert not second.finished
    assert len(tokens_of(collect(engine, second)[0])) == 3


# Sampling


def test_a_seed_repeats_a_sampled_answer_and_another_seed_another(engine: Engine) -> None:
    prompt = chat(engine, "Hello!")
    one, two = (answer(engine, prompt, replace(WILD, seed=seed)) for seed in (1, 2))
    assert answer(engine, prompt, replace(WILD, seed=1)) == one
    assert one != two


def test_a_seed_repeats_its_answer_beside_other_runs(engine: Engine) -> None:
    """Sampled from the likelier tokens: a batch rounds otherwise in the last bit, and over the whole vocabulary at a
    high temperature a draw can fall so close to the border of two tokens that this decides (seen with llama.cpp)."""
    prompt, seeded = chat(engine, "Hello!"), Sampling(temperature=3, top_k=8, seed=7)
    alone = answer(engine, prompt, seeded)
    assert alone not in (answer(engine, prompt), answer(engine, prompt, replace(seeded, seed=8)))
    others = [engine.start(chat(engine, f"What is {n} + 9?"), WILD, max_tokens=60) for n in (1, 2)]
    for _ in range(3):
        engine.step()
    (pieces, *_) = collect(engine, engine.start(prompt, seeded, max_tokens=60))
    assert tokens_of(pieces) == alone
    for run in others:
        engine.cancel(run)


def test_without_a_seed_sampled_answers_differ(engine: Engine) -> None:
    prompt = chat(engine, "Hello!")
    assert len({tuple(answer(engine, prompt, replace(WILD, temperature=3))) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=2, top_k=1), Sampling(temperature=2, top_p=0.0), Sampling(temperature=2, min_p=1.0)],
)
def test_each_filter_alone_leaves_the_best_token(engine: Engine, sampling: Sampling) -> None:
    prompt = chat(engine, "What is 5 + 4?")
    assert answer(engine, prompt, sampling) == answer(engine, prompt)


def unsure(engine: Engine) -> list[int]:
    """The model cannot add without thinking: at the first digit of the sum it is honestly unsure."""
    off = "<think>\n\n</think>\n\n345 + 278 = "
    return [*chat(engine, "What is 345 + 278?"), *engine.tokenize(off, special=True)]


def test_probabilities_follow_the_order_of_transformers(engine: Engine) -> None:
    """Drawn 600 times, the shares of the first token are those of: temperature, top_k, top_p, min_p, in this order."""
    prompt = unsure(engine)
    sampling = Sampling(temperature=3.0, top_k=12, top_p=0.9, min_p=0.3)
    expected = _distribution(evaluated(engine, prompt)[-1], sampling)
    assert 3 <= len(expected) < 12
    counts = dict.fromkeys(expected, 0)
    for seed in range(600):
        (token,) = answer(engine, prompt, replace(sampling, seed=seed), max_tokens=1)
        counts[token] += 1  # a KeyError here is a token that a filter should have removed
    for token, probability in expected.items():
        deviation = (probability * (1 - probability) / 600) ** 0.5
        assert abs(counts[token] / 600 - probability) < 4.5 * deviation


def _distribution(logits: NDArray[np.float64], sampling: Sampling) -> dict[int, float]:
    logits = logits / sampling.temperature
    order = np.argsort(-logits)[: sampling.top_k]
    probabilities = np.exp(logits[order] - logits[order[0]])
    probabilities /= probabilities.sum()
    keep = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p) + 1)
    order, probabilities = order[:keep], probabilities[:keep] / probabilities[:keep].sum()
    kept = probabilities >= sampling.min_p * probabilities[0]
    total = probabilities[kept].sum()
    return {int(token): float(p / total) for token, p in zip(order[kept], probabilities[kept], strict=True)}


def test_penalties_count_generated_tokens_only(engine: Engine) -> None:
    """A penalty that forbids repetition leaves the first token alone, however often the prompt holds it."""
    prompt = chat(engine, "What is 5 + 4?")
    first = answer(engine, prompt, max_tokens=1)
    assert answer(engine, prompt * 3, GREEDY, 1) == answer(engine, prompt * 3, STRICT, 1)
    generated = answer(engine, prompt, STRICT, 40)
    assert generated[:1] == first
    assert len(set(generated)) == len(generated)


def test_an_answers_earlier_part_counts_for_penalties_after_a_restart(engine: Engine) -> None:
    prompt = chat(engine, "What is 5 + 4?")
    whole = answer(engine, prompt, STRICT, 20)
    (pieces,) = collect(engine, engine.start([*prompt, *whole[:8]], STRICT, max_tokens=12, generated=8))
    assert tokens_of(pieces) == whole[8:]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, repetition_penalty=1.3),
        Sampling(temperature=0, frequency_penalty=1.5),
        Sampling(temperature=0, presence_penalty=1.5),
        Sampling(temperature=0, repetition_penalty=0.7, frequency_penalty=-0.5, presence_penalty=0.25),
    ],
)
def test_each_penalty_is_taken_off_as_its_formula_says(engine: Engine, sampling: Sampling) -> None:
    """After an earlier part of known counts, the next token is the best one of the logits less the penalties."""
    earlier = engine.tokenize("1 1 1 0 2 2 5 6 6 6 6", special=False)
    prompt = [*unsure(engine), *earlier]
    logits = np.concatenate(list(engine.evaluate(prompt)))[-1].astype(np.float64)
    for token in set(earlier):
        strength = sampling.repetition_penalty
        logits[token] = logits[token] * strength if logits[token] <= 0 else logits[token] / strength
        logits[token] -= earlier.count(token) * sampling.frequency_penalty + sampling.presence_penalty
    run = engine.start(prompt, sampling, max_tokens=1, generated=len(earlier))
    assert tokens_of(collect(engine, run)[0]) == [int(np.argmax(logits))]


# Limits


def test_the_answer_ends_where_the_context_does(engine: Engine) -> None:
    prompt = (chat(engine, "What is 345 + 278?") * 40)[-(engine.context_length - 3) :]
    run = engine.start(prompt, GREEDY, max_tokens=50)
    (pieces,) = collect(engine, run)
    assert run.max_tokens == 3
    assert (len(pieces), pieces[-1].finish_reason) == (3, "length")


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_prompt_that_does_not_fit_is_refused_before_any_work(engine: Engine, max_tokens: int) -> None:
    with pytest.raises(ContextTooLong) as error:
        engine.start([5] * 512, GREEDY, max_tokens=max_tokens)
    assert (error.value.prompt_tokens, error.value.context_length) == (512, 512)
    assert engine.step() == []


def test_an_empty_prompt_and_a_negative_length_are_refused(engine: Engine) -> None:
    with pytest.raises(UsageError):
        engine.start([], GREEDY, max_tokens=5)
    with pytest.raises(UsageError):
        engine.start([5], GREEDY, max_tokens=-1)


# Text


#: One, two, three and four bytes in UTF-8; a joined family, a flag, a combining accent, half a surrogate pair.
TEXTS = ["plain", "é ß", "你好 안녕", "🙂 👨\u200d👩\u200d👧 🇫🇷", "à\u0301", "\x00\x7f\u2028", "<think>x</think>"]
TEXTS += ["a\r\n\tb", "", "\ud83d"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_join_to_the_text_they_came_from(engine: Engine, text: str) -> None:
    vocabulary = engine.vocabulary()
    joined = b"".join(vocabulary[token] for token in engine.tokenize(text, special=False))
    assert joined == unicodedata.normalize("NFC", text).encode(errors="replace")


def test_decomposed_text_has_the_ids_of_its_composed_form(engine: Engine) -> None:
    assert engine.tokenize("cafe\u0301", special=False) == engine.tokenize("caf\u00e9", special=False)


def test_control_tokens_are_text_unless_asked_for(engine: Engine) -> None:
    for control in ("<|im_end|>", "<|endoftext|>", "<|fim_prefix|>"):
        assert len(engine.tokenize(control, special=True)) == 1
        assert len(engine.tokenize(control, special=False)) > 1
    for tag in ("<think>", "</tool_call>"):
        assert len(engine.tokenize(tag, special=False)) == len(engine.tokenize(tag, special=True)) == 1


def test_the_stop_tokens_are_those_of_the_generation_config(engine: Engine) -> None:
    ends = {engine.tokenize(text, special=True)[0] for text in ("<|im_end|>", "<|endoftext|>")}
    assert engine.stop_tokens == ends
    assert all(engine.vocabulary()[token] == b"" for token in ends)


def test_no_piece_holds_half_a_character(engine: Engine) -> None:
    """Sampled nearly at random, the byte tokens come in broken sequences; every piece is whole characters all the same,
    and what a piece held back is in the next whole one."""
    wild = Sampling(temperature=50, top_k=0, top_p=1, seed=11)
    (pieces,) = collect(engine, engine.start(chat(engine, "👋"), wild, max_tokens=400))
    vocabulary = engine.vocabulary()
    raw = b"".join(vocabulary[token] for token in tokens_of(pieces))
    while pieces and not pieces[-1].whole:
        pieces.pop()
    assert raw.decode(errors="replace").startswith(text_of(pieces))
    assert any(not piece.whole for piece in pieces)


# Constraints, probabilities, measuring


class Only:
    """A constraint that spells one text, then the stop token."""

    def __init__(self, engine: Engine, text: str) -> None:
        self._rest = [*engine.tokenize(text, special=False), min(engine.stop_tokens)]
        self._size = len(engine.vocabulary())
        self.accepted: list[int] = []

    def allowed(self) -> NDArray[np.bool_]:
        mask = np.zeros(self._size, dtype=bool)
        mask[self._rest[len(self.accepted)]] = True
        return mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1, seed=1, presence_penalty=1)])
def test_a_constraint_decides_what_may_be_drawn(engine: Engine, sampling: Sampling) -> None:
    only, free = Only(engine, '{"naïve": 7}'), chat(engine, "What is 2 + 2?")
    expected = answer(engine, free)
    beside = engine.start(free, GREEDY, max_tokens=60)
    bound = engine.start(chat(engine, "hi"), sampling, max_tokens=60, constraint=only)
    bound_pieces, free_pieces = collect(engine, bound, beside)
    assert text_of(bound_pieces) == '{"naïve": 7}'
    assert bound_pieces[-1].finish_reason == "stop"
    assert only.accepted == tokens_of(bound_pieces)
    assert tokens_of(free_pieces) == expected


def test_logprobs_are_the_models_own_whatever_is_drawn(engine: Engine) -> None:
    prompt = unsure(engine)
    expected = evaluated(engine, prompt)[-1]
    odd = Sampling(temperature=5, top_k=3, presence_penalty=2, seed=4)
    (pieces,) = collect(engine, engine.start(prompt, odd, max_tokens=1, logprobs=3))
    logprobs = pieces[0].logprobs
    assert logprobs is not None
    assert [token for token, _ in logprobs.top] == np.argsort(-expected, kind="stable")[:3].tolist()
    assert [value for _, value in logprobs.top] == pytest.approx(sorted(expected)[:-4:-1], abs=1e-3)
    assert logprobs.chosen == pytest.approx(expected[pieces[0].tokens[0]], abs=1e-3)


@pytest.mark.parametrize("count", [None, 0])
def test_logprobs_come_as_asked(engine: Engine, count: int | None) -> None:
    (pieces,) = collect(engine, engine.start(chat(engine, "Hello!"), GREEDY, max_tokens=3, logprobs=count))
    for piece in pieces:
        assert (piece.logprobs is None) == (count is None)
        assert piece.logprobs is None or (piece.logprobs.top == () and piece.logprobs.chosen <= 0)


def test_evaluation_gives_logits_behind_every_token_and_leaves_no_cache(engine: Engine) -> None:
    prompt = (chat(engine, "What is 3 + 4?") * 12)[:150]
    whole = np.concatenate(list(engine.evaluate(prompt)))
    assert whole.shape == (150, len(engine.vocabulary()))
    assert whole.dtype == np.float32
    again = np.concatenate(list(engine.evaluate(prompt[:70])))
    assert np.abs(log_softmax(again) - log_softmax(whole[:70])).max() < 1e-2
    run = engine.start(prompt, GREEDY, max_tokens=1)
    assert run.cached_tokens == 0
    with pytest.raises(EngineError, match="live"):
        next(engine.evaluate(prompt))
    engine.cancel(run)
    with pytest.raises(ContextTooLong):
        next(engine.evaluate(prompt * 9))


def test_the_next_token_is_the_best_one_of_the_evaluation(engine: Engine) -> None:
    """The step machine and the measuring see the same model, token by token."""
    prompt = chat(engine, "What is 58 + 67?")
    said = answer(engine, prompt, max_tokens=40)
    best = evaluated(engine, [*prompt, *said])[len(prompt) - 1 : -1].argmax(-1)
    assert best.tolist() == said


# Opening and threads


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_lives_in_any_one_thread(name: str) -> None:
    """A server's worker is not the main thread."""
    answers: list[list[int]] = []

    def work() -> None:
        opened = open_demo(name, max_runs=2)
        runs = [opened.start(chat(opened, "What is 8 + 5?"), GREEDY, max_tokens=20) for _ in range(2)]
        answers.extend(tokens_of(pieces) for pieces in collect(opened, *runs))
        opened.close()

    for _ in range(2):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    assert len(answers) == 4
    assert all(said == answers[0] for said in answers)


#: Every call of the contract, as a user may make it after `close`.
CALLS: dict[str, Callable[[Engine], object]] = {
    "tokenize": lambda engine: engine.tokenize("Hello!", special=False),
    "vocabulary": lambda engine: engine.vocabulary(),
    "start": lambda engine: engine.start([1, 2, 3], GREEDY, max_tokens=5),
    "step": lambda engine: engine.step(),
    "cached_prefix": lambda engine: engine.cached_prefix([1, 2, 3]),
    "evaluate": lambda engine: engine.evaluate([1, 2, 3]),
}


def open_any(name: str) -> Engine:
    return ScriptedEngine(["one two three four"]) if name == "scripted" else open_demo(name, max_runs=1)


@pytest.mark.parametrize("name", [*ENGINES, "scripted"])
def test_every_call_after_closing_is_an_error_that_says_so(name: str) -> None:
    """Never a crash and never a wait; cancelling and closing once more do nothing."""
    promised = {member for member in vars(Engine) if callable(getattr(Engine, member)) and not member.startswith("_")}
    assert promised == {*CALLS, "cancel", "close"}
    opened = open_any(name)
    run = opened.start(chat(opened, "Hello!"), GREEDY, max_tokens=20)
    opened.step()
    opened.close()
    for call in CALLS.values():
        with pytest.raises(EngineError, match="the engine is closed") as error:
            call(opened)
        assert error.value.hint
    opened.cancel(run)
    opened.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        opened.step()


@pytest.mark.parametrize("name", [*ENGINES, "scripted"])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_closing_ends_live_runs(name: str, steps: int) -> None:
    opened = open_any(name)
    run = opened.start(chat(opened, "Hello!"), GREEDY, max_tokens=20)
    for _ in range(steps):
        opened.step()
    assert not run.finished
    opened.close()
    assert run.finished


@pytest.mark.parametrize("name", ENGINES)
def test_an_evaluation_ends_with_the_engine(name: str) -> None:
    opened = open_demo(name, max_runs=1)
    blocks = opened.evaluate(opened.tokenize("a b " * 200, special=False)[:300])
    assert len(next(blocks)) < 300
    opened.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        next(blocks)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("options", [{"context_length": 0}, {"context_length": 10**7}, {"kv_quant": 3}])
def test_settings_out_of_range_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(UsageError) as error:
        engines.open("demo", engine=name, **options)  # type: ignore[arg-type]
    assert error.value.hint


@pytest.mark.parametrize("name", ENGINES)
def test_a_damaged_checkpoint_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(LocalqwenError, match=r"broken|model\.safetensors") as error:
        engines.open(folder, engine=name)
    assert error.value.hint


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_keys_and_values_change_little_and_keep_every_promise(name: str, bits: int) -> None:
    """Of the likely tokens the log-probabilities move by the noise of the bits (and of another kernel, which in bf16
    alone is a few hundredths); company changes nothing."""
    plain, packed = open_demo(name, max_runs=1), open_demo(name, max_runs=2, kv_quant=bits)
    prompt = chat(packed, "What is 345 + 278?")
    reference, other = evaluated(plain, prompt), evaluated(packed, prompt)
    likely = reference > np.log(0.01)
    moved = np.abs(reference - other)[likely]
    assert 0 < moved.mean() < {8: 0.1, 4: 0.5}[bits]
    alone = [answer(packed, chat(packed, q), max_tokens=30) for q in ("What is 8 + 5?", "Hello!")]
    runs = [packed.start(chat(packed, q), GREEDY, max_tokens=30) for q in ("What is 8 + 5?", "Hello!")]
    assert [tokens_of(pieces) for pieces in collect(packed, *runs)] == alone
    plain.close()
    packed.close()
