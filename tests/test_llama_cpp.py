"""The llama.cpp engine on the built-in model: runs, reuse, cancel, sampling, limits."""

import ctypes
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localqwen import engines
from localqwen.engines import Piece, Run, Sampling
from localqwen.engines.llama_cpp import LlamaCppEngine
from localqwen.engines.llama_library import library
from localqwen.errors import ContextTooLong, EngineError, Unsupported, UsageError
from localqwen.models import provide

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCppEngine]:
    opened = engines.open("demo", context_length=512, threads=1, max_runs=4)
    assert isinstance(opened, LlamaCppEngine)
    yield opened
    opened.close()


def chat(engine: engines.Engine, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return engine.tokenize(text, special=True)


def collect(engine: engines.Engine, *runs: Run) -> list[list[Piece]]:
    pieces: dict[Run, list[Piece]] = {run: [] for run in runs}
    while not all(run.finished for run in runs):
        for run, piece in engine.step():
            pieces[run].append(piece)
    return list(pieces.values())


def answer(
    engine: engines.Engine, prompt: Sequence[int], sampling: Sampling = GREEDY, max_tokens: int = 60
) -> list[int]:
    (pieces,) = collect(engine, engine.start(prompt, sampling, max_tokens=max_tokens))
    return [token for piece in pieces for token in piece.tokens]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_question_is_answered_and_ends_with_the_stop_token(engine: LlamaCppEngine) -> None:
    (pieces,) = collect(engine, engine.start(chat(engine, "What is 12 + 7?"), GREEDY, max_tokens=200))
    assert text_of(pieces).startswith("<think>\n")
    assert "19" in text_of(pieces).rpartition("</think>")[2]
    assert (pieces[-1].finish_reason, pieces[-1].text) == ("stop", "")
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_greedy_answers_repeat(engine: LlamaCppEngine) -> None:
    prompt = chat(engine, "What is 321 + 456?")
    assert answer(engine, prompt) == answer(engine, prompt)


def test_a_prefix_that_is_still_held_is_not_computed_again_and_changes_nothing(engine: LlamaCppEngine) -> None:
    prompt = chat(engine, "How many r's are in raspberry?")
    fresh = answer(engine, prompt)
    run = engine.start([*prompt, *fresh[:20]], GREEDY, max_tokens=40)
    assert run.cached_tokens == len(prompt) + 19  # the last id is computed for its logits
    (pieces,) = collect(engine, run)
    assert [token for piece in pieces for token in piece.tokens] == fresh[20:60]


def test_runs_together_give_the_answers_of_runs_alone(engine: LlamaCppEngine) -> None:
    prompts = [chat(engine, question) for question in ("What is 8 + 5?", "Count the letter t in butter.", "Hello!")]
    alone = [answer(engine, prompt) for prompt in prompts]
    runs = [engine.start(prompt, GREEDY, max_tokens=60) for prompt in prompts]
    together = [[token for piece in pieces for token in piece.tokens] for pieces in collect(engine, *runs)]
    assert together == alone


def test_a_run_that_joins_late_disturbs_no_one(engine: LlamaCppEngine) -> None:
    first, second = chat(engine, "What is 77 + 88?"), chat(engine, "What is 77 - 33?")
    alone = [answer(engine, first), answer(engine, second)]
    runs = [engine.start(first, GREEDY, max_tokens=60)]
    pieces: dict[Run, list[int]] = {runs[0]: []}
    for _ in range(10):
        for run, piece in engine.step():
            pieces[run] += piece.tokens
    late = engine.start(second, GREEDY, max_tokens=60)
    pieces[late] = []
    while not (runs[0].finished and late.finished):
        for run, piece in engine.step():
            pieces[run] += piece.tokens
    assert list(pieces.values()) == alone


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_run_can_be_cancelled_in_every_phase(engine: LlamaCppEngine, steps: int) -> None:
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


def test_a_long_prompt_is_prefilled_in_slices_beside_an_answering_run(engine: LlamaCppEngine) -> None:
    engine._slice = 32  # as on a slow machine; there is no public way to be slow
    talking = engine.start(chat(engine, "What is 111 + 222?"), GREEDY, max_tokens=100)
    while not talking.generated:
        engine.step()
    long = engine.start(engine.tokenize("a b c " * 60, special=False), GREEDY, max_tokens=2)
    progress = []
    while not long.generated:
        before = talking.generated
        engine.step()
        progress.append(long.prefilled)
        assert talking.finished or talking.generated == before + 1
    assert len(progress) > 2
    assert progress == sorted(progress)
    assert progress[-1] == long.prompt_tokens
    engine.cancel(talking)
    engine.cancel(long)


def test_a_seed_repeats_a_sampled_answer_and_another_seed_another(engine: LlamaCppEngine) -> None:
    prompt = chat(engine, "Hello!")
    wild = {seed: answer(engine, prompt, Sampling(temperature=2.5, top_k=0, top_p=1, seed=seed)) for seed in (1, 2)}
    assert answer(engine, prompt, Sampling(temperature=2.5, top_k=0, top_p=1, seed=1)) == wild[1]
    assert wild[1] != wild[2]


def test_without_a_seed_sampled_answers_differ(engine: LlamaCppEngine) -> None:
    prompt = chat(engine, "Hello!")
    wild = Sampling(temperature=3, top_k=0, top_p=1)
    assert len({tuple(answer(engine, prompt, wild)) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=2, top_k=1), Sampling(temperature=2, top_p=0.0), Sampling(temperature=2, min_p=1.0)],
)
def test_each_filter_alone_leaves_the_best_token(engine: LlamaCppEngine, sampling: Sampling) -> None:
    prompt = chat(engine, "What is 5 + 4?")
    assert answer(engine, prompt, sampling) == answer(engine, prompt)


def test_penalties_count_generated_tokens_only(engine: LlamaCppEngine) -> None:
    """A penalty that forbids repetition leaves the first token alone, however often the prompt holds it."""
    prompt = chat(engine, "What is 5 + 4?")
    first = answer(engine, prompt, max_tokens=1)
    strict = Sampling(temperature=0, presence_penalty=100)
    assert answer(engine, prompt * 3, GREEDY, 1) == answer(engine, prompt * 3, strict, 1)
    generated = answer(engine, prompt, strict, 40)
    assert generated[:1] == first
    assert len(set(generated)) == len(generated)


def test_an_answers_earlier_part_counts_for_penalties_after_a_restart(engine: LlamaCppEngine) -> None:
    prompt = chat(engine, "What is 5 + 4?")
    strict = Sampling(temperature=0, presence_penalty=100)
    whole = answer(engine, prompt, strict, 20)
    (pieces,) = collect(engine, engine.start([*prompt, *whole[:8]], strict, max_tokens=12, generated=8))
    assert [token for piece in pieces for token in piece.tokens] == whole[8:]


def test_the_answer_ends_where_the_context_does(engine: LlamaCppEngine) -> None:
    prompt = engine.tokenize("x " * 600, special=False)[: engine.context_length - 3]
    run = engine.start(prompt, Sampling(temperature=0, presence_penalty=100), max_tokens=50)
    (pieces,) = collect(engine, run)
    assert run.max_tokens == 3
    assert pieces[-1].finish_reason in ("length", "stop")
    assert len(pieces) <= 3


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(engine: LlamaCppEngine) -> None:
    with pytest.raises(ContextTooLong) as error:
        engine.start([5] * 512, GREEDY, max_tokens=1)
    assert (error.value.prompt_tokens, error.value.context_length) == (512, 512)
    assert engine.step() == []


def test_more_runs_than_the_engine_has_are_refused(engine: LlamaCppEngine) -> None:
    runs = [engine.start(chat(engine, str(n)), GREEDY, max_tokens=5) for n in range(4)]
    with pytest.raises(EngineError, match="busy"):
        engine.start(chat(engine, "x"), GREEDY, max_tokens=5)
    for run in runs:
        engine.cancel(run)


def test_an_empty_prompt_is_refused(engine: LlamaCppEngine) -> None:
    with pytest.raises(UsageError):
        engine.start([], GREEDY, max_tokens=5)


def test_a_free_slot_takes_a_shared_prefix_over_without_robbing_its_owner(engine: LlamaCppEngine) -> None:
    system = engine.tokenize(
        "<|im_start|>system\n" + "You are a helpful assistant. " * 8 + "<|im_end|>\n", special=True
    )
    first = engine.start([*system, *chat(engine, "What is 3 + 4?")], GREEDY, max_tokens=60)
    while first.generated < 5:
        engine.step()
    second = engine.start([*system, *chat(engine, "What is 9 + 8?")], GREEDY, max_tokens=60)
    assert second.cached_tokens >= len(system)
    answers = collect(engine, first, second)
    assert "7" in text_of(answers[0])
    assert "17" in text_of(answers[1])


#: One, two, three and four bytes in UTF-8; a joined family, a flag, a combining accent.
TEXTS = ["plain", "é ß", "你好 안녕", "🙂 👨‍👩‍👧 🇫🇷", "à\u0301", "\x00\x7f\u2028", "<think>x</think>", "a\r\n\tb", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_join_to_the_text_they_came_from(engine: LlamaCppEngine, text: str) -> None:
    ids = engine.tokenize(text, special=False)
    assert b"".join(engine._model.piece(token) for token in ids).decode() == unicodedata.normalize("NFC", text)


def test_decomposed_text_has_the_ids_of_its_composed_form(engine: LlamaCppEngine) -> None:
    assert engine.tokenize("cafe\u0301", special=False) == engine.tokenize("caf\u00e9", special=False)


def test_control_tokens_are_text_unless_asked_for(engine: LlamaCppEngine) -> None:
    assert len(engine.tokenize("<|im_end|>", special=True)) == 1
    assert len(engine.tokenize("<|im_end|>", special=False)) > 1
    assert len(engine.tokenize("<think>", special=False)) == 1


def test_the_stop_tokens_are_those_of_the_generation_config(engine: LlamaCppEngine) -> None:
    ends = {engine.tokenize(text, special=True)[0] for text in ("<|im_end|>", "<|endoftext|>")}
    assert engine.stop_tokens == ends


def test_no_piece_holds_half_a_character(engine: LlamaCppEngine) -> None:
    """Sampled nearly at random, the byte tokens come in broken sequences; every piece is whole characters all the same,
    and what a piece held back is in the next whole one."""
    wild = Sampling(temperature=50, top_k=0, top_p=1, seed=11)
    (pieces,) = collect(engine, engine.start(chat(engine, "👋"), wild, max_tokens=400))
    raw = b"".join(engine._model.piece(token) for piece in pieces for token in piece.tokens)
    while pieces and not pieces[-1].whole:
        pieces.pop()
    assert raw.decode(errors="replace").startswith(text_of(pieces))
    assert any(not piece.whole for piece in pieces)
    assert all(piece.text == "" or piece.text.encode() for piece in pieces)


def test_probabilities_follow_the_order_of_transformers(engine: LlamaCppEngine) -> None:
    """Drawn 600 times, the shares of the first token are those of: temperature, top_k, top_p, min_p, in this order."""
    # The model cannot add without thinking: at the first digit of the sum it is honestly unsure.
    off = "<think>\n\n</think>\n\n345 + 278 = "
    prompt = [*chat(engine, "What is 345 + 278?"), *engine.tokenize(off, special=True)]
    sampling = Sampling(temperature=3.0, top_k=12, top_p=0.9, min_p=0.3)
    expected = _distribution(engine, prompt, sampling)
    assert 3 <= len(expected) < 12
    counts = dict.fromkeys(expected, 0)
    for seed in range(600):
        (token,) = answer(engine, prompt, replace(sampling, seed=seed), max_tokens=1)
        counts[token] += 1  # a KeyError here is a token that a filter should have removed
    for token, probability in expected.items():
        deviation = (probability * (1 - probability) / 600) ** 0.5
        assert abs(counts[token] / 600 - probability) < 4.5 * deviation


def _distribution(engine: LlamaCppEngine, prompt: list[int], sampling: Sampling) -> dict[int, float]:
    """The same in a few lines of numpy, from the logits that the engine left in its context."""
    import numpy as np

    answer(engine, prompt, max_tokens=1)
    pointer = library().llama_get_logits_ith(engine._context.handle, -1)
    size = engine._model.vocabulary_size
    logits = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (size,)).astype(np.float64)
    logits = logits / sampling.temperature
    order = np.argsort(-logits)[: sampling.top_k]
    probabilities = np.exp(logits[order] - logits[order[0]])
    probabilities /= probabilities.sum()
    keep = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p) + 1)
    order, probabilities = order[:keep], probabilities[:keep] / probabilities[:keep].sum()
    kept = probabilities >= sampling.min_p * probabilities[0]
    total = probabilities[kept].sum()
    return {int(token): float(p / total) for token, p in zip(order[kept], probabilities[kept], strict=True)}


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a model")
    with pytest.raises(Unsupported, match=r"junk\.gguf"):
        engines.open(junk)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(provide.provide("demo").read_bytes()[:-100_000])
    with pytest.raises(EngineError, match=r"cut\.gguf"):
        engines.open(cut)


@pytest.mark.parametrize("options", [{"context_length": 0}, {"context_length": 10**7}, {"threads": 0}])
def test_settings_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError) as error:
        engines.open("demo", **options)  # type: ignore[arg-type]
    assert error.value.hint


def test_a_run_of_no_tokens_reads_the_prompt_for_the_next_one(engine: LlamaCppEngine) -> None:
    prompt = chat(engine, "How many r's are in raspberry, please?")
    fresh = answer(engine, prompt)
    unlike = chat(engine, "99")
    for _ in range(engine.max_runs):  # every slot now holds something else
        answer(engine, unlike, max_tokens=1)
    prepared = engine.start(prompt, GREEDY, max_tokens=0)
    assert collect(engine, prepared) == [[]]
    run = engine.start(prompt, GREEDY, max_tokens=60)
    assert run.cached_tokens == len(prompt) - 1
    (pieces,) = collect(engine, run)
    assert [token for piece in pieces for token in piece.tokens] == fresh


class Only:
    """A constraint that spells one text, then the stop token."""

    def __init__(self, engine: engines.Engine, text: str) -> None:
        self._rest = [*engine.tokenize(text, special=False), min(engine.stop_tokens)]
        self._size = len(engine.vocabulary())
        self.accepted: list[int] = []

    def allowed(self) -> np.ndarray:
        mask = np.zeros(self._size, dtype=bool)
        mask[self._rest[len(self.accepted)]] = True
        return mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1, seed=1, presence_penalty=1)])
def test_a_constraint_decides_what_may_be_drawn(engine: LlamaCppEngine, sampling: Sampling) -> None:
    only = Only(engine, '{"naïve": 7}')
    (pieces,) = collect(engine, engine.start(chat(engine, "hi"), sampling, max_tokens=60, constraint=only))
    assert text_of(pieces) == '{"naïve": 7}'
    assert pieces[-1].finish_reason == "stop"
    assert only.accepted[-1] in engine.stop_tokens


def test_the_vocabulary_spells_what_tokenize_reads(engine: LlamaCppEngine) -> None:
    text = "Zwölf Boxkämpfer 🥊 jagen <think> 12\n\n"
    vocabulary = engine.vocabulary()
    assert b"".join(vocabulary[token] for token in engine.tokenize(text, special=False)).decode() == text
    assert all(vocabulary[token] == b"" for token in engine.stop_tokens)


def test_logprobs_are_the_models_own_whatever_is_drawn(engine: LlamaCppEngine) -> None:
    prompt = chat(engine, "What is 3 + 4?")
    first = list(engine.evaluate(prompt))[-1][-1].astype(np.float64)
    expected = first - np.log(np.exp(first - first.max()).sum()) - first.max()
    odd = Sampling(temperature=5, top_k=1, presence_penalty=2)
    (pieces,) = collect(engine, engine.start(prompt, odd, max_tokens=1, logprobs=3))
    logprobs = pieces[0].logprobs
    assert logprobs is not None
    assert [token for token, _ in logprobs.top] == np.argsort(-expected)[:3].tolist()
    assert logprobs.chosen == pytest.approx(expected[pieces[0].tokens[0]], abs=1e-4)


def test_evaluation_gives_logits_behind_every_token_and_leaves_no_cache(engine: LlamaCppEngine) -> None:
    prompt = (chat(engine, "What is 3 + 4?") * 12)[:150]
    blocks = list(engine.evaluate(prompt))
    assert [len(block) for block in blocks] == [64, 64, 22]
    assert blocks[0].shape[1] == len(engine.vocabulary())
    assert np.allclose(list(engine.evaluate(prompt[:70]))[1][5], blocks[1][5], atol=1e-3)
    run = engine.start(prompt, GREEDY, max_tokens=1)
    assert run.cached_tokens == 0
    with pytest.raises(EngineError, match="live"):
        next(engine.evaluate(prompt))
    engine.cancel(run)
    with pytest.raises(ContextTooLong):
        next(engine.evaluate(prompt * 9))


@pytest.mark.parametrize(("bits", "slack"), [(8, 0.6), (4, 4.0)])
def test_keys_and_values_in_fewer_bits_change_the_logits_little(bits: int, slack: float) -> None:
    logits = {}
    for kv_quant in (None, bits):
        opened = engines.open("demo", context_length=256, threads=1, kv_quant=kv_quant)
        logits[kv_quant] = np.concatenate(list(opened.evaluate(chat(opened, "What is 3 + 4?"))))
        opened.close()
    difference = np.abs(logits[bits] - logits[None]).max()
    assert 0 < difference < slack
    with pytest.raises(UsageError, match="3 bits"):
        engines.open("demo", kv_quant=3)
