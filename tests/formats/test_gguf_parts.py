"""What the names of GGUF files say."""

from pathlib import Path, PurePath

import pytest

from localqwen.errors import FormatError
from localqwen.formats import gguf_parts
from localqwen.formats.gguf_parts import Part


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", Part("Qwen3-4B-Q4_K_M", 1, 1)),
        ("m-00002-of-00003.gguf", Part("m", 2, 3)),
        ("m-00001-of-00001.gguf", Part("m-00001-of-00001", 1, 1)),
        ("m-00004-of-00003.gguf", Part("m-00004-of-00003", 1, 1)),
        ("m-00000-of-00003.gguf", Part("m-00000-of-00003", 1, 1)),
        ("m-1-of-3.gguf", Part("m-1-of-3", 1, 1)),
        ("m-0001-of-00003.gguf", Part("m-0001-of-00003", 1, 1)),
        ("a.b-00001-of-00002.gguf", Part("a.b", 1, 2)),
        ("-00001-of-00002.gguf", Part("-00001-of-00002", 1, 1)),
        ("m-00001-of-00002-00001-of-00003.gguf", Part("m-00001-of-00002", 1, 3)),
    ],
)
def test_a_name_says_which_part_it_is(name: str, expected: Part) -> None:
    assert gguf_parts.part(PurePath("folder") / name) == expected


def test_names_are_written_as_they_are_read() -> None:
    for part in (Part("m", 1, 2), Part("Qwen3-235B-Q4_K_M", 12, 345)):
        assert gguf_parts.part(PurePath(gguf_parts.part_name(*part))) == part


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen3-4b.q8_0.gguf", "Q8_0"),
        ("m_IQ4_XS.gguf", "IQ4_XS"),
        ("m-bf16-00001-of-00002.gguf", "BF16"),
        ("Qwen3-4B.gguf", ""),
        ("q4_0.gguf", ""),
        ("m-Q4_K_M-extra.gguf", ""),
    ],
)
def test_a_name_says_the_quantization(name: str, quant: str) -> None:
    assert gguf_parts.quant_of(PurePath(name)) == quant


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two split models whose names begin alike, one of them unfinished, and one in a single file."""
    for name in ("m", "m-00001-of-00002", "m-00002-of-00002", "m-b-00001-of-00002", "[m]-00001-of-00002"):
        (tmp_path / f"{name}.gguf").touch()
    return tmp_path


def names(files: list[Path] | tuple[Path, ...]) -> list[str]:
    return [file.stem for file in files]


def test_the_parts_of_a_model_are_found_from_any_of_them(folder: Path) -> None:
    both = ["m-00001-of-00002", "m-00002-of-00002"]
    for name in both:
        assert names(gguf_parts.present(folder / f"{name}.gguf")) == both
        assert names(gguf_parts.complete(folder / f"{name}.gguf")) == both
    assert names(gguf_parts.present(folder / "m.gguf")) == ["m"]
    assert names(gguf_parts.complete(folder / "m.gguf")) == ["m"]


@pytest.mark.parametrize("stem", ["m-b", "[m]"])
def test_a_missing_part_is_named(stem: str, folder: Path) -> None:
    first = folder / f"{stem}-00001-of-00002.gguf"
    assert gguf_parts.present(first) == [first]
    with pytest.raises(FormatError) as caught:
        gguf_parts.complete(first)
    assert f"1 of 2 parts are missing, such as {stem}-00002-of-00002.gguf" in caught.value.message


def test_a_name_that_claims_99999_parts_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "m-00001-of-99999.gguf"
    file.touch()
    with pytest.raises(FormatError, match="999 of 99999 parts are missing"):
        gguf_parts.complete(file)


def test_files_are_grouped_to_models(folder: Path) -> None:
    found = gguf_parts.groups(reversed(sorted(folder.iterdir())))
    assert [names(parts) for parts in found] == [
        ["[m]-00001-of-00002"],
        ["m-00001-of-00002", "m-00002-of-00002"],
        ["m-b-00001-of-00002"],
        ["m"],
    ]
    assert [gguf_parts.are_complete(parts) for parts in found] == [False, True, False, True]
    (folder / "m-00002-of-00002.gguf").unlink()
    assert not gguf_parts.are_complete(found[1])
