"""The scripted engine stands for a real one in the tests of everything above: its ids must mean what theirs mean."""

from localqwen.engines.engine import Sampling, TokenOutput
from localqwen.engines.scripted import ScriptedEngine


def answer(engine: ScriptedEngine, prompt: list[int]) -> list[TokenOutput]:
    run = engine.start(prompt, Sampling(temperature=0), max_tokens=100)
    outputs: list[TokenOutput] = []
    while not run.finished:
        outputs += [output for _, output in engine.step()]
    return outputs


def test_the_ids_of_prompts_and_answers_are_places_in_one_vocabulary() -> None:
    engine = ScriptedEngine(["blue, not red"])
    prompt = engine.tokenize("red or blue?", special=False)
    outputs = answer(engine, prompt)
    vocabulary = engine.vocabulary()
    said = [token for output in outputs for token in output.tokens]
    assert b"".join(vocabulary[token] for token in prompt) == b"red or blue?"
    assert b"".join(vocabulary[token] for token in said) == b"blue, not red"
    assert "".join(output.text for output in outputs) == "blue, not red"
    assert engine.tokenize("red", special=False) == [said[-2]] == [prompt[0]]
    assert {said[-1]} == engine.stop_tokens


def test_only_the_part_that_two_prompts_share_is_cached() -> None:
    engine = ScriptedEngine(["one two", "three"])
    prompt = engine.tokenize("a b c", special=False)
    said = [token for output in answer(engine, prompt) for token in output.tokens]
    assert engine.cached_prefix(engine.tokenize("a b d", special=False)) == 4
    assert engine.cached_prefix(engine.tokenize("x b c", special=False)) == 0
    run = engine.start([*prompt, *said[:3], *engine.tokenize(" more", special=False)], Sampling(), max_tokens=1)
    assert run.cached_tokens == len(prompt) + 3
