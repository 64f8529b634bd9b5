"""What can be named: the entries of models.toml against the facts, and what every kind of name means."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import localqwen
from localqwen import Message, Overrides, Request
from localqwen.errors import (
    ConfigError,
    HubError,
    LocalqwenError,
    ModelNotFound,
    NotEnoughMemory,
    StorageError,
    UsageError,
)
from localqwen.machine import Machine
from localqwen.models import catalogue, converted, fit, names, pull, recommend, registry
from localqwen.models.listing import Listing, RemoteFile
from localqwen.models.names import LocalPath, Named, Repository

ROOT = Path(__file__).parents[2]
MACHINE = Machine("Linux", "x86_64", "a chip", 4, 16 * 10**9, 8 * 10**9)
#: Collected from the official repositories; every hybrid also with the sizes and digests of its published files.
FACTS: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "vectors" / "models.json").read_text())
HYBRIDS = {name: facts for name, facts in FACTS.items() if "files" in facts}


def test_every_official_model_has_an_entry() -> None:
    assert len(FACTS) == 20
    assert set(registry.models()) == {*FACTS, "demo"}


@pytest.mark.parametrize("name", FACTS)
def test_an_entry_says_what_the_facts_say(name: str) -> None:
    model, facts = registry.models()[name], FACTS[name]
    assert model.weights is not None
    assert model.weights.repo == facts["repo"]
    for key in ("parameters", "active", "layers", "kv_heads", "head_dim", "longest", "native"):
        assert key not in facts or getattr(model, key) == facts[key], key
    kind = "never" if "-base" in name or "-instruct-" in name else "always" if "-thinking-" in name else "switch"
    assert model.thinking == kind


@pytest.mark.parametrize("name", HYBRIDS)
def test_sizes_and_digests_are_those_of_the_published_files(name: str) -> None:
    model, facts = registry.models()[name], HYBRIDS[name]
    assert set(model.gguf) == set(facts["files"])
    for quant, file in facts["files"].items():
        assert (model.gguf[quant].bytes, model.gguf[quant].sha256) == (file["bytes"], file.get("sha256", ""))
    for quant, size in facts["made"].items():
        assert quant in model.gguf or model.made[quant] == size
    assert model.kv_elements_per_token * 2 == facts["kv_bytes_per_token"]


def test_list_all_tells_the_sizes_of_the_facts() -> None:
    rows = {(row.name, row.quant): row for row in catalogue.rows(MACHINE)}
    assert {name for name, _ in rows} >= set(FACTS)
    for name, facts in HYBRIDS.items():
        default = registry.models()[name].default
        for quant, file in facts["files"].items():
            row = rows[name if quant == default else f"{name}-{quant.lower()}", quant]
            assert (row.bytes, row.download_bytes, row.official) == (file["bytes"], file["bytes"], True)
    made = rows["qwen3:0.6b-q4_k_m", "Q4_K_M"]
    assert (made.bytes, made.download_bytes, made.official) == (396_704_416, 1_503_300_328, False)


def test_what_can_be_converted_is_what_the_converter_writes() -> None:
    writes = {name.upper() for name in converted.converter().QUANTIZATIONS}
    made = {quant for model in registry.models().values() for quant in model.made}
    assert made <= writes


@pytest.mark.parametrize(
    ("typed", "name", "quant"),
    [
        ("qwen3:4b", "qwen3:4b", "Q4_K_M"),
        ("QWEN3:4B", "qwen3:4b", "Q4_K_M"),
        ("qwen3:0.6b", "qwen3:0.6b", "Q8_0"),
        ("qwen3:4b-q8_0", "qwen3:4b", "Q8_0"),
        ("qwen3:4b-q4_K_M", "qwen3:4b", "Q4_K_M"),
        ("qwen3:4b-Q4_k_m", "qwen3:4b", "Q4_K_M"),
        ("qwen3:4b-4bit", "qwen3:4b", "4bit"),
        ("qwen3:4b-instruct-2507", "qwen3:4b-instruct-2507", "Q4_K_M"),
        ("qwen3:4b-thinking-2507-q8_0", "qwen3:4b-thinking-2507", "Q8_0"),
        ("qwen3:8b-base", "qwen3:8b-base", "Q4_K_M"),
        ("qwen3:8b-base-bf16", "qwen3:8b-base", "BF16"),
        ("qwen3:30b", "qwen3:30b-a3b", "Q4_K_M"),
        ("qwen3:30b-q8_0", "qwen3:30b-a3b", "Q8_0"),
        ("qwen3:30b-a3b", "qwen3:30b-a3b", "Q4_K_M"),
        ("qwen3:235b-thinking-2507", "qwen3:235b-a22b-thinking-2507", "Q4_K_M"),
        ("demo", "demo", ""),
    ],
)
def test_a_name_means_an_entry_and_a_quantization(typed: str, name: str, quant: str) -> None:
    reference = names.parse(typed)
    assert isinstance(reference, Named)
    assert (reference.model.name, reference.quant) == (name, quant)
    assert names.parse(reference.text) == reference  # the short form means the same


@pytest.mark.parametrize(
    ("typed", "source", "repo", "quant"),
    [
        ("hf:owner/Name.v2-GGUF", "hf", "owner/Name.v2-GGUF", ""),
        ("hf:owner/name:q4_k_m", "hf", "owner/name", "Q4_K_M"),
        ("HF:owner/name:Q8_0", "hf", "owner/name", "Q8_0"),
        ("ms:Qwen/Qwen3-4B-GGUF:q5_0", "modelscope", "Qwen/Qwen3-4B-GGUF", "Q5_0"),
    ],
)
def test_a_repository_of_a_hub_can_be_named(typed: str, source: str, repo: str, quant: str) -> None:
    reference = names.parse(typed)
    assert reference == Repository(source, repo, quant)  # type: ignore[arg-type]
    assert names.parse(reference.text) == reference


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for typed in ("mine", "x.gguf", "./qwen3", "/a/b", "~/c"):
        assert names.parse(typed) == LocalPath(Path(typed).expanduser())


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ("dmeo", "there is no model 'dmeo'", "did you mean demo?"),
        ("qwen:4b", "there is no model 'qwen:4b'", "did you mean qwen3:4b?"),
        ("gemma", "there is no model 'gemma'", "models by name: demo, qwen3:0.6b"),
        ("qwen3:7b", "there is no qwen3:7b", "did you mean qwen3:1.7b? qwen3: comes as 0.6b, 1.7b, 4b"),
        ("qwen3:4b-instruct", "there is no qwen3:4b-instruct", "did you mean qwen3:4b-instruct-2507?"),
        ("qwen3:32b-base", "there is no qwen3:32b-base", "comes as 0.6b"),
        ("qwen3:4b-q4_k", "there is no quantization 'q4_k' of qwen3:4b", "did you mean qwen3:4b-q4_k_m?"),
        ("qwen3:4b-q3_k_m", "there is no quantization 'q3_k_m' of qwen3:4b", "q4_0, q4_k_m, q5_0, q5_k_m, q6_k, q8_0"),
        ("qwen3:4b-awq", "qwen3:4b as AWQ is Qwen/Qwen3-4B-AWQ, for other programs", "localqwen pull qwen3:4b"),
        ("demo-q8_0", "there is no quantization 'q8_0' of demo", "it comes in one form"),
    ],
)
def test_an_unknown_name_gets_did_you_mean_and_what_there_is(typed: str, message: str, hint: str) -> None:
    with pytest.raises(ModelNotFound) as error:
        names.parse(typed)
    assert error.value.message == message
    assert hint in error.value.hint


@pytest.mark.parametrize("typed", ["hf:", "hf:owner", "hf:a/b/c", "ms:../x/y", "hf:a b/c"])
def test_a_malformed_repository_is_a_wrong_use(typed: str) -> None:
    with pytest.raises(UsageError, match="is not a repository"):
        names.parse(typed)


@pytest.mark.parametrize(
    ("gigabytes", "name", "why"),
    [
        (64, "qwen3:8b", "its makers advise"),
        (8, "qwen3:8b", "its makers advise"),
        (5, "qwen3:4b", "the largest that fits 5.0 GB"),
        (3, "qwen3:1.7b", "the largest that fits"),
        (0.5, "qwen3:0.6b", "the smallest"),
    ],
)
def test_the_family_alone_means_the_advised_size_or_the_largest_that_fits(
    gigabytes: float, name: str, why: str
) -> None:
    model, reason = fit.preferred("qwen3", replace(MACHINE, memory=int(gigabytes * 1e9)))
    assert model.name == name
    assert why in reason


def test_the_engine_and_quant_flags_choose_among_the_files() -> None:
    chosen = pull.wanted(names.parse("qwen3:4b"), engine="mlx")
    assert isinstance(chosen, Named)
    assert (chosen.quant, chosen.mlx) == ("4bit", True)
    assert pull.wanted(names.parse("qwen3:4b"), quant="8BIT") == names.parse("qwen3:4b-8bit")
    assert pull.wanted(names.parse("qwen3:4b"), engine="gguf", quant="q6_k") == names.parse("qwen3:4b-q6_k")
    assert pull.wanted(names.parse("hf:a/b"), quant="q6_k") == Repository("hf", "a/b", "Q6_K")
    for wrong in ({"engine": "onnx"}, {"engine": "gguf", "quant": "4bit"}, {"engine": "mlx", "quant": "q8_0"}):
        with pytest.raises(LocalqwenError):
            pull.wanted(names.parse("qwen3:4b"), **wrong)
    with pytest.raises(ModelNotFound):
        pull.wanted(names.parse("qwen3:4b-base"), engine="mlx")  # no such files are published


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes a user's own models.toml."""
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))

    def write(text: str) -> None:
        (tmp_path / "models.toml").write_text(text, encoding="utf-8")
        registry.models.cache_clear()

    yield write
    registry.models.cache_clear()


def test_a_users_own_entries_are_laid_over_ours(overlay: Callable[[str], None]) -> None:
    overlay(
        '["mine:7b"]\nlike = "qwen3:8b"\ndescription = "tuned"\nthinking = "switch"\nlicence = "MIT"\n'
        'default = "Q6_K"\nweights = { repo = "me/mine", bytes = 16_000_000_000 }\n'
        '["qwen3:4b"]\ndescription = "my own 4b"\nthinking = "never"\nlicence = "MIT"\n'
    )
    mine = names.parse("mine:7b-q4_0")
    assert isinstance(mine, Named)
    assert (mine.model.layers, mine.model.kv_heads, mine.quant) == (36, 8, "Q4_0")
    assert mine.model.download_bytes("Q4_0") == 16_000_000_000
    assert registry.models()["qwen3:4b"].thinking == "never"
    assert registry.find("qwen3:8b") is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "is not valid TOML"),
        ("a = 1", "stands outside an entry"),
        ('["x:1"]\nthinking = "maybe"\ndescription = ""\nlicence = ""', "has thinking 'maybe'"),
        ('["x:1"]\nthinking = "never"', "is not a model"),
        ('["x:1"]\nlike = "y:2"', "is like 'y:2'"),
        ('["x:1"]\nlike = "x:1"', "is like 'x:1'"),
        ('["x:1"]\nthinking = "never"\ndescription = ""\nlicence = ""\nlayers = "many"', "not whole"),
        ('["x:1"]\nthinking = "never"\ndescription = ""\nlicence = ""\nsize = 3', "is not a model"),
        ('["x:1"]\nthinking = "never"\ndescription = ""\nlicence = ""\nmade = { Q8_0 = 1 }', "has the default ''"),
    ],
)
def test_a_wrong_entry_of_a_user_is_named(overlay: Callable[[str], None], text: str, message: str) -> None:
    overlay(text)
    with pytest.raises(ConfigError, match="models") as error:
        registry.models()
    assert message in error.value.message


@pytest.mark.parametrize(("kv", "expected"), [("f16", 147_456), ("q8_0", 78_336), ("q4_0", 41_472)])
def test_keys_and_values_take_less_when_they_are_quantized(kv: str, expected: int) -> None:
    model = registry.models()["qwen3:4b"]
    assert fit.model_need(model, "Q4_K_M", 1000, kv).kv == 1000 * expected


def test_what_cannot_fit_is_refused_before_the_download_with_what_does() -> None:
    model = registry.models()["qwen3:32b"]
    with pytest.raises(NotEnoughMemory) as error:
        fit.check_named(model, "Q4_K_M", MACHINE)
    assert "qwen3:32b at Q4_K_M needs about 2" in error.value.message
    assert "this machine has 16.0 GB" in error.value.message
    assert error.value.hint == "localqwen pull qwen3:14b; --force gets it all the same"


def test_the_advice_fits_and_prefers_what_is_faster_than_reading() -> None:
    laptop = recommend.Device("a laptop", 12 * 10**9, 60e9)
    best, *others = recommend.advise(laptop)
    assert best.model.name == "qwen3:8b"
    assert all(advice.needed <= laptop.memory for advice in (best, *others))
    slow = recommend.advise(replace(laptop, bandwidth=20e9))[0]
    assert slow.model.parameters < best.model.parameters
    assert slow.tokens_per_second >= recommend.READING_TOKENS_PER_SECOND
    moe = recommend.advise(recommend.Device("large", 40 * 10**9, 60e9))[0]
    assert moe.model.mixture
    with pytest.raises(NotEnoughMemory, match="nothing fits"):
        recommend.advise(replace(laptop, memory=10**8))


def test_the_measured_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < recommend.measured_bandwidth() < 1e13


def test_the_table_of_the_readme_is_that_of_models_toml() -> None:
    """Write it anew with `python tools/model_table.py`."""
    subprocess.run(
        [sys.executable, "tools/model_table.py", "--check"],
        cwd=ROOT,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_the_code_names_no_model_but_the_demo() -> None:
    named = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in (ROOT / "localqwen").rglob("*.py")
        for line in code_lines(file)
        if re.search(r"qwen3:\d|Qwen3-\d|\bQwen/", line)
    ]
    assert named == []


def code_lines(file: Path) -> list[str]:
    """Lines of a module without its docstrings, comments and help texts."""
    tree = ast.parse(file.read_text())
    texts = {
        node.body[0].value.lineno + offset
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        for offset in range(node.body[0].end_lineno - node.body[0].lineno + 1)  # type: ignore[attr-defined, operator]
    }
    lines = enumerate(file.read_text().splitlines(), 1)
    return [line.partition("#")[0] for number, line in lines if number not in texts]


def test_the_prediction_knows_what_the_engine_does_with_attention_scores() -> None:
    """The engine takes the size of a pass and the limit from the prediction: there is one of each."""
    from localqwen.engines.llama_cpp import context as llama_context
    from localqwen.engines.llama_cpp.settings import Settings

    assert (Settings().batch, llama_context.fit.SCORES_BYTES) == (fit.BATCH, fit.SCORES_BYTES)
    model = registry.models()["qwen3:0.6b"]
    scores = fit.model_need(model, "Q8_0", 4096).compute - fit.model_need(model, "Q8_0", 0).compute
    assert scores == 4096 * 256 * 16 * 4
    quantized = fit.model_need(model, "Q8_0", 4096, "q8_0").compute  # has no scores: it needs flash attention
    assert quantized == fit.model_need(model, "Q8_0", 0).compute
    assert fit.model_need(model, "Q8_0", 131_072).compute == fit.model_need(model, "Q8_0", 0).compute


def planned(missing: int, folder: Path) -> pull.Plan:
    reference = names.parse("qwen3:4b")
    assert isinstance(reference, Named)
    file = RemoteFile("x.gguf", missing, "0" * 64)
    return pull.Plan(
        reference, "hf", Listing("a/b", "main", "0" * 40, (file,)), (file,), "Q4_K_M", False, folder, missing
    )


def test_a_disk_without_room_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    pull.check_space(planned(1000, tmp_path / "not" / "yet"))
    with pytest.raises(StorageError) as error:
        pull.check_space(planned(10**18, tmp_path / "not" / "yet"))
    assert "qwen3:4b takes 1000000000.0 GB more" in error.value.message
    assert "are free" in error.value.message
    assert "localqwen rm" in error.value.hint


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "", "a\\..\\x"])
def test_a_hub_cannot_name_a_file_outside_its_folder(path: str) -> None:
    with pytest.raises(HubError, match="cannot be"):
        RemoteFile(path, 1, "0" * 64)
    with pytest.raises(HubError, match="cannot be"):
        RemoteFile("x", 1, "../" + "0" * 61)


def test_an_entrys_own_sampling_goes_under_what_a_request_says(overlay: Callable[[str], None]) -> None:
    overlay('["demo"]\nthinking = "switch"\nlicence = "x"\ndescription = "y"\n'
            "sampling = { thinking = { temperature = 0.9, top_k = 7 } }")  # fmt: skip
    model = localqwen.load("demo", context_length=256, threads=1)
    try:
        question = [Message("user", "hi")]
        assert model.preset(Request(question)) == {"temperature": 0.9, "top_p": 0.95, "top_k": 7, "min_p": 0.0}
        assert model.preset(Request(question, think=False))["temperature"] == 0.7
        assert model.preset(Request(question, sampling=Overrides(temperature=0.1)))["temperature"] == 0.1
    finally:
        model.close()


def test_a_sampling_with_an_unknown_name_is_told(overlay: Callable[[str], None]) -> None:
    overlay('["demo"]\nthinking = "switch"\nlicence = "x"\nsampling = { thinking = { heat = 1 } }\ndescription = "y"')
    with pytest.raises(ConfigError, match="heat"):
        localqwen.load("demo", context_length=256, threads=1)
