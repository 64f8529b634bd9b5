"""tools/attack.py: its hostile models, questions and rounds can be made, repeated, and judged."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from checkpoints import Shape, make_checkpoint

import convert
from localqwen.formats import model_header

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from attacks import framing, gguf_file, models, questions, rounds  # noqa: E402
from attacks.client import CLOSED, SILENT, Response, Seen, expect  # noqa: E402
from attacks.kinds import KINDS  # noqa: E402


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small intact GGUF file."""
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder / "checkpoint", Shape(64, 64, 1, 1, 1, 64))
    convert.convert(folder / "checkpoint", folder / "good.gguf", quant="bf16", threads=1)
    return folder / "good.gguf"


def test_a_model_that_is_not_changed_is_written_as_it_was_read(path: Path, tmp_path: Path) -> None:
    good = gguf_file.read(path)
    (tmp_path / "again.gguf").write_bytes(good.written())
    assert gguf_file.read(tmp_path / "again.gguf") == good


def test_one_value_is_changed_and_no_other(path: Path, tmp_path: Path) -> None:
    good = gguf_file.read(path)
    changed = good.with_value(".context_length", gguf_file.scalar(gguf_file.UINT32, 77))
    (tmp_path / "changed.gguf").write_bytes(changed.written())
    assert model_header.read(tmp_path / "changed.gguf").context_length == 77
    assert {key for key, value in changed.values.items() if value != good.values[key]} == {"qwen3.context_length"}
    assert changed.tensors == good.tensors


@pytest.mark.parametrize("kind", models.MODELS)
def test_a_hostile_model_is_made_again_by_its_seed_and_is_not_the_good_one(kind: str, path: Path) -> None:
    good, make = gguf_file.read(path), models.MODELS[kind]
    made = [make(Random(seed), good) for seed in (0, 1, 2, 0)]
    assert made[0] == made[3]
    assert {*made[:3]} - {good.written()}


@pytest.mark.parametrize("kind", questions.QUESTIONS)
def test_a_hostile_question_is_made_again_by_its_seed(kind: str) -> None:
    make = questions.QUESTIONS[kind]
    assert make(Random(3), "demo") == make(Random(3), "demo")
    assert make(Random(3), "demo")[0].startswith(("/v1/", "/api/"))


@pytest.mark.parametrize("kind", framing.REQUESTS)
def test_hostile_bytes_are_made_again_by_their_seed(kind: str) -> None:
    made = [framing.REQUESTS[kind](Random(seed)) for seed in (0, 1, 2, 0)]
    assert made[0] == made[3]
    assert len({*made}) > 1


def test_a_round_is_repeated_by_the_flags_that_are_printed_with_its_problem() -> None:
    played = list(rounds.planned(7, 0, 60, []))[41]
    again = next(rounds.planned(7, 41, 1, [played.kind]))
    assert again == played
    assert again.generator().random() == played.generator().random()
    assert played.problems([Seen(200), Seen(500, "bad"), Seen(500, "worse")]) == [
        f"{played.kind}: bad (and 1 more)\n    --seed 7 --first 41 --rounds 1 --only {played.kind!r}"
    ]


def test_all_kinds_of_attack_are_played() -> None:
    assert {played.kind for played in rounds.planned(1, 0, 2000, [])} == {*KINDS}


NAMED = b'{"error": {"message": "hostile-1 died of SIGABRT"}}'


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (Response(200, b"{}"), ""),
        (Response(200, b"{", broken=True), "broke off"),
        (Response(418), "418 after 0.0 s"),
        (Response(CLOSED), "closed after"),
        (Response(SILENT, seconds=60), "silent after 60.0 s"),
        (Response(500, NAMED), ""),
        (Response(500, b'{"error": "a model died"}'), "does not name hostile-1"),
        (Response(500, b"hostile-1: Internal Server Error"), "does not name hostile-1"),
    ],
)
def test_a_response_is_judged_by_status_wholeness_and_the_name_in_its_error(response: Response, said: str) -> None:
    problem = expect(response, (200, 500), naming="hostile-1").problem
    assert (said in problem) if said else not problem


@pytest.mark.slow
def test_thirty_attacks_hurt_nobody_else() -> None:
    """The good client gets every answer, the server ends with 0, and nothing of it is left."""
    command = [sys.executable, str(TOOLS / "attack.py"), "--rounds", "30", "--seed", "13"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("30 rounds in ")
    assert "SIGTERM: exit code 0 after " in done.stdout
    assert " 0 things left, 0 tracebacks in the log" in done.stdout
