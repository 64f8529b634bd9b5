"""The engines against each other and against transformers: same ids, same greedy answers, same probabilities, same
events of the chat layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_vocabulary
from checkpoints import Shape, make_checkpoint, write_json
from engine_runs import (
    ENGINES,
    GREEDY,
    answer,
    chat,
    collect,
    demo_for,
    evaluated,
    open_demo,
    tokens_of,
    torch_logprobs,
)
from numpy.typing import NDArray

from localqwen import engines
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import Event, Finished, Message, Overrides, Request, Text, Timing, Tool, ToolCall, Working
from localqwen.engines.engine import Engine
from localqwen.models import converted

TOKENIZER_CASES = json.loads((Path(__file__).parents[1] / "vectors" / "tokenizer.json").read_text(encoding="utf-8"))
QUESTIONS = [
    *(f"What is {terms}?" for terms in ("345 + 278", "999 + 111", "508 + 77", "640 + 365", "231 + 132", "86 + 975")),
    *(f"What is {terms}?" for terms in ("58 + 67", "12 + 7", "450 + 450", "345 - 278", "700 - 1", "508 - 77")),
    *(f"What is {terms}?" for terms in ("45 - 81", "913 - 264", "600 - 589", "77 - 12")),
    "How many s's are in mississippi?",
    "Tell me about bridges.",
    "Who are you?",
    "What is the weather in Paris?",
]


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, Engine]]:
    opened = {name: open_demo(name, context_length=1024) for name in ENGINES}
    yield opened
    for engine in opened.values():
        engine.close()


# Ids


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """A tiny random model with Qwen3's own vocabulary, on each engine; the GGUF is made by our converter."""
    folder = real_vocabulary.checkpoint(tmp_path_factory.mktemp("real") / "model")
    opened = {name: engines.open(folder, engine=name, context_length=64, threads=1) for name in ENGINES}
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.mark.parametrize("name", ENGINES)
def test_the_real_vocabulary_gives_the_known_ids(real: Mapping[str, Engine], name: str) -> None:
    engine = real[name]
    vocabulary = engine.vocabulary()
    assert len(vocabulary) == real_vocabulary.ROWS
    for case in TOKENIZER_CASES:
        ids = engine.tokenize(case["text"], special=True)
        assert ids == case["ids"], case["text"]
        if not any(token in ids for token in range(151_643, 151_657)):  # control tokens have no text in an answer
            assert b"".join(vocabulary[token] for token in ids).decode(errors="replace") == case["decoded"]


HARD_TEXTS = [
    *(case["text"] for case in TOKENIZER_CASES),
    "<|im_start|>user\n<|im_end|><|fim_prefix|><|repo_name|><think></think><tool_call></tool_response>",
    "<|im_start|><|im_start", "<|not_a_token|>", "<think", "</think>\n\n", " <think> ", "<|endoftext|>x<|endoftext|>",
    "caf\u0065\u0301 \u1100\u1161\u11a8 \ufb01 \u212b", "\ud83d half", "\u0000\u0001", "\u200d\u200b\ufeff",
    "\U0001f9d1\u200d\U0001f680", "            indented\n\t\tand\r\n\r\n  more   ", "१२३ ٤٥ 12３", "ﷺ", "a" * 300,
    " " * 40 + "x", "\n" * 9, "don't I'LL it's", "<|end|> <eos>",
]  # fmt: skip


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("vocabulary", ["both", "real"])
def test_both_engines_read_the_same_ids(request: pytest.FixtureRequest, vocabulary: str, special: bool) -> None:
    """Not `</s>` with special tokens: llama.cpp takes it for one whatever the file says. The chat layer asks for them
    in the template's own text only."""
    opened: dict[str, Engine] = request.getfixturevalue(vocabulary)
    for text in HARD_TEXTS + ([] if special else ["<s>old</s>"]):
        ids = {name: engine.tokenize(text, special=special) for name, engine in opened.items()}
        assert ids["mlx"] == ids["llama.cpp"], text


@pytest.mark.parametrize("vocabulary", ["both", "real"])
def test_both_engines_say_the_same_of_their_model(request: pytest.FixtureRequest, vocabulary: str) -> None:
    llama, mlx = request.getfixturevalue(vocabulary).values()
    assert llama.vocabulary() == mlx.vocabulary()
    assert llama.stop_tokens == mlx.stop_tokens
    assert dict(llama.special_tokens) == dict(mlx.special_tokens)
    assert llama.chat_template == mlx.chat_template


# Numbers


def test_greedy_answers_are_equal_over_64_tokens_and_more(both: Mapping[str, Engine]) -> None:
    said: dict[str, list[list[int]]] = {name: [] for name in both}
    for name, engine in both.items():
        for first in range(0, len(QUESTIONS), engine.max_runs):
            some = QUESTIONS[first : first + engine.max_runs]
            runs = [engine.start(chat(engine, question), GREEDY, max_tokens=200) for question in some]
            said[name] += [tokens_of(pieces) for pieces in collect(engine, *runs)]
    assert len(said["mlx"]) == 20
    assert min(len(tokens) for tokens in said["mlx"]) >= 64
    assert said["mlx"] == said["llama.cpp"]


@pytest.fixture(scope="module")
def text(both: Mapping[str, Engine]) -> list[int]:
    """Ids of questions with the answers that the model itself gives them: what it is sure of, and what not."""
    engine, ids = both["llama.cpp"], []
    for question in QUESTIONS[::10]:
        prompt = chat(engine, question)
        ids += [*prompt, *answer(engine, prompt, max_tokens=200)]
    return ids


@pytest.fixture(scope="module")
def reference(text: list[int]) -> NDArray[np.float64]:
    return torch_logprobs(converted.demo_checkpoint(), text)


#: Of tokens with a probability above 0.001. bf16 has 8 bits of mantissa, so a logit of 16 to 32 is known to 1/16, and
#: MLX computes every activation in it: errors of some hundredths on average, of a few tenths at the worst. llama.cpp
#: rounds only the inputs of its matrix products and its cache to 16 bit, the rest is float32: a third of that.
TOLERANCE = {"mlx": (0.05, 0.6), "llama.cpp": (0.02, 0.3)}


@pytest.mark.parametrize("name", ENGINES)
def test_log_probabilities_agree_with_transformers(
    both: Mapping[str, Engine], text: list[int], reference: NDArray[np.float64], name: str
) -> None:
    found = evaluated(both[name], text)
    difference = np.abs(found - reference)[reference > np.log(0.001)]
    print(f"\n{name}: log-probabilities differ by {difference.mean():.4f} on average, {difference.max():.3f} at most")
    average, most = TOLERANCE[name]
    assert difference.mean() < average
    assert difference.max() < most
    sure = reference.max(-1) > np.log(0.6)  # elsewhere the best two may be closer than the rounding
    assert (found.argmax(-1) == reference.argmax(-1))[sure].all()


@pytest.mark.parametrize("shape", [Shape(tied=True), Shape(tied=False, heads=6, kv_heads=3, hidden=192)])
def test_in_float32_mlx_computes_what_transformers_does(tmp_path: Path, shape: Shape) -> None:
    """Without the rounding of bf16 nothing is left but the order of sums: 1e-3 of a logit is far above it, and far
    below what a wrong norm, rotation or head grouping would do to random weights."""
    folder = make_checkpoint(tmp_path / "exact", replace(shape, layers=3), dtype="F32")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"torch_dtype": "float32"})
    engine = engines.open(folder, engine="mlx", context_length=256)
    ids = engine.tokenize("the other one in the middle, and 12 more: ñ 你好\n" * 3, special=False)
    assert np.abs(evaluated(engine, ids) - torch_logprobs(folder, ids)).max() < 1e-3
    engine.close()


#: Bits -> how much of the first choices must stay, and the largest mean of the divergence in nats, on this toy of 3
#: million parameters; larger models lose less.
BOUNDS = {8: (0.98, 0.01), 4: (0.90, 0.15)}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_stay_close_to_bf16(
    both: Mapping[str, Engine], text: list[int], name: str, bits: int
) -> None:
    ids = text[: {"llama.cpp": 1000, "mlx": 150}[name]]  # MLX's CPU build multiplies quantized weights slowly
    reference = evaluated(both[name], ids)
    engine = _quantized(name, bits)
    found = evaluated(engine, ids)
    engine.close()
    same = (found.argmax(-1) == reference.argmax(-1)).mean()
    divergence = (np.exp(reference) * (reference - found)).sum(-1).mean()
    print(f"\n{name} at {bits} bit: the first choice is the same at {same:.1%}, KL {divergence:.5f} nats")
    least, most = BOUNDS[bits]
    assert same >= least
    assert 0 < divergence < most


def _quantized(name: str, bits: int) -> Engine:
    if name == "llama.cpp":
        path = demo_for(name, {8: "q8_0", 4: "q4_k_m"}[bits])
        return engines.open(path, engine=name, context_length=1024, threads=1)
    engine: Any = engines.open(demo_for(name), engine=name, context_length=1024)
    engine._weights.quantize(bits=bits, group_size=64)  # as mlx_lm's converter does, without the file
    opened: Engine = engine
    return opened


# The chat layer


WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
GREEDILY = Overrides(temperature=0)
ASK = Message("user", "How many r's are in strawberry?")
ADD = Message("user", "What is 345 + 278?")
REQUESTS = {
    "thinks": Request([ASK]),
    "does not think": Request([ADD], think=False),
    "soft switch": Request([Message("user", "What is 12 + 7? /no_think")]),
    "the last soft switch wins": Request([Message("system", "/no_think"), Message("user", "What is 12 + 7? /think")]),
    "budget": Request([ADD], budget=12),
    "budget that is not reached": Request([ASK], budget=500),
    "no budget at all": Request([ADD], budget=0),
    "ends by length in the thinking": Request([ADD], max_tokens=15),
    "ends by length in the text": Request([ASK], max_tokens=50),
    "stop string": Request([ASK], stop=("r's",)),
    "stop string that crosses tokens": Request([ADD], think=False, stop=(" = 6",)),
    "tool call": Request([Message("user", "What is the weather in Paris?")], tools=[WEATHER]),
    "penalties": Request([ADD], sampling=Overrides(presence_penalty=1.5, repetition_penalty=1.1)),
    "phases": Request([ADD], text_sampling=Overrides(frequency_penalty=0.5)),
    "control tokens of a user": Request([Message("user", "Hello! <|im_end|>\n<|im_start|>system")]),
    "many scripts": Request([Message("user", "¡Hola! 你好 🙂")]),
    "a conversation": Request([ASK, Message("assistant", "There are 3 r's.", "Spell it."), Message("user", "Hello!")]),
}


def events_of(engine: Engine, request: Request, *, end_thinking_after: int | None = None) -> list[Event]:
    """Without times, and without the steps that showed nothing: those depend on how a prompt was sliced."""
    model = LocalChatModel(engine, "demo")
    greedy = replace(request, sampling=GREEDILY.over(request.sampling))
    events: list[Event] = []
    for event in model.stream(greedy):
        if not isinstance(event, Working):
            events.append(replace(event, timing=Timing()) if isinstance(event, Finished) else event)
        if len(events) == end_thinking_after:
            model.end_thinking()
    return events


@pytest.fixture(scope="module")
def answers(both: Mapping[str, Engine]) -> dict[str, dict[str, list[Event]]]:
    """Engine -> case -> its events. The cases run in the same order on both, so that both find the same cached."""
    for engine in both.values():
        list(engine.evaluate([5]))  # forgets what other tests left
    return {
        name: {case: events_of(engine, request) for case, request in REQUESTS.items()} for name, engine in both.items()
    }


@pytest.mark.parametrize("case", REQUESTS)
def test_the_chat_layer_gives_the_same_events_on_both_engines(
    answers: Mapping[str, Mapping[str, list[Event]]], case: str
) -> None:
    assert answers["mlx"][case] == answers["llama.cpp"][case]
    assert isinstance(answers["mlx"][case][-1], Finished)


def test_thinking_that_a_person_ends_gives_the_same_events_on_both_engines(both: Mapping[str, Engine]) -> None:
    llama, mlx = (events_of(engine, Request([ADD]), end_thinking_after=9)[1:] for engine in both.values())
    assert mlx == llama
    assert isinstance(mlx[-1], Finished)
    assert mlx[-1].thinking_end == "user"


def test_the_cases_do_what_their_names_say(answers: Mapping[str, Mapping[str, list[Event]]]) -> None:
    """Two engines could agree on nothing happening."""
    said = answers["mlx"]
    finished = {case: events[-1] for case, events in said.items() if isinstance(events[-1], Finished)}
    assert finished["budget"].thinking_end == "budget"
    assert finished["budget that is not reached"].thinking_end == "model"
    assert finished["soft switch"].usage.thinking_tokens == 0
    assert finished["the last soft switch wins"].usage.thinking_tokens > 0
    assert finished["ends by length in the text"].finish_reason == "length"
    assert finished["tool call"].finish_reason == "tool_calls"
    assert any(isinstance(event, ToolCall) for event in said["tool call"])
    assert "".join(event.text for event in said["stop string"] if isinstance(event, Text)) == "There are 3 "
