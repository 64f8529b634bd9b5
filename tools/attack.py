"""Attack a server with hostile models, files, questions, headers and signals, while a good client asks a good model.

    python tools/attack.py --rounds 2000 --seed 1 [--seconds 3600] [--workers 2] [--report FILE]
    python tools/attack.py --kills 200 --seed 1
    python tools/attack.py --rounds 1 --first 17 --seed 1 --only 'model: rope'      # repeat one round
    python tools/attack.py --list

The program starts `localqwen serve demo` itself, on a free port, in a temporary folder. It ends with 1 if anything was
not as expected: a status, a good answer that is missing or another one, a server that stands still or does not end with
0 on SIGTERM, a process, lock or temporary file that is left. Every problem is printed with the flags that repeat it.
Linux and macOS.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from attacks import gguf_file, report  # noqa: E402
from attacks.kills import Kills  # noqa: E402
from attacks.kinds import KINDS  # noqa: E402
from attacks.rounds import Play, planned  # noqa: E402
from attacks.server import Server  # noqa: E402
from attacks.target import Target  # noqa: E402
from attacks.watching import Watch  # noqa: E402

#: Flags of the server: what hangs shall not take ten minutes, and a hostile model shall not stay long.
_SERVE = ("--keep-alive=5s", "--load-timeout=20s", "--prompt-timeout=5s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, print the report, and return 1 if there was a problem."""
    given = _parser().parse_args(arguments)
    if given.list:
        print("\n".join(KINDS))
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the server ends with this program
    home = Path(tempfile.mkdtemp(prefix="localqwen-attack-")).resolve()
    server = Server(home, [*_SERVE, *given.serve])
    try:
        server.start()
        good = _good_file(home)
        target = Target(server, gguf_file.read(good), good.read_bytes(), given.patience)
        lines, problems = _kill(target, given) if given.kills else _attack(target, given)
        _print([*lines, *(f"* {problem}" for problem in problems)], given.report)
        return 1 if problems else 0
    finally:
        server.kill()
        if not given.keep:
            shutil.rmtree(home)


def _good_file(home: Path) -> Path:
    """Return the demo as the server has converted it."""
    return next((home / "cache" / "converted").glob("demo-*.gguf"))


def _attack(target: Target, given: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Play the rounds; return the lines of the report and the problems."""
    began = time.monotonic()
    target.watch = Watch(target.server.address)
    play = Play(target, _say, given.workers, began + given.seconds, given.restart)
    results = play.run(list(planned(given.seed, given.first, given.rounds, given.only)))
    good, health = target.watch.end()
    end, problems = ended(target.server)
    lines = [*report.lines(results, good, health, time.monotonic() - began), end]
    return lines, results.problems + good.problems + health.problems + problems


def _kill(target: Target, given: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Kill; return the lines of the report and the problems."""
    kills = Kills(target, given.seed, _say)
    kills.run(given.kills)
    end, problems = ended(target.server)
    return [*kills.lines(), end], kills.problems + problems


def ended(server: Server) -> tuple[str, list[str]]:
    """End the server as a service manager does; return how it ended, and what is wrong with that."""
    tracebacks = server.tracebacks()
    if not server.alive:
        return "the server had died", ["the server had died"]
    code, seconds = server.end()
    left = server.left_over()
    line = (
        f"SIGTERM: exit code {code} after {seconds:.1f} s, {len(left)} things left, {tracebacks} tracebacks in the log"
    )
    wrong = [f"exit code {code}"] if code != 0 else []
    wrong += [f"{tracebacks} tracebacks in the log"] if tracebacks else []
    return line, wrong + [f"left: {each}" for each in left]


def _say(problem: str) -> None:
    print(f"! {problem}", file=sys.stderr, flush=True)


def _print(lines: Sequence[str], file: Path | None) -> None:
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if file:
        file.write_text(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill N times instead of attacking")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin with round N of the seed")
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help="the kinds that begin with KIND")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after that time")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="attack N times at once")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a response may take")
    parser.add_argument(
        "--serve", action="append", default=[], metavar="FLAG", help="a flag of serve: --serve=--ctx=99"
    )
    parser.add_argument("--restart", action="store_true", help="start a server that died again, and go on")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report into this file too")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the server's home and log")
    parser.add_argument("--list", action="store_true", help="list the kinds of attack")
    return parser


if __name__ == "__main__":
    sys.exit(main())
