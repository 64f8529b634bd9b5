"""`localqwen bench` as a user meets it: in processes, with a server, in a browser."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import programs
import psutil
import pytest

from localqwen.bench import history, report
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.cli import main
from localqwen.cli.bench import measure
from localqwen.engines import selection
from localqwen.models import store

TINY = ("--prompt", "8,16", "--generate", "4", "--repeats", "2", "--threads", "1")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["bench", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@contextmanager
def own_profile(text: str) -> Iterator[None]:
    path = store.config_file().with_name("profiles.toml")
    path.write_text(text)
    yield
    path.unlink()


def test_a_run_is_shown_kept_and_found_again(bench: Run) -> None:
    code, out, err = bench("demo", *TINY, "--depth", "0,32", "--batch", "1,2")
    assert code == 0, err
    assert re.findall(r"^demo +((?:prefill|decode).*?)  ", out, re.MULTILINE) == [
        "prefill 8", "prefill 16", "decode 4", "decode 4 x 2",
        "prefill 8 at 32", "prefill 16 at 32", "decode 4 at 32", "decode 4 at 32 x 2",
    ]  # fmt: skip
    found = re.search(r"localqwen bench show (\S+)", err)
    assert found
    code, again, _ = bench("show", found.group(1))
    assert (code, again) == (0, out)
    code, listed, _ = bench("list", "--json")
    newest = json.loads(listed)["runs"][0]
    assert (newest["id"], newest["complete"]) == (found.group(1), True)


def test_the_object_says_what_was_measured_and_on_what(bench: Run) -> None:
    code, out, err = bench("demo", *TINY, "--json", "--no-save")
    found = json.loads(out)
    assert (code, err) == (0, "")
    (subject,) = found["subjects"]
    assert (subject["engine"], subject["threads"], subject["quant"]) == ("llama.cpp", 1, "Q8_0")
    assert re.fullmatch(r"[0-9a-f]{64}", subject["sha256"])
    assert subject["bandwidth"] > 1e8
    assert found["versions"]["llama_cpp_python"]
    memory = next(row for row in found["rows"] if row["test"]["kind"] == "memory")
    assert memory["metrics"]["peak_memory"]["median"] > subject["bytes"]
    decode = next(row for row in found["rows"] if row["test"]["kind"] == "decode")
    assert decode["latency_seconds"]["count"] == 2 * 4
    assert decode["bandwidth_share"] > 0


def test_llama_bench_s_shape_and_markdown_and_csv(bench: Run) -> None:
    bench("demo", *TINY)
    code, out, _ = bench("show", "last", "--json", "--llama-bench")
    assert (code, [(test["n_prompt"], test["n_gen"]) for test in json.loads(out)]) == (0, [(8, 0), (16, 0), (0, 4)])
    assert "| demo | prefill 8 |" in bench("show", "last", "--markdown")[1]
    assert bench("show", "last", "--csv")[1].startswith("run,subject,kind,")


def test_two_models_take_turns_and_are_compared_with_themselves(bench: Run) -> None:
    code, out, err = bench("demo", "demo", *TINY)
    assert code == 0, err
    assert "took turns test by test" in out
    assert re.search(r"^demo #2 +llama.cpp", out, re.MULTILINE)
    code, out, err = bench("compare", "last", "last")
    assert code == 0, err
    assert re.search(r"prefill 8 .* 1\.000 .* (no difference|cannot tell)$", out, re.MULTILINE)  # in peace, in a crowd
    assert not re.search("better|worse", out)
    assert " better" not in out


def test_both_engines_are_measured_side_by_side_and_agree_on_what_they_say(bench: Run, tmp_path: Path) -> None:
    """The same tokens of the same conversation, and nearly the same predictions of 8 and 16 bit."""
    if not selection.installed().get("mlx"):
        pytest.skip("mlx is not installed")
    text = tmp_path / "text.txt"
    text.write_text("What is 17 + 25? The answer is 42. How many e's are in cheese? There are 3.\n")
    asked = ("--workload", "content-generation", "--prompt", "8", "--generate", "2", "--repeats", "1", "--threads", "1")
    code, out, err = bench("demo", "--engine", "llama.cpp,mlx", *asked, "--quality", "--text", str(text), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [(subject["label"], subject["engine"]) for subject in found["subjects"]] == [
        ("demo llama.cpp", "llama.cpp"), ("demo mlx", "mlx"),
    ]  # fmt: skip
    rows = {(row["subject"], row["test"]["kind"], row["test"]["name"]): row["metrics"] for row in found["rows"]}
    prompts = {
        rows[f"demo {engine}", "workload", "content-generation"]["prompt_tokens"]["median"]
        for engine in ("llama.cpp", "mlx")
    }
    assert len(prompts) == 1
    assert rows["demo llama.cpp", "quality", "demo mlx"]["top1"]["median"] > 0.9
    assert rows["demo mlx", "quality", "demo mlx"]["kl_mean"]["median"] < 1e-6


def test_a_person_waits_and_a_profile_judges(bench: Run) -> None:
    code, out, err = bench("demo", "--chat", "--budgets", "8", "--repeats", "1", "--threads", "1")
    assert code == 0, err
    for name in ("not thinking", "thinking", "budget 8"):
        assert f"chat {name}, turn 2" in out
    assert "prefill" not in out
    limits = 'limits = { threads = 1, memory = "4GB", first_answer_ms = 1 }'
    with own_profile(f"[watch]\nprompt = 50\nanswer = 20\nthink = false\n{limits}\n"):
        code, out, err = bench("demo", "--profile", "watch", "--hold", "--repeats", "1")
    assert code == 1, err  # a limit was not kept
    held = (
        r"limited to 1 processor \(affinity(, cpu.max)?\) and 4 GB of memory \((memory.max|RLIMIT_AS)\), as a stand-in"
    )
    assert re.search(held, out.splitlines()[0])
    assert re.search(r"threads +1 +1 +pass", out)
    assert re.search(r"first_answer_ms .*fail", out)


def test_a_narrow_terminal_gets_a_line_per_value(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [("model", "tokens/s", "J/token"), ("a", "12.5", ""), ("b", "7.25", "0.3")]
    wide = measure._columns(lines)
    assert wide.splitlines()[0].split() == ["MODEL", "TOKENS/S", "J/token"]
    monkeypatch.setenv("COLUMNS", "20")
    assert measure._columns(lines) == wide  # a pipe has no width
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert measure._columns(lines).split() == [
        "MODEL", "a", "TOKENS/S", "12.5", "MODEL", "b", "TOKENS/S", "7.25", "J/token", "0.3",
    ]  # fmt: skip


def test_endurance_says_what_is_not_available(bench: Run) -> None:
    code, out, err = bench("demo", "--sustain", "1s", "--repeats", "1", "--threads", "1")
    assert code == 0, err
    (told,) = [line for line in out.splitlines() if line.startswith("temperature: ")]
    assert told.count(": ") == 3
    assert re.search(r"^demo +1\.\d+ s", out, re.MULTILINE)


def test_a_memory_limit_that_is_too_small_is_told(bench: Run) -> None:
    with own_profile('[watch]\nprompt = 50\nlimits = { memory = "1MB" }\n'):
        code, _, err = bench("demo", "--profile", "watch", "--hold", "--repeats", "1")
        assert code == 1
        assert "for these tests, it is limited to 0.00 GB" in err
        code, _, err = bench("demo", "--profile", "watch", "--hold", "--repeats", "1", "--force")
    assert code == 1
    assert re.search("Error: the process cannot get more memory|takes more memory than it is limited to", err), err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "there is no model to measure"),
        (("demo", "--profile", "phon"), 2, "there is no profile 'phon'"),
        (("demo", "--hold"), 2, "--hold needs the limits of a profile"),
        (("demo", "--workload", "chess"), 2, "there is no workload 'chess'"),
        (("demo", "--quality"), 2, "quality is measured against a reference"),
        (("demo", "--prompt", "many"), 2, "--prompt: 'many' is not a list of whole numbers"),
        (("demo", "--sustain", "long"), 2, "--sustain: 'long' is not a length of time"),
        (("demo", "--prompt", "0", "--generate", "0"), 2, "there is nothing to measure"),
        (("demo", "--depth", "100000"), 1, "the tests need a context of 102,144 tokens, demo"),
        (("nothing.gguf",), 1, "there is no file or folder nothing.gguf"),
        (("show", "2001"), 1, "there is no run '2001'"),
        (("compare", "last"), 2, "B is missing"),
        (("--url", "http://127.0.0.1:9/v1", "--chat"), 1, "no server answers at http://127.0.0.1:9/v1"),
        (("--url", "localhost", "--chat"), 2, "is not the address of a server"),
        (("--url", "http://127.0.0.1:9/v1", "--sustain", "1s"), 2, "a server is measured by its answers"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(
    bench: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = len(history.runs()[0])
    found, out, err = bench(*arguments)
    assert (found, out) == (code, "")
    assert f"Error: {message}" in err or (err.startswith("Error: ") and message in err)
    assert "\nhint: " in err
    assert len(history.runs()[0]) == before


def test_a_process_cannot_be_limited_to_processors_that_are_not_there(bench: Run) -> None:
    with own_profile("[server]\nprompt = 50\nlimits = { threads = 4096 }\n"):
        code, _, err = bench("demo", "--profile", "server", "--hold")
    assert code == 1
    assert "a process cannot be limited to 4096 processors here" in err


def test_a_model_does_not_run_on_without_who_asked_for_it() -> None:
    """As when the terminal's own session was killed: the endurance run would heat the phone for its whole hour."""
    command = [sys.executable, "-m", "localqwen", "bench", "demo", "--sustain", "1h", "--threads", "1", "--no-save"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 30
    while not children and time.monotonic() < deadline:
        children = [
            each for each in psutil.Process(process.pid).children() if "localqwen.bench.worker_main" in each.cmdline()
        ]
        time.sleep(0.05)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert (len(gone), alive) == (1, [])


def test_ctrl_c_keeps_what_was_measured(bench: Run) -> None:
    command = [sys.executable, "-m", "localqwen", "bench", "demo", *TINY[:-4], "--repeats", "100000", "--threads", "1"]
    earlier = set(history.folder().glob("*.jsonl"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not _measuring(earlier):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "stopped before its end: what was measured is kept" in out
    assert re.search(r"^demo +decode 4 ", out, re.MULTILINE)
    code, shown, _ = bench("show", "last")
    assert (code, shown) == (0, out)


def _measuring(earlier: set[Path]) -> bool:
    """Whether a new run has gone through all its tests several times."""
    return any(path.read_text().count('"decode"') > 5 for path in {*history.folder().glob("*.jsonl")} - earlier)


class Server(BaseHTTPRequestHandler):
    """A chat server of one model that thinks a word, says two, and notes what it was asked."""

    asked: list[dict[str, Any]]
    usage: dict[str, Any] | None

    def do_GET(self) -> None:
        self._send("application/json", json.dumps({"data": [{"id": "far"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        deltas: list[dict[str, Any]] = [{"reasoning_content": "hm"}, {"content": "a"}, {"content": "b"}]
        chunks: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        if self.usage:
            chunks.append({"choices": [], "usage": self.usage})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._send("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))

    def _send(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked, Server.usage = [], {"prompt_tokens": 9, "completion_tokens": 6}
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def test_a_server_is_measured_in_the_same_schema_and_several_at_once(bench: Run, server: str) -> None:
    arguments = ("--url", server, "--chat", "--budgets", "64", "--concurrency", "1,3", "--repeats", "1")
    code, out, err = bench(*arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [(s["label"], s["engine"], s["url"]) for s in found["subjects"]] == [("far", "server", server)]
    rows = {
        (row["test"]["kind"], row["test"]["name"], row["test"]["batch"], row["test"]["turn"]): row
        for row in found["rows"]
    }
    row = rows["chat", "budget 64", 3, 2]
    assert row["metrics"]["thinking_tokens"]["median"] == 2  # one chunk of three, of six tokens
    assert row["metrics"]["first_answer_ms"]["count"] == 3
    assert rows["throughput", "thinking", 3, 0]["metrics"]["requests_per_second"]["median"] > 0
    asked = [body for body in Server.asked if body["messages"][-1]["content"] != "Hello"]
    assert len(asked) == 3 * 2 * (1 + 3)
    assert {json.dumps(body.get("thinking_budget")) for body in asked} == {"null", "64"}
    assert {body["chat_template_kwargs"]["enable_thinking"] for body in asked} == {True, False}


def test_a_server_that_counts_nothing_is_counted_by_chunks_and_that_is_told(bench: Run, server: str) -> None:
    Server.usage = None
    code, out, err = bench("--url", server, "far", "--workload", "tool-loop", "--repeats", "1")
    assert code == 0, err
    assert "chunks were counted instead" in out
    assert "measured over the network from" in out.splitlines()[0]
    call, result = Server.asked[-1]["messages"][-2:]
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"topic": "part 5"}
    assert result["role"] == "tool"


def test_a_model_that_a_server_does_not_have_is_told(bench: Run, server: str) -> None:
    code, _, err = bench("--url", server, "near", "--chat")
    assert (code, err) == (1, f"Error: {server} has no model 'near'\n\nhint: name one: far\n")


def full_run() -> history.Benchmark:
    """One of everything that a report can show."""
    decode = [Sample("m <b>", Test("decode", generate=3, depth=d), {"tokens_per_second": 20.0 - n}, (0.05, 0.06, 0.05))
              for d in (0, 64) for n in (0, 1)]  # fmt: skip
    prefill = [Sample("m <b>", Test("prefill", prompt=p), {"tokens_per_second": 200.0}) for p in (8, 16)]
    waits = {"first_token_ms": 100.0, "first_answer_ms": 900.0, "total_ms": 2000.0, "tokens_per_second": 9.0,
             "answer_tokens": 10.0, "thinking_tokens": 20.0, "thinking_share": 0.67}  # fmt: skip
    quality = {"kl_mean": 0.01, "kl_p99": 0.1, "top1": 0.95, "perplexity": 9.0, "reference_perplexity": 8.9}
    sustain = {"tokens_per_second": 19.0, "seconds": 60.0, "first_per_second": 20.0, "last_per_second": 18.0,
               "held_share": 0.9, "cool_down_seconds": 0.0}  # fmt: skip
    series = tuple({"seconds": float(n), "tokens_per_second": 20.0, "celsius": 40.0 + n} for n in range(3))
    others = [
        Sample("m <b>", Test("chat", "thinking", turn=1), waits),
        Sample("m <b>", Test("quality", "ref"), quality),
        Sample("m <b>", Test("sustain"), sustain, series=series),
    ]
    machine = {"system": "Linux", "release": "6", "architecture": "x", "chip": "C", "cores": 2, "memory": 8 * 10**9}
    verdict = {"subject": "m <b>", "limit": "memory", "allowed": 1e9, "measured": 2e9, "passed": False}
    return history.Benchmark(
        "20260101-000000-aaaa", "2026-01-01", machine, {"localqwen": "1"}, {}, (Subject("m <b>", "e", bytes=10**9),),
        (*prefill, *decode, *others), held="2 processors", profile="phone", verdicts=(verdict,), complete=True,
    )  # fmt: skip


def test_the_report_shows_its_charts_in_a_browser_and_asks_no_network(tmp_path: Path) -> None:
    """Every image has been decoded, and the page's own list of what it loaded is empty."""
    browser = programs.needed("a browser")
    pytest.importorskip("matplotlib")
    page, *images = report.write([full_run()], tmp_path / "report")
    assert [path.stem for path in images] == [
        "quality",
        "depth",
        "prefill",
        "latency",
        "waiting",
        "thinking",
        "sustain",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in images)
    dumped = in_browser(browser, page, tmp_path)
    assert dumped.count("<figure") == 7
    assert "m &lt;b&gt;" in dumped
    first = re.search(r'<p class="first held">(.*?)</p>', dumped)
    assert first
    assert "limited to 2 processors, as a stand-in" in first.group(1)
    assert 'class="fail"' in dumped
    assert not re.findall(r'(?:src|href)="(?!data:)', dumped)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', dumped)
    assert policy
    assert policy.group(1).startswith("default-src 'none'; img-src data:;")
    # The policy forbids scripts, so a copy without it is asked what it loaded.
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text().replace("http-equiv", "data-off").replace("</body>", f"{_ASK}</body>"))
    told = re.search(r"<title>(.*?)</title>", in_browser(browser, copy, tmp_path))
    assert told
    assert json.loads(told.group(1)) == {"asked": [], "widths": [1036] * 7}


_ASK = """<script>document.title = JSON.stringify({
    asked: performance.getEntriesByType("resource").map(each => each.name).filter(name => !name.startsWith("data:")),
    widths: [...document.images].map(image => image.complete ? image.naturalWidth : 0)})</script>"""


def in_browser(browser: str, page: Path, folder: Path) -> str:
    """The page's document after it has loaded."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'browser'}"]
    return subprocess.run(
        [browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout
