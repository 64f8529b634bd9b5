"""What the server counts of its answers, and what its log says of each."""

import asyncio
import logging

import pytest
from starlette.types import Receive, Scope, Send

from localqwen.chat.messages import Finished, Timing, Usage
from localqwen.serve.deaths import Deaths
from localqwen.serve.http.guard import FINISHED, Access, Guard
from localqwen.serve.http.metrics import Metrics

SPEEDY = Finished("stop", Usage(843, 812, 120, 40), Timing(prompt_per_second=290.04, predicted_per_second=31.0))
#: One token, wholly from the cache: nothing was measured.
SHORT = Finished("length", Usage(10, 9, 1, 0), Timing())


def test_tokens_and_seconds_add_up_and_what_was_not_measured_is_no_time() -> None:
    metrics = Metrics()
    for finished in (
        Finished("stop", Usage(10, 4, 20, 8), Timing(prompt_ms=1500, predicted_ms=2000)),
        Finished("stop", Usage(5, 0, 7, 0), Timing(prompt_ms=500, predicted_ms=250)),
        SHORT,
    ):
        metrics.answered(finished)
    told = [line for line in metrics.text([], Deaths()).splitlines() if not line.startswith("#")]
    assert told == [
        "localqwen_answers_total 3",
        'localqwen_tokens_total{kind="prompt"} 25',
        'localqwen_tokens_total{kind="cached"} 13',
        'localqwen_tokens_total{kind="generated"} 28',
        'localqwen_tokens_total{kind="thinking"} 8',
        'localqwen_seconds_total{phase="prompt"} 2.000000',
        'localqwen_seconds_total{phase="generation"} 2.250000',
    ]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([SPEEDY], "812 cached + 31 new tokens at 290.0/s · 120 generated at 31.0/s"),
        ([SPEEDY, SPEEDY], "812 cached + 31 new tokens at 290.0/s · 240 generated at 31.0/s"),
        ([SHORT], "9 cached + 1 new tokens · 1 generated"),
    ],
)
def test_the_log_says_what_a_request_took_and_no_speed_that_was_not_measured(
    answers: list[Finished], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scope[FINISHED].extend(answers)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def nothing(message: object = None) -> dict[str, str]:
        return {}

    counted: list[object] = []
    guard = Guard(application, Access(), lambda *told: counted.append(told))
    scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": [(b"host", b"localhost")]}
    with caplog.at_level(logging.INFO, "localqwen.serve"):
        asyncio.run(guard(scope, nothing, nothing))
    assert caplog.messages == [f"POST /v1/x 200 · {said}"]
    assert counted == [("/v1/x", 200, answers)]
