"""Names, files, sizes: the registry, the store, the header reader, what fits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_json
from gguf_bytes import SHAPE, entry, head
from platformdirs.windows import Windows
from resolved import file_of

from localqwen.engines import selection
from localqwen.errors import ModelNotFound, NotEnoughMemory, UsageError
from localqwen.formats import model_header
from localqwen.formats.model_header import ModelHeader
from localqwen.machine import Machine
from localqwen.models import describe, fit, inventory, store
from localqwen.models.local_files import LocalFile

MACHINE = Machine("Linux", "x86_64", "a chip", 4, 16 << 30, 8 << 30)
#: Qwen3-4B at Q4_K_M.
HEADER = ModelHeader(Path("x.gguf"), 2_497_280_256, "Qwen3 4B", "qwen3", 40960, 36, 8, 128)


@pytest.mark.parametrize(
    ("available_gib", "runs", "expected"),
    [(64, 1, 40960), (16, 1, 8192), (8, 1, 4096), (1, 1, 4096), (64, 8, 4096), (256, 4, 40960)],
)
def test_the_default_context_leaves_memory_to_others(available_gib: int, runs: int, expected: int) -> None:
    machine = replace(MACHINE, available_memory=available_gib << 30)
    assert fit.default_context(HEADER, machine, runs) == expected


def test_the_default_context_never_exceeds_the_models_own() -> None:
    assert fit.default_context(replace(HEADER, context_length=512), replace(MACHINE, available_memory=0)) == 512


def test_a_longer_context_is_stretched_by_the_smallest_factor_that_reaches_it_or_refused() -> None:
    factors = {}
    for context in (40_960, 40_961, 65_536, 65_537, 131_072):
        scaling = fit.stretched(HEADER, context)
        factors[context] = scaling and scaling.factor
    assert factors == {40_960: None, 40_961: 2, 65_536: 2, 65_537: 4, 131_072: 4}
    with pytest.raises(
        UsageError, match=r"131,073 tokens is not possible: x\.gguf supports 40,960, or 131,072 with YaRN"
    ):
        fit.granted_context(HEADER, 131_073, MACHINE, max_runs=1, kv="f16", force=True)


def test_needed_memory_is_weights_and_keys_and_values() -> None:
    assert fit.needed_bytes(HEADER, 4096) - fit.needed_bytes(HEADER, 0) == 4096 * 147_456
    assert fit.needed_bytes(HEADER, 0) > HEADER.bytes


def test_what_is_larger_than_the_machine_is_refused_with_the_numbers() -> None:
    fit.check(HEADER, 40960, MACHINE)
    with pytest.raises(NotEnoughMemory) as error:
        fit.check(HEADER, 131072, MACHINE)
    assert "21.9 GB" in error.value.message
    assert "17.2 GB" in error.value.message
    assert "--ctx" in error.value.hint


def test_the_largest_that_fits_passes_over_files_that_do_not_or_are_damaged(tmp_path: Path) -> None:
    files = []
    for name, size in [("small", 1 << 20), ("large", 3 << 20), ("broken", 2 << 20)]:
        path = tmp_path / f"{name}.gguf"
        path.write_bytes((b"x" if name == "broken" else head(SHAPE)).ljust(size, b"\0"))
        files.append(LocalFile(name, path, size, "", 0.0))
    small = fit.needed_bytes(model_header.read(files[0].path), fit.SMALLEST_DEFAULT_CONTEXT)
    for memory, expected in [(small + (8 << 20), "large"), (small, "small"), (small - 1, None)]:
        found = fit.largest_that_fits(files, replace(MACHINE, available_memory=memory))
        assert (found.name if found else None) == expected


def test_the_largest_that_fits_may_be_a_folder_for_mlx(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "folder")
    file = LocalFile("folder", folder, 1 << 20, "4bit", 0.0, "mlx")
    needed = fit.needed_bytes(model_header.read(folder), fit.SMALLEST_DEFAULT_CONTEXT)
    assert fit.largest_that_fits([file], replace(MACHINE, available_memory=needed)) == file
    assert fit.largest_that_fits([file], replace(MACHINE, available_memory=needed - 1)) is None


def test_a_folder_quantized_for_mlx_is_described_without_a_conversion(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"quantization": {"group_size": 64, "bits": 4}})
    facts = describe.describe(str(folder))
    assert (facts["path"], facts["layers"], facts["architecture"]) == (str(folder), 2, "qwen3")
    assert facts["bytes"] == (folder / "model.safetensors").stat().st_size


def test_an_unknown_name_gets_did_you_mean() -> None:
    with pytest.raises(ModelNotFound) as error:
        file_of("dmeo")
    assert "did you mean demo" in error.value.hint


@pytest.mark.parametrize("path", ["nowhere.gguf", "./nowhere", "/nowhere/at/all", "~/nowhere/x"])
def test_a_path_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(ModelNotFound) as error:
        file_of(path)
    assert path in error.value.message


def test_names_are_found_in_any_case_and_paths_show_their_stem(tmp_path: Path) -> None:
    demo = selection.resolve("Demo")
    assert demo.entry is not None
    assert demo.thinking == "switch"
    assert "nothing else" in demo.entry.description
    for text, shown in (("DEMO", "demo"), ("/x/Qwen3-4B-Q4_K_M.gguf", "Qwen3-4B-Q4_K_M"), (tmp_path, tmp_path.name)):
        assert selection.resolve(text).display == shown


def test_one_variable_moves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path / "here"))
    for path in (
        store.home(),
        store.cache_dir(),
        store.config_file(),
        store.conversations_dir(),
        store.converted_dir(),
    ):
        assert path.is_relative_to(tmp_path / "here")


def test_on_windows_the_folders_are_named_by_the_program_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has a folder of the author above that of the program, which localqwen leaves out."""
    monkeypatch.delenv("LOCALQWEN_HOME", raising=False)
    monkeypatch.setattr("platformdirs.PlatformDirs", Windows)
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda name: str(tmp_path / name))
    local = tmp_path / "CSIDL_LOCAL_APPDATA" / "localqwen"
    assert (store.home(), store.config_file()) == (local, local / "config.toml")
    assert store.cache_dir().is_relative_to(local)


def test_what_is_on_disk_is_listed_by_name_and_quantization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    models, cache = tmp_path / "models", store.converted_dir()
    models.mkdir()
    cache.mkdir(parents=True)
    (models / "Qwen3-4B-Q4_K_M.gguf").write_bytes(b"123")
    (cache / "mine-0123456789ab-Q8_0.gguf").write_bytes(b"12345")
    (cache / "demo-0123456789ab-Q8_0.gguf").write_bytes(b"1")
    found = [(file.name, file.quant, file.bytes) for file in inventory.on_disk()]
    assert found == [("mine", "Q8_0", 5), ("Qwen3-4B", "Q4_K_M", 3)]


def test_only_readable_qwen3_files_of_the_hubs_cache_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for repo, content in (
        ("someone--good", head(SHAPE)),
        ("someone--damaged", head(SHAPE)[:40]),
        ("someone--other", head([entry("general.architecture", "llama"), *SHAPE[1:]])),
    ):
        file = tmp_path / "hub" / f"models--{repo}" / "snapshots" / "0" / "model-Q8_0.gguf"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    assert [file.name for file in inventory.on_disk()] == ["hf:someone/good"]
