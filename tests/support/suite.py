"""What runs when, and which skips are accepted: a pytest plugin for tests/conftest.py.

`--quick` leaves out the files of LONG and the tests marked `slow`. `--allowed-skips FILE` fails the run for a skip that
is not in FILE. With pytest-xdist (`--dist loadgroup`), one worker runs all tests of a file: they share its fixtures.
"""

from pathlib import Path

import pytest
from programs import PROGRAMS, SOURCE_TREE

TESTS = Path(__file__).parents[1]
#: These open real engines, start programs or convert whole models: some seconds of processor time each.
LONG = (
    "bench/test_command.py",
    "bench/test_quality.py",
    "bench/test_tune.py",
    "chat/test_local.py",
    "chat/test_template_fuzz.py",
    "cli/test_loading.py",
    "cli/test_terminal.py",
    "convert/test_activations.py",
    "convert/test_bad_input.py",
    "convert/test_conversion_table.py",
    "convert/test_forecast.py",
    "convert/test_fuzz.py",
    "convert/test_gguf.py",
    "convert/test_gguf_source.py",
    "convert/test_mlx.py",
    "convert/test_options.py",
    "convert/test_quantized.py",
    "engines/test_adapters.py",
    "engines/test_agreement.py",
    "engines/test_contract.py",
    "engines/test_mlx.py",
    "engines/test_selection.py",
    "engines/test_tokenizing.py",
    "engines/test_yarn.py",
    "guards/test_earlier_files.py",
    "machine/test_posix.py",
    "models/test_pull.py",
    "serve/test_bad_input.py",
    "serve/test_clients.py",
    "serve/test_ollama_client.py",
    "serve/test_openapi.py",
    "serve/test_processes.py",
    "serve/test_qwen_agent.py",
    "serve/test_shapes.py",
    "test_packaging.py",
    "tools/test_suite.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what takes long")
    parser.addoption("--allowed-skips", type=Path, metavar="FILE", help="fail for a skip that is not in FILE")
    parser.addoption("--programs-may-be-missing", action="store_true", help="allow skips for want of a program")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
    if config.getoption("--quick"):
        left_out = [item for item in items if is_long(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not is_long(item)]


def is_long(item: pytest.Item) -> bool:
    return item.path in {TESTS / name for name in LONG} or item.get_closest_marker("slow") is not None


def allowed(file: Path) -> tuple[str, ...]:
    """Return the beginnings of accepted reasons: a line is `BEGINNING :: why it is accepted`; # starts a comment."""
    found: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        reason, separator, why = line.partition(" :: ")
        if line.startswith("#") or not line.strip():
            continue
        if not (reason.strip() and separator and why.strip()):
            raise pytest.UsageError(f"{file} needs `BEGINNING OF A REASON :: why`, not {line!r}")
        found.append(reason.strip())
    return tuple(found)


def refused(reports: list[pytest.TestReport], accepted: tuple[str, ...]) -> list[str]:
    """Return a line for each skip whose reason does not begin with one of `accepted`."""
    found = []
    for report in reports:
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(accepted):
            found.append(f"{report.nodeid}: {reason}")
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only where the reports are: in the process that was started, not in its workers."""
    file = session.config.getoption("--allowed-skips")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if file is None or reporter is None or hasattr(session.config, "workerinput"):
        return
    accepted = allowed(file)
    if session.config.getoption("--programs-may-be-missing"):
        accepted += tuple(f"needs {name}:" for name in (*PROGRAMS, SOURCE_TREE))
    lines = refused(reporter.stats.get("skipped", []), accepted)
    for line in lines:
        reporter.write_line(f"skipped, which {file.name} does not allow: {line}", red=True)
    if lines and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
