"""What a person waits for, on a scripted engine and a clock whose times are known; workloads and profiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localqwen.bench import chat, profiles, tables, workloads
from localqwen.bench.history import Benchmark
from localqwen.bench.profiles import Profile
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.bench.workloads import Script, Workload
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import Event, Finished, Request, Text, Thinking, Timing, Usage
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import ConfigError, UsageError
from localqwen.models import store

TALK = Workload("talk", questions=("One?", "Two?"), answer=50)


class TimedModel:
    """Says two tokens of thinking and three of text, an event every 100 ms of its own clock."""

    name = engine_name = "timed"
    thinking_mode = "switch"
    context_length = 1000
    load_ms = 0.0

    def __init__(self) -> None:
        self.now = 0.0
        self.requests: list[Request] = []

    def clock(self) -> float:
        return self.now

    def stream(self, request: Request) -> Iterator[Event]:
        self.requests.append(request)
        events: list[Event] = [Thinking("hm"), Thinking("hm"), Text("a"), Text("b"), Text("c")]
        for event in [*events, Finished("stop", Usage(10, 0, 5, 2), Timing())]:
            self.now += 0.1
            yield event

    def close(self) -> None:
        pass


def words(text: str) -> int:
    return len(text.split(" "))


def test_the_waits_of_an_answer_are_those_of_its_events() -> None:
    model = TimedModel()
    first, second = chat.measure(model, "m", Test("chat", "thinking"), TALK, 0, words, clock=model.clock)  # type: ignore[arg-type]
    assert first.values["first_token_ms"] == pytest.approx(100)
    assert first.values["first_answer_ms"] == pytest.approx(300)
    assert first.values["total_ms"] == pytest.approx(600)
    assert first.values["tokens_per_second"] == pytest.approx(4 / 0.5)
    assert first.values["thinking_share"] == 2 / 5
    assert first.values["thinking_time_share"] == pytest.approx(0.2 / 0.5)
    assert first.latencies == pytest.approx([0.1] * 4)
    assert (first.test.turn, second.test.turn) == (1, 2)


def test_a_second_turn_holds_the_first_with_its_thinking() -> None:
    model = TimedModel()
    list(chat.measure(model, "m", Test("chat", "thinking"), TALK, 0, words, clock=model.clock))  # type: ignore[arg-type]
    said = [(message.role, message.content, message.thinking) for message in model.requests[1].messages]
    assert said[1:] == [("user", "One?", None), ("assistant", "abc", "hmhm"), ("user", "Two?", None)]


def test_no_two_conversations_begin_alike() -> None:
    model, begun = TimedModel(), set()
    for test in (Test("chat", "thinking"), Test("chat", "not thinking")):
        for repeat, lane, salt in ((0, 0, ""), (1, 0, ""), (0, 1, ""), (0, 0, "run")):
            list(chat.measure(model, "m", test, TALK, repeat, words, lane=lane, salt=salt, clock=model.clock))  # type: ignore[arg-type]
            begun.add(model.requests[-1].messages[0].content)
    assert len(begun) == 8


def test_thinking_that_never_ends_is_no_answer() -> None:
    engine = ScriptedEngine(["<think>on and on", "<think>on and on"])
    (sample, _) = chat.measure(LocalChatModel(engine, "m"), "m", Test("chat", "thinking"), TALK, 0, words)
    assert "first_answer_ms" not in sample.values
    assert "first_token_ms" in sample.values
    run = Benchmark("r", "", {}, {}, {}, subjects=(Subject("m", "x"),), samples=(sample,))
    assert tables.waits(run)[1][4] == "none"


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("switch", ["not thinking", "thinking", "budget 64"]),
        ("always", ["thinking", "budget 64"]),
        ("never", ["not thinking"]),
    ],
)
def test_a_model_is_asked_for_what_it_can(mode: str, names: list[str]) -> None:
    assert [test.name for test in chat.tests([64]) if chat.can(mode, test)] == names  # type: ignore[arg-type]


def test_the_thinking_of_a_test_reaches_the_request() -> None:
    assert (chat.in_mode(TALK, "budget 64").think, chat.in_mode(TALK, "budget 64").budget) == (True, 64)
    assert chat.in_mode(TALK, "not thinking").think is False
    assert chat.possible(chat.in_mode(TALK, "budget 64"), "never").budget is None
    assert chat.possible(chat.in_mode(TALK, "not thinking"), "always").think is None


def test_texts_have_the_length_that_a_workload_names() -> None:
    work = Workload("w", prompt=300, answer=10, turns=3, follow_up=40)
    turns = list(Script(work, words, "1").turns())
    assert [words(added[-1].content) for added in turns] == [300, 40, 40]


def test_a_tool_loop_answers_calls_with_results_of_the_length_named() -> None:
    work = Workload("w", prompt=100, answer=10, turns=2, follow_up=50, tools=True)
    _, (call, result) = Script(work, words, "1").turns()
    assert call.tool_calls[0].id == result.tool_call_id
    assert (result.role, words(result.content)) == ("tool", 50)
    assert work.offered[0].name == call.tool_calls[0].name


def test_the_tasks_of_mlperf_client_are_there_with_their_lengths() -> None:
    """The lengths of its page (workloads.toml has the source)."""
    found = {
        work.name: (work.prompt, work.answer) for work in workloads.named(["mlperf-client", "mlperf-client-extended"])
    }
    assert found == {
        "content-generation": (128, 256),
        "creative-writing": (512, 512),
        "summarization-light": (1024, 128),
        "summarization-moderate": (1566, 256),
        "code-analysis": (2059, 128),
        "summarization-intermediate": (3906, 128),
        "summarization-substantial": (7631, 128),
    }


def test_unknown_workloads_and_settings_are_told_with_the_nearest() -> None:
    with pytest.raises(UsageError) as found:
        workloads.named(["voice-asistant"])
    assert found.value.hint == "did you mean voice-assistant?"
    with pytest.raises(UsageError) as found:
        workloads.from_table("w", {"promt": 3})
    assert found.value.hint == "did you mean prompt?"
    with pytest.raises(UsageError, match="has no question"):
        workloads.from_table("w", {"answer": 10})


def measured(**values: float) -> Sample:
    return Sample("m", Test("workload", "w"), values)


def judged(limits: dict[str, float], *samples: Sample) -> list[tuple[str, float | None, bool]]:
    profile = Profile("p", Workload("w", prompt=1), limits)
    run = Benchmark("r", "", {}, {}, {}, subjects=(Subject("m", "x", threads=2),), samples=samples)
    return [(verdict.limit, verdict.measured, verdict.passed) for verdict in profiles.judge(profile, run)]


def test_limits_are_kept_or_not() -> None:
    samples = [measured(first_answer_ms=wait, tokens_per_second=9.0) for wait in (500, 600, 700)]
    memory = Sample("m", Test("memory"), {"peak_memory": 3e9})
    limits = {"threads": 2, "memory": 2e9, "first_answer_ms": 650, "tokens_per_second": 8}
    assert judged(limits, *samples, memory) == [
        ("threads", 2, True),
        ("memory", 3e9, False),
        ("first_answer_ms", 690, False),  # the 95th percentile, not the median
        ("tokens_per_second", 9, True),
    ]


def test_what_was_not_measured_does_not_pass() -> None:
    """An answer that never came, a machine without a counter."""
    samples = [measured(first_answer_ms=500.0), measured(total_ms=900.0)]
    assert judged({"first_answer_ms": 1000, "joules_per_token": 1}, *samples) == [
        ("first_answer_ms", None, False),
        ("joules_per_token", None, False),
    ]


def test_threads_that_nobody_tells_are_not_within_a_limit() -> None:
    """A server's, a GPU's."""
    run = Benchmark("r", "", {}, {}, {}, subjects=(Subject("m", "server"),), samples=(measured(total_ms=1.0),))
    (verdict,) = profiles.judge(Profile("p", Workload("w", prompt=1), {"threads": 4}), run)
    assert (verdict.measured, verdict.passed) == (None, False)


@pytest.fixture
def own_profiles() -> Iterator[Path]:
    path = store.config_file().with_name("profiles.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink()


def test_profiles_of_ones_own_stand_beside_ours(own_profiles: Path) -> None:
    own_profiles.write_text('[watch]\nprompt = 50\nanswer = 20\nlimits = { memory = "1.5GB", threads = 2 }\n')
    assert [*profiles.profiles()] == ["phone", "car", "laptop", "watch"]
    found = profiles.named("watch")
    assert (found.process_limits.memory, found.process_limits.cpus) == (1_500_000_000, 2)
    with pytest.raises(UsageError) as error:
        profiles.named("wach")
    assert error.value.hint == "did you mean watch?"


def test_a_profile_may_change_a_workload_of_ours(own_profiles: Path) -> None:
    own_profiles.write_text('[watch]\nworkload = "voice-assistant"\nanswer = 20\n')
    found, ours = profiles.named("watch").workload, workloads.known()["voice-assistant"]
    assert found == replace(ours, name="watch", answer=20)


def test_an_answer_is_in_time_if_it_begins_before_the_deadline() -> None:
    """It begins after 300 ms (two tokens of thinking, 100 ms each)."""
    for deadline, expected in ((0.25, 0.0), (0.35, 1.0)):
        model = TimedModel()
        work = replace(TALK, deadline=deadline)
        found = chat.measure(model, "m", work.test, work, 0, len, clock=lambda model=model: model.now)
        assert [sample.values["in_time"] for sample in found] == [expected] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[watch\n", "cannot read"),
        ("watch = 3\n", "watch is not a table"),
        ("[watch]\nprompt = 5\nlimits = { memori = 3 }\n", "there is no limit 'memori'"),
        ('[watch]\nprompt = 5\nlimits = { memory = "much" }\n', "memory 'much' is not a size"),
        ("[watch]\nprompt = 5\nlimits = { threads = -1 }\n", "threads is -1"),
        ('[watch]\nworkload = "chess"\n', "there is no workload 'chess'"),
        ("[watch]\npromt = 5\n", "line 2: \\[watch\\] promt is unknown"),
        (
            '[watch]\n\nprompt = "long"\n',
            "line 3: \\[watch\\] prompt is 'long', it must be a whole number of at least 0",
        ),
        ("[watch]\nprompt = 5\nanswer = 1.5\n", "line 3: .* answer is 1.5, it must be a whole number of at least 2"),
        ('[watch]\nprompt = 5\nthink = "no"\n', "think is 'no', it must be true or false"),
        ('[watch]\nprompt = 5\npause = "2s"\n', "pause is '2s', it must be seconds"),
        ('[watch]\nquestions = "Hello?"\n', "it must be a list of texts"),
        ("[watch]\nprompt = true\n", "prompt is True"),
        ("[watch]\nprompt = 5\nlimits = 5\n", "line 3: .* limits is 5"),
        ("[watch]\nprompt = 5\nlimits = { threads = 1.5 }\n", "line 3: .* threads is 1.5"),
        ("[watch]\nprompt = 5\nlimits = { joules_per_token = nan }\n", "joules_per_token is nan"),
        ("[watch]\nworkload = 3\n", "there is no workload 3"),
        ('[watch]\nworkload = "mlperf-client"\n', "there is no workload 'mlperf-client'"),
        ("[watch]\nprompt = 5\nthink = false\nbudget = 9\n", "a budget with thinking off"),
        ("[watch]\nanswer = 5\n", "line 1: .* has no question"),
        ('[phone]\nprompt = 5\n[watch]\n[watch.limits]\nmemory = "0GB"\n', "line 5: .* memory '0GB' is not a size"),
    ],
)
def test_a_profile_of_another_shape_is_told(own_profiles: Path, text: str, message: str) -> None:
    own_profiles.write_text(text)
    with pytest.raises(ConfigError, match=message):
        profiles.named("watch")


def test_overall_figures_are_mlperf_clients() -> None:
    """Arithmetic mean of first tokens and harmonic mean of rates within a task, geometric means over the five tasks."""
    tasks = [workload.test for workload in workloads.named([workloads.OVERALL])]
    waits, rates = {0: (100.0, 300.0), 1: (800.0, 800.0)}, {0: (20.0, 30.0), 1: (6.0, 6.0)}
    samples = [
        Sample("m", test, {"first_token_ms": waits[number % 2][each], "tokens_per_second": rates[number % 2][each]})
        for number, test in enumerate(tasks)
        for each in (0, 1)
    ]
    run = Benchmark("r", "", {}, {}, {}, subjects=(Subject("m", "x"),), samples=tuple(samples))
    first, speed = (200**3 * 800**2) ** 0.2, (24**3 * 6**2) ** 0.2
    assert tables.suites(run)[1] == ("m", "mlperf-client", tables.seconds(first), tables.number(speed))
    assert tables.suites(replace(run, samples=tuple(samples[2:]))) == []  # a task is missing: nothing overall


def test_extended_tasks_have_no_overall_figure() -> None:
    tasks = [workload.test for workload in workloads.named(["mlperf-client-extended"])]
    samples = tuple(Sample("m", test, {"first_token_ms": 1.0, "tokens_per_second": 1.0}) for test in tasks)
    run = Benchmark("r", "", {}, {}, {}, subjects=(Subject("m", "x"),), samples=samples)
    assert tables.suites(run) == []
