"""How well the tests see a change: changes one thing in a function, runs the tests, and counts the changes they notice.

    .venv/bin/python tools/mutate.py localqwen/chat convert --limit 30

Each change (a mutant, see mutants.py) is made in a copy of the repository, never in the tree itself. The seed chooses
them, at most one per function, the modules in turn. A module's tests are those of its package, the files that name it
first; those marked `slow` are not run. A mutant with which the tests do not end is noticed too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from mutants import Mutant, mutants, mutated

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".git", ".venv", "dist", "build", "__pycache__", ".*_cache", ".hypothesis")


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    outcome: str  # noticed, survived or endless
    seconds: float


def chosen(modules: Sequence[Path], limit: int, seed: int) -> list[Mutant]:
    """Return at most one mutant per function and `limit` in all, from the modules in turn.

    A function that returns nothing is noticed too easily: that is chosen only where nothing else can be changed.
    """
    chance, queues = random.Random(seed), []
    for module in modules:
        one_each = []
        for path in sorted(module.rglob("*.py")) if module.is_dir() else [module]:
            for several in mutants(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()).values():
                kinds = sorted({mutant.kind for mutant in several})
                kind = chance.choice([kind for kind in kinds if kind != "returned value"] or kinds)
                one_each.append(chance.choice([mutant for mutant in several if mutant.kind == kind]))
        chance.shuffle(one_each)
        queues.append(one_each)
    in_turn = [queue[place] for place in range(max(map(len, queues))) for queue in queues if place < len(queue)]
    return in_turn[:limit]


def package(file: str) -> str:
    """Return the folder of `tests/` that belongs to a file: `chat` for localqwen/chat/stop.py, else `convert`."""
    parts = Path(file).parts
    return parts[1] if parts[0] == "localqwen" and len(parts) > 2 else parts[0]


def tests_of(file: str) -> list[Path]:
    """Return the test files of its package, the nearest first: named like it, then those that name it, then others."""
    stem = Path(file).stem

    def distance(path: Path) -> tuple[bool, bool, int, str]:
        text = path.read_text(encoding="utf-8")
        return path.stem != f"test_{stem}", stem not in text, path.stat().st_size, path.name

    found = sorted((ROOT / "tests" / package(file)).rglob("test_*.py"), key=distance)
    if not found:
        raise SystemExit(f"Error: no tests in tests/{package(file)}\n\nhint: name them with --tests")
    return [path.relative_to(ROOT) for path in found]


def run_tests(folder: Path, tests: Sequence[Path], limit: float) -> tuple[str, float, str]:
    """Run until the first failure, in a session of its own; return the outcome, seconds and pytest's last words.

    Raise SystemExit where pytest cannot begin.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *map(str, tests)]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "endless", time.monotonic() - started, ""
    if process.returncode in (4, 5):  # wrong usage, no tests
        raise SystemExit(f"Error: pytest cannot run {' '.join(map(str, tests))}:\n{output[-2000:]}")
    return "noticed" if process.returncode else "survived", time.monotonic() - started, output[-2000:]


@contextmanager
def copies_of_the_tree(count: int) -> Iterator[SimpleQueue[Path]]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as top:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(count):
            copies.put(shutil.copytree(ROOT, Path(top, str(number)), ignore=shutil.ignore_patterns(*LEFT_OUT)))
        yield copies


def judge(copies: SimpleQueue[Path], mutant: Mutant, tests: Sequence[Path], limit: float) -> Result:
    folder = copies.get()
    path = folder / mutant.file
    original = path.read_bytes()
    try:
        write(path, mutated(original.decode(), mutant).encode())
        outcome, seconds, _ = run_tests(folder, tests, limit)
        return Result(mutant, outcome, seconds)
    finally:
        write(path, original)
        copies.put(folder)


def write(path: Path, content: bytes) -> None:
    """Compiled code is told from old by its time in seconds and its size: it goes, or the last mutant would be run."""
    path.write_bytes(content)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def limits(copies: SimpleQueue[Path], tests: dict[str, list[Path]]) -> dict[str, float]:
    """Return the seconds that each package's mutants get. Raise SystemExit where the tests fail without a change."""
    found = {}
    folder = copies.get()
    for name, files in tests.items():
        outcome, seconds, output = run_tests(folder, files, 3600)
        if outcome != "survived":
            raise SystemExit(f"Error: the tests of {name} fail without a change:\n{output}\n\nhint: make test")
        found[name] = 60 + 3 * seconds
        say(f"{name}: {seconds:.0f} s without a change")
    copies.put(folder)
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def told(result: Result) -> Result:
    mutant = result.mutant
    say(f"{result.outcome:8} {result.seconds:5.0f} s  {mutant.file}:{mutant.line} {mutant.function}: {mutant.change}")
    return result


def summary(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Return what each package's tests noticed; an endless run counts as noticed."""
    found: dict[str, dict[str, int]] = {}
    for result in results:
        for name in (package(result.mutant.file), "all"):
            counts = found.setdefault(name, {"mutants": 0, "noticed": 0})
            counts["mutants"] += 1
            counts["noticed"] += result.outcome != "survived"
    return {name: found[name] for name in sorted(found, key=lambda name: (name == "all", name))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", type=Path, metavar="MODULE", help="a folder or file of the repository")
    parser.add_argument("--tests", nargs="+", type=Path, metavar="PATH", help="run these instead of the package's own")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="mutants in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed chooses other mutants")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once")
    parser.add_argument("--json", action="store_true", help="print each mutant and the counts as JSON")
    options = parser.parse_args()
    picked = chosen([(ROOT / module).resolve() for module in options.modules], options.limit, options.seed)
    files = {mutant.file: options.tests or tests_of(mutant.file) for mutant in picked}
    with copies_of_the_tree(options.jobs) as copies, ThreadPoolExecutor(options.jobs) as pool:
        seconds = limits(copies, {package(file): tests for file, tests in files.items()})
        judged = [pool.submit(judge, copies, each, files[each.file], seconds[package(each.file)]) for each in picked]
        results = [told(future.result()) for future in judged]
    scores = summary(results)
    if options.json:
        print(json.dumps({"seed": options.seed, "scores": scores, "mutants": [asdict(result) for result in results]}))
        return
    for name, counts in scores.items():
        print(f"{name:10} {counts['noticed']:3} of {counts['mutants']:3}  {counts['noticed'] / counts['mutants']:.0%}")


if __name__ == "__main__":
    main()
