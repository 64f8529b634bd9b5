"""Texts of a model file that are not UTF-8 are read with replacements: they do not end loading."""

from pathlib import Path
from types import SimpleNamespace

from localqwen.engines.llama_cpp.library import ModelFile
from localqwen.engines.mlx.tokenizer import FolderTokenizer


def test_a_special_token_of_a_gguf_file_need_not_be_utf8() -> None:
    model = ModelFile.__new__(ModelFile)
    model.vocab = None
    model._lib = SimpleNamespace(
        llama_vocab_eos=lambda vocab: 7,
        llama_vocab_pad=lambda vocab: -1,
        llama_vocab_get_text=lambda vocab, token: b"<|im\xff\xc3|>",
    )
    assert model.special_tokens() == {"eos_token": "<|im\ufffd\ufffd|>"}


def folder(path: Path, template: object = None) -> FolderTokenizer:
    tokenizer = FolderTokenizer.__new__(FolderTokenizer)
    tokenizer._folder = path
    tokenizer._settings = {"chat_template": template}
    return tokenizer


def test_a_template_file_need_not_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ 1 }}\xff")
    assert folder(tmp_path).chat_template == "{{ 1 }}\ufffd"


def test_a_list_of_templates_may_hold_anything(tmp_path: Path) -> None:
    named = {"name": "default", "template": "{{ 1 }}"}
    assert folder(tmp_path, [None, 7, "x", {"name": []}, named]).chat_template == "{{ 1 }}"
    assert folder(tmp_path, [None, 7, "x", {}]).chat_template == ""
