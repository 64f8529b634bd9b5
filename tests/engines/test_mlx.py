"""What is MLX's own: folders it opens, mixtures of experts, memory, and the pass over the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Shape, make_checkpoint, write_json
from engine_runs import GREEDY, answer, chat, collect, evaluated, open_demo, tokens_of, torch_logprobs
from numpy.typing import NDArray

from localqwen import engines
from localqwen.engines.engine import Sampling
from localqwen.engines.mlx.engine import MlxEngine
from localqwen.errors import EngineError, LocalqwenError, ModelNotFound, NotEnoughMemory, Unsupported, UsageError
from localqwen.formats import model_header
from localqwen.models import converted

MIXTURE = {"experts": 8, "experts_used": 2, "expert_feed_forward": 128, "tied": False}


@pytest.fixture(scope="module")
def engine() -> Iterator[MlxEngine]:
    opened = open_demo("mlx")
    assert isinstance(opened, MlxEngine)
    yield opened
    opened.close()


def test_the_logits_of_a_run_do_not_depend_on_its_company(engine: MlxEngine) -> None:
    """Bit for bit on the CPU: products of matrices are shared there, and round the same; attention is the run's own."""
    wild = Sampling(temperature=5, top_k=0, top_p=1, seed=3)  # over the whole vocabulary, where a bit would show
    prompt = chat(engine, "What is 345 + 278?")
    (alone,) = collect(engine, engine.start(prompt, wild, max_tokens=60, logprobs=5))
    others = [engine.start(chat(engine, f"Count the letter {c} in cheese."), GREEDY, max_tokens=90) for c in "ceh"]
    (together, *_) = collect(engine, engine.start(prompt, wild, max_tokens=60, logprobs=5), *others)
    assert together == alone


def test_a_user_learns_whether_a_gpu_computes(engine: MlxEngine) -> None:
    """Else a slow model on MLX's CPU build would be a riddle."""
    gpu = "gpu" in str(mx.default_device())
    assert engine.backend_description.startswith("GPU" if gpu else "CPU build of MLX")


@pytest.mark.parametrize("size", [1, 7, 32])
def test_the_logits_do_not_depend_on_how_a_prompt_is_sliced(engine: MlxEngine, size: int) -> None:
    ids = chat(engine, "How many r's are in raspberry?") * 2
    weights = engine._weights
    whole = np.array(weights.forward([(ids, weights.new_caches())], [len(ids) - 1]))
    caches = weights.new_caches()
    for begin in range(0, len(ids), size):
        part = ids[begin : begin + size]
        last = np.array(weights.forward([(part, caches)], [len(part) - 1]))
    assert np.array_equal(last, whole)


def test_a_pass_that_was_interrupted_leaves_a_whole_engine(engine: MlxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two layers: some caches have grown, others not. The probabilities show it if one stays so."""
    prompt = chat(engine, "What is 58 + 67?")
    (expected,) = collect(engine, engine.start(prompt, GREEDY, max_tokens=60, logprobs=2))
    run = engine.start(prompt, GREEDY, max_tokens=60, logprobs=2)
    said = [piece for _ in range(5) for _, piece in engine.step()]
    monkeypatch.setattr(type(engine._weights.model.layers[0].mlp), "__call__", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    assert said + collect(engine, run)[0] == expected


def _interrupt(_self: object, _hidden: object) -> None:
    raise KeyboardInterrupt


# Folders


def quantized(source: Path, folder: Path, *, bits: int, group_size: int = 64) -> Path:
    """As mlx_lm's own converter writes it."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(source)
    model, config = quantize_model(model, config, group_size, bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.mark.parametrize("bits", [8, 4])
def test_a_folder_quantized_for_mlx_is_opened_by_name_of_its_path_alone(
    engine: MlxEngine, tmp_path: Path, bits: int
) -> None:
    folder = quantized(converted.demo_checkpoint(), tmp_path / f"demo-{bits}bit", bits=bits)
    opened = engines.open(folder, context_length=256)
    assert isinstance(opened, MlxEngine)
    assert opened._weights.bytes < engine._weights.bytes * (bits + 1) / 16
    prompt = chat(engine, "What is 3 + 4?")
    assert answer(opened, prompt, max_tokens=100) == answer(engine, prompt, max_tokens=100)
    opened.close()
    with pytest.raises(UsageError, match="quantized for MLX"):
        engines.open(folder, engine="gguf")


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_mixture_of_experts_is_computed_as_transformers_does(tmp_path: Path, bits: int | None) -> None:
    """In float32 to the order of sums. Quantised, the divergence in nats stays small; on random weights the experts
    that the router picks may change where two score alike."""
    shape = Shape(**MIXTURE)  # type: ignore[arg-type]
    plain = make_checkpoint(tmp_path / "mixture", shape, dtype="F32")
    folder = plain if bits is None else quantized(plain, tmp_path / "packed", bits=bits)
    opened = engines.open(folder, engine="mlx", context_length=128, max_runs=2)
    ids = opened.tokenize("the other one in the middle, and 12 more\n" * 2, special=False)
    found, reference = evaluated(opened, ids), torch_logprobs(plain, ids)
    if bits is None:
        assert np.abs(found - reference).max() < 1e-3
    divergence = (np.exp(reference) * (reference - found)).sum(-1).mean()
    assert abs(divergence) < {None: 1e-5, 8: 0.02, 4: 0.5}[bits]
    alone = [answer(opened, prompt, max_tokens=12) for prompt in (ids[:9], ids[9:20])]
    runs = [opened.start(prompt, GREEDY, max_tokens=12) for prompt in (ids[:9], ids[9:20])]
    assert [tokens_of(pieces) for pieces in collect(opened, *runs)] == alone
    opened.close()


@pytest.mark.parametrize("experts", [0, 4])
def test_a_config_with_the_names_of_transformers_5_gives_the_same_logits(experts: int, tmp_path: Path) -> None:
    """mlx_lm alone finds neither theta nor the experts of such a mixture, and takes null for a number."""
    folder = make_checkpoint(tmp_path / "m", Shape(layers=1, kv_heads=4, experts=experts), dtype="F32")
    ids = [5, 17, 300, 42]
    before = evaluated(engines.open(folder, engine="mlx", context_length=64), ids)
    old = json.loads((folder / "config.json").read_text())
    moved = ("rope_theta", "rope_scaling", "torch_dtype", "num_experts", "decoder_sparse_step", "mlp_only_layers")
    new = {key: value for key, value in old.items() if key not in moved}
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": old["rope_theta"]}, "dtype": "bfloat16"}
    new |= {"head_dim": None, "num_key_value_heads": None} | ({"num_local_experts": experts} if experts else {})
    write_json(folder / "config.json", new)
    assert np.array_equal(evaluated(engines.open(folder, engine="mlx", context_length=64), ids), before)


def test_the_chat_template_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "own")
    (folder / "chat_template.jinja").write_text("its own {{ messages[0].content }}")
    assert engines.open(folder, engine="mlx", context_length=64).chat_template.startswith("its own")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": named})
    (folder / "chat_template.jinja").unlink()
    assert engines.open(folder, engine="mlx", context_length=64).chat_template == "yes"


def test_what_is_no_qwen3_or_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    for content, error, words in (
        (config | {"model_type": "llama"}, Unsupported, "is a llama model"),
        ({key: value for key, value in config.items() if key != "num_hidden_layers"}, Unsupported, "num_hidden_layers"),
        (config | {"num_hidden_layers": 3}, EngineError, "cannot load"),
    ):
        write_json(folder / "config.json", content)
        with pytest.raises(error, match=words):
            engines.open(folder, engine="mlx")
    write_json(folder / "config.json", config | {"vocab_size": 290})
    with pytest.raises(LocalqwenError):
        engines.open(folder, engine="mlx")
    write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        engines.open(folder, engine="mlx")
    with pytest.raises(ModelNotFound):
        model_header.read(tmp_path)


# Memory


def with_room_for(tokens: int, *, max_runs: int = 2) -> MlxEngine:
    """The demo model on a machine whose memory holds its weights and the keys and values of so many tokens."""
    opened = open_demo("mlx", max_runs=max_runs)
    assert isinstance(opened, MlxEngine)
    opened._limit = opened._weights.bytes + tokens * opened._kv_bytes
    return opened


def test_a_prompt_that_the_memory_cannot_hold_is_refused_before_any_work_with_the_numbers() -> None:
    opened = with_room_for(100)
    prompt = opened.tokenize("a b c " * 40, special=False)
    with pytest.raises(NotEnoughMemory) as error:
        opened.start(prompt, GREEDY, max_tokens=1)
    assert f"{len(prompt):,} tokens" in error.value.message
    assert "GB" in error.value.message
    assert "--kv-quant" in error.value.hint
    assert opened.step() == []
    opened.close()


def test_an_answer_ends_where_the_memory_does() -> None:
    opened = with_room_for(60)
    prompt = chat(opened, "What is 345 + 278?")
    run = opened.start(prompt, GREEDY, max_tokens=400)
    (pieces,) = collect(opened, run)
    assert len(prompt) + len(pieces) == 60
    assert pieces[-1].finish_reason == "length"
    opened.close()


def test_answers_that_grow_together_end_before_the_memory_does() -> None:
    opened = with_room_for(100)
    prompts = [chat(opened, f"What is {terms}?") for terms in ("345 + 278", "640 + 365")]
    runs = [opened.start(prompt, GREEDY, max_tokens=400) for prompt in prompts]
    most, totals = 0, []
    while not all(run.finished for run in runs):
        for run, output in opened.step():
            if output.finish_reason:
                totals.append((run.finished, sum(each.prompt_tokens + each.generated for each in runs)))
        most = max(most, opened._slots.positions())
    # Another step of both takes two positions: it is not begun with less.
    assert totals[0] in ((True, 99), (True, 100))
    assert 90 < most <= 100
    opened.close()


def test_a_prompt_gets_the_room_that_live_runs_leave() -> None:
    opened = with_room_for(100)
    first, second = opened.tokenize("a " * 60, special=False)[:40], opened.tokenize("b " * 60, special=False)
    opened.start(first, GREEDY, max_tokens=1)
    with pytest.raises(NotEnoughMemory):
        opened.start(second[:60], GREEDY, max_tokens=1)
    assert opened.start(second[:50], GREEDY, max_tokens=400).max_tokens == 10
    opened.close()


def test_what_ended_runs_left_makes_room_for_living_ones_the_oldest_first() -> None:
    opened = with_room_for(150, max_runs=3)
    prompts = [opened.tokenize(word * 50, special=False)[:50] for word in ("a ", "b ", "c ")]
    for prompt in prompts[:2]:
        answer(opened, prompt, max_tokens=1)
    run = opened.start(prompts[2], GREEDY, max_tokens=20)
    collect(opened, run)
    again = [opened.start(prompt, GREEDY, max_tokens=0) for prompt in reversed(prompts[1:])]
    assert [run.cached_tokens for run in again] == [49, 49]
    assert opened._slots.positions() <= 150
    opened.close()


def test_one_token_of_cache_takes_the_bytes_that_were_promised(engine: MlxEngine) -> None:
    """What admission counts with is what MLX's caches take, in 16 bit and quantized."""
    for bits in (None, 8, 4):
        opened = open_demo("mlx", max_runs=1, kv_quant=bits)
        assert isinstance(opened, MlxEngine)
        answer(opened, opened.tokenize("a b " * 200, special=False)[:256], max_tokens=1)
        (slot,) = opened._slots.all
        assert sum(cache.nbytes for cache in slot.caches) == 256 * opened._kv_bytes
        opened.close()


def test_a_context_that_does_not_fit_the_machine_is_refused_and_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    from localqwen.engines.mlx import engine as mlx_engine

    machine = mlx_engine.this_machine()
    small = replace(machine, memory=60_000_000, available_memory=60_000_000)
    monkeypatch.setattr(mlx_engine, "this_machine", lambda: small)
    with pytest.raises(NotEnoughMemory, match=r"this machine has 0\.1 GB"):
        engines.open("demo", engine="mlx", context_length=8192)
    engines.open("demo", engine="mlx", context_length=8192, force=True).close()


# Sampling in numpy and MLX


def test_penalties_leave_the_raw_logits_alone() -> None:
    import mlx.core as mx

    from localqwen.engines.mlx.sampling import Sampler

    logits = mx.array([1.0, -1.0, 0.5, 0.25])
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2, presence_penalty=0.5), [0, 1], None)
    assert sampler.draw(logits) == 2
    assert np.array(logits).tolist() == [1.0, -1.0, 0.5, 0.25]


def test_the_smallest_temperatures_take_the_best_token() -> None:
    """Divided by them, logits are beyond the largest number."""
    import mlx.core as mx

    from localqwen.engines.mlx.sampling import Sampler

    assert Sampler(Sampling(temperature=5e-324), [], None).draw(mx.array([1.0, 700.0, 699.0])) == 1


def test_a_constraint_that_allows_nothing_is_an_error() -> None:
    import mlx.core as mx

    from localqwen.engines.mlx.sampling import Sampler

    class Nothing:
        def allowed(self) -> NDArray[np.bool_]:
            return np.zeros(4, dtype=bool)

        def accept(self, token: int) -> None:
            raise AssertionError(token)

    with pytest.raises(EngineError, match="allows no token"):
        Sampler(GREEDY, [], Nothing()).draw(mx.zeros(4))
