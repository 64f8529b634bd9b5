"""A name understood once: what it means, which engine, and what of it is on this disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from localqwen.errors import ModelNotFound, NotPulled, UsageError
from localqwen.models import converted, names, registry, resolve
from localqwen.models.names import LocalPath, Named, Repository
from localqwen.models.resolve import LLAMA_CPP, MLX, Choice, ReadableBy, ResolvedModel

ENTRY = registry.models()["qwen3:4b"]


def preferring(engine: str) -> resolve.Chooser:
    """A machine that has both engines and prefers one."""

    def choose(wanted: str | None, files: ReadableBy | None) -> Choice:
        if files is not None and files.alone and wanted not in (None, files.engine):
            raise UsageError("cannot open it")
        return Choice(wanted or (files.engine if files else engine), "a test")

    return choose


def resolved(text: str, engine: str = LLAMA_CPP, wanted: str | None = None) -> ResolvedModel:
    return resolve.resolve(text, preferring(engine), wanted)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path / "home"))
    return tmp_path / "hub"


def snapshot(cache: Path, repo: str, commit: str = "0" * 40) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def test_the_built_in_model_is_a_checkpoint_that_llama_cpp_needs_converted() -> None:
    for text in ("demo", "DEMO"):
        on_llama, on_mlx = resolved(text), resolved(text, MLX)
        assert (on_llama.name, on_llama.display, on_llama.is_built_in, on_llama.thinking) == (
            "demo", "demo", True, "switch",
        )  # fmt: skip
        assert on_llama.conversion == converted.demo_conversion()
        assert on_mlx.conversion is None
        assert on_mlx.path() == converted.demo_checkpoint()
    assert on_llama.path().name.startswith("demo-")


def test_a_name_knows_its_entry_and_what_answers_are_like() -> None:
    model = resolved("Qwen3:4B-q8_0")
    assert (model.entry, model.name, model.display) == (ENTRY, "qwen3:4b-q8_0", "qwen3:4b-q8_0")
    assert (model.thinking, model.sampling, model.is_built_in) == (ENTRY.thinking, ENTRY.sampling, False)
    assert (model.engine, model.why, model.given) == (LLAMA_CPP, "a test", "Qwen3:4B-q8_0")


def test_the_name_of_a_family_lasts_as_that_of_its_size() -> None:
    model = resolved("qwen3")
    assert isinstance(model.reference, Named)
    assert model.reference.why
    assert names.parse(model.name) == model.reference


def test_a_path_lasts_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "Own-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    model = resolved("Own-Q4_K_M.gguf")
    assert (model.name, model.display, model.entry, model.thinking) == (str(file), "Own-Q4_K_M", None, None)
    assert model.files is not None
    assert (model.files.parts, model.files.quant) == ((Path("Own-Q4_K_M.gguf"),), "Q4_K_M")
    with pytest.raises(UsageError):
        resolved("Own-Q4_K_M.gguf", wanted=MLX)


def test_a_folder_is_converted_for_llama_cpp_anew_when_it_changes(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "own")
    model = resolved(str(folder))
    assert model.conversion is not None
    before = model.conversion.target
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert model.conversion.target != before
    assert resolved(str(folder), MLX).path() == folder


def test_what_is_pulled_later_is_found_by_looking_again(cache: Path) -> None:
    model = resolved("qwen3:4b")
    assert model.files is None
    with pytest.raises(NotPulled) as error:
        model.path()
    assert error.value.hint == "localqwen pull qwen3:4b"
    file = snapshot(cache, "Qwen/Qwen3-4B-GGUF") / "Qwen3-4B-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    assert resolve.located(model).path() == file


def test_mlx_reads_its_own_quantization_of_a_bare_name(cache: Path) -> None:
    folder = make_checkpoint(snapshot(cache, ENTRY.mlx["4bit"].repo))
    model = resolved("qwen3:4b", wanted=MLX)
    assert (model.path(), model.name) == (folder, "qwen3:4b")
    assert model.files is not None
    assert (model.files.entry, model.files.command, model.files.quant) == (ENTRY, "qwen3:4b-4bit", "4bit")
    with pytest.raises(UsageError):
        resolved("qwen3:4b-q8_0", wanted=MLX)


def test_official_weights_are_read_by_mlx_and_converted_for_llama_cpp(cache: Path) -> None:
    assert ENTRY.weights is not None
    folder = make_checkpoint(snapshot(cache, ENTRY.weights.repo))
    assert resolved("qwen3:4b", wanted=MLX).path() == folder
    quant = next(iter(ENTRY.made))
    model = resolved(f"qwen3:4b-{quant.lower()}")
    assert model.conversion == converted.Conversion(folder, "Qwen3-4B", quant, ENTRY.weights.repo)
    official = next(quant for quant in ENTRY.gguf if quant not in ENTRY.made)
    assert resolved(f"qwen3:4b-{official.lower()}").files is None  # it is pulled as it is


def test_a_gguf_file_is_never_given_to_mlx(cache: Path) -> None:
    """An entry without official files for MLX, of which only the GGUF file is here."""
    entry = registry.models()["qwen3:4b-base"]
    assert not entry.mlx
    model = resolved("qwen3:4b-base", wanted=MLX)
    assert model.files is None
    assert entry.weights is not None
    folder = make_checkpoint(snapshot(cache, entry.weights.repo))
    assert resolve.located(model).path() == folder


def test_a_repository_is_read_in_the_form_that_is_here(cache: Path) -> None:
    file = snapshot(cache, "owner/name") / "Some-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    model = resolved("hf:owner/name", MLX)
    assert (model.engine, model.path(), model.name, model.entry) == (LLAMA_CPP, file, "hf:owner/name", None)
    assert model.files is not None
    assert model.files.command == "hf:owner/name:q4_k_m"
    other = resolved("hf:owner/other", MLX, wanted=MLX)
    assert other.missing().hint == "localqwen pull hf:owner/other --engine mlx"


@pytest.mark.parametrize(
    ("said", "hint"), [("./nowhere", "check the path"), ("own/er", "a repository of a hub is written hf:own/er")]
)
def test_an_empty_path_is_named_as_it_was_said(said: str, hint: str) -> None:
    model = resolved(said)
    assert isinstance(model.reference, LocalPath)
    with pytest.raises(ModelNotFound, match=f"there is no file or folder {said}") as error:
        model.path()
    assert hint in error.value.hint


def test_a_reference_is_taken_as_it_was_parsed() -> None:
    reference = Repository("hf", "owner/name", "Q8_0")
    model = resolve.of_reference(reference, preferring(LLAMA_CPP), given="HF:owner/name:Q8_0")
    assert (model.reference, model.given) == (reference, "HF:owner/name:Q8_0")
