"""How a process ended, in words."""

import signal

import pytest

from localqwen.model_process.death import Death


@pytest.mark.parametrize(
    ("death", "cause", "text"),
    [
        (Death(3), "exit code 3", "ended by exit code 3"),
        (Death(-signal.SIGABRT, last_words=("a", "/tmp/x/ops.cpp:41: it failed")), "SIGABRT",
         "ended by SIGABRT (ops.cpp:41: it failed)"),
        (Death(-signal.SIGSEGV), "SIGSEGV", "ended by SIGSEGV"),
        (Death(-60), "signal 60", "ended by signal 60"),
        (Death(-signal.SIGKILL), "SIGKILL",
         "ended by SIGKILL, as the system does with a process that needs more memory than there is"),
        (Death(-signal.SIGKILL, reason="was ended because it hung"), "was ended because it hung",
         "was ended because it hung"),
        (Death(1, last_words=("KeyError: 'a/b'",)), "exit code 1", "ended by exit code 1 (KeyError: 'a/b')"),
    ],
)  # fmt: skip
def test_a_death_in_words(death: Death, cause: str, text: str) -> None:
    assert (death.cause, death.text) == (cause, text)
