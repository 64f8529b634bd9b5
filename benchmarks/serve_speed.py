r"""Measure `localqwen serve` against llama.cpp's own servers, over HTTP, on one file.

    python benchmarks/random_checkpoint.py 0.6b build/thinks --real-vocabulary --always-thinking
    localqwen convert build/thinks --quant q4_k_m --out build/thinks-q4_k_m.gguf
    python benchmarks/serve_speed.py build/thinks-q4_k_m.gguf --llama-server path/to/llama-server \
        --llama-cpp-python path/to/python

The last is a Python with `llama-cpp-python[server]`, best in a separate environment; on a virtual machine that
announces AMX without having it, compile it with CFLAGS and CXXFLAGS "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16".
That server answers one request after another, so its turns are not measured.

Servers take turns within a round, each alone on the machine, with the same threads, slots and context. The script
divides the completion tokens that a server reports by the time that its client waited:

short              tokens per second of one client: a question of 50 tokens, an answer of 64
one, four, eight   the same for that many clients together: questions of 300 tokens, answers of 128, all different
beside three       seconds until a short question gets an answer of one token while three long answers stream (512
                   tokens to questions of 300): the median of thirteen questions, one after the other
second turn        seconds until the second answer's first token; the first answer had 400 tokens of thinking and 400 of
                   text, and ended five seconds earlier, the time in which a user reads it
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

SLOTS, CONTEXT = 8, 2048
#: Words of the question and tokens of its answer.
SHORT, USUAL = (40, 64), (280, 128)
THINKING = ANSWER = 400
LONG = 512
WORDS = ("harbour", "ice", "tap", "bus", "market", "spring", "city", "alarm", "train", "proof", "letter", "car", "rice")
Command = Callable[[int], list[str]]


def ours(file: Path, threads: int) -> Command:
    """Return the command that starts localqwen's server."""
    flags = ["--threads", str(threads), "--parallel", str(SLOTS), "--ctx", str(CONTEXT)]
    return lambda port: [sys.executable, "-m", "localqwen", "serve", str(file), *flags, "--port", str(port)]


def llama_server(binary: str, file: Path, threads: int) -> Command:
    """Return the command that starts llama-server."""
    flags = ["-t", str(threads), "-np", str(SLOTS), "-c", str(SLOTS * CONTEXT)]
    return lambda port: [binary, "-m", str(file), *flags, "--port", str(port), "--host", "127.0.0.1"]


def llama_cpp_python(python: str, file: Path, threads: int) -> Command:
    """Return the command that starts llama_cpp.server, without its default of ending an answer when the next request
    arrives."""
    flags = ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--n_ctx", str(CONTEXT)]
    flags += ["--interrupt_requests", "false"]
    return lambda port: [python, "-m", "llama_cpp.server", "--model", str(file), *flags, "--port", str(port)]


@contextmanager
def serving(command: Command, log: Path) -> Iterator[str]:
    """Run a server, and yield its address when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as out:
        process = subprocess.Popen(command(port), stdout=out, stderr=out, env=os.environ)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(600):
            try:
                ask(url, "warm up", 4)
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"a server ended, see {log}") from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # llama_cpp.server waits for the end of an answer whose client has gone
            process.kill()
            process.wait()


@cache
def model_of(url: str) -> str:
    """Return the name of the model that the server serves."""
    with urllib.request.urlopen(f"{url}/models", timeout=2) as answer:
        return str(json.load(answer)["data"][0]["id"])


def ask(url: str, content: str | list[dict[str, str]], tokens: int, **fields: Any) -> dict[str, Any]:
    """Send one chat request and return the response."""
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    body = {"model": model_of(url), "messages": messages, "max_tokens": tokens, "temperature": 1, "seed": 7, **fields}
    data = json.dumps({key: value for key, value in body.items() if value is not None}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return dict(json.load(answer))


def question(number: int, words: int = SHORT[0]) -> str:
    """Return a question of `words` words; no two begin the same, so that no cache holds a prefix."""
    return f"{number} " + " ".join(WORDS[(number * 7 + place * (number + 3)) % len(WORDS)] for place in range(words))


def throughput(url: str, clients: int, first: int, size: tuple[int, int]) -> float:
    """Return tokens per second of all clients together."""
    words, tokens = size
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        numbers = range(first, first + clients)
        answers = list(pool.map(lambda number: ask(url, question(number, words), tokens), numbers))
    seconds = time.perf_counter() - began
    return sum(answer["usage"]["completion_tokens"] for answer in answers) / seconds


def beside_three(url: str) -> float:
    """Return the median seconds of a short answer while three long answers stream."""
    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(ask, url, question(100 + number, USUAL[0]), LONG) for number in range(3)]
        time.sleep(6)  # time for the prefill of the questions
        waits = [waited(url, f"{word}?") for word in WORDS]
        if any(one.done() for one in busy):
            raise SystemExit("a long answer ended too early: the short questions were not beside three")
        for one in busy:
            one.result()
    return statistics.median(waits)


def waited(url: str, question: str) -> float:
    """Return the seconds of one short answer."""
    began = time.perf_counter()
    ask(url, question, 1)
    seconds = time.perf_counter() - began
    time.sleep(0.97)  # so that the questions arrive at different moments of a step
    return seconds


def second_turn(url: str) -> float:
    """Return the seconds to the first token; the text of the first answer is part of the history, as with every
    client."""
    first = [{"role": "user", "content": question(200)}]
    answer = ask(url, first, THINKING + ANSWER, reasoning_budget_tokens=THINKING)["choices"][0]["message"]
    time.sleep(5)
    said = {"role": "assistant", "content": answer["content"] or ""}
    if not said["content"]:
        raise SystemExit("the first answer has no text behind its thinking: the second turn would flatter")
    began = time.perf_counter()
    ask(url, [*first, said, {"role": "user", "content": "And then?"}], 1)
    return time.perf_counter() - began


def measure(url: str, turns: bool) -> dict[str, float]:
    """Return the figures of one server in one round."""
    found = {
        "short": statistics.median(throughput(url, 1, 10 + number, SHORT) for number in range(3)),
        "one": statistics.median(throughput(url, 1, 20 + number, USUAL) for number in range(3)),
        "four": throughput(url, 4, 30, USUAL),
        "eight": throughput(url, 8, 40, USUAL),
    }
    if turns:
        found |= {"beside three": beside_three(url), "second turn": second_turn(url)}
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-server")
    parser.add_argument("--llama-cpp-python", metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    contestants = {"localqwen serve": ours(arguments.file, arguments.threads)}
    if arguments.llama_server:
        contestants["llama-server"] = llama_server(arguments.llama_server, arguments.file, arguments.threads)
    if arguments.llama_cpp_python:
        contestants["llama_cpp.server"] = llama_cpp_python(
            arguments.llama_cpp_python, arguments.file, arguments.threads
        )
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for number in range(arguments.rounds):
        for name, command in contestants.items():
            with serving(command, Path(f"{arguments.file}.{name.replace(' ', '-')}.log")) as url:
                rounds[name].append(measure(url, turns=name != "llama_cpp.server"))
            sys.stderr.write(f"round {number + 1}: {name} {rounds[name][-1]}\n")
    report(rounds)


def report(rounds: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians and the ratios."""
    names = list(rounds["localqwen serve"][0])
    print("| | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
    for server, measured in rounds.items():
        medians = [statistics.median(one[name] for one in measured) if name in measured[0] else None for name in names]
        print(f"| {server} | " + " | ".join("" if value is None else f"{value:.2f}" for value in medians) + " |")
    for server in list(rounds)[1:]:
        pairs = list(zip(rounds["localqwen serve"], rounds[server], strict=True))
        ratios = [statistics.median(ours[n] / theirs[n] for ours, theirs in pairs) for n in names if n in pairs[0][1]]
        print(f"| ours / {server} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |")


if __name__ == "__main__":
    main()
