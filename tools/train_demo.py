"""Train the demo model from scratch and write it as a checkpoint in the official layout.

The package ships the mean of the second and the third of three passes:

    python tools/train_demo.py --out build/one --tokens 16000000
    python tools/train_demo.py --out build/two --stage 2 --init build/one --tokens 6000000 --rate 0.5
    python tools/train_demo.py --out build/three --stage 3 --init build/two --tokens 4000000 --rate 0.4
    python tools/average_demo.py build/two build/three localqwen/demo

Needs torch 2.13, tokenizers and safetensors, which localqwen itself does not need, and jinja2. Pass 1 learns every
task; pass 2 adds greetings as people mostly type them, and sums without thinking; pass 3 concentrates on tools,
questions without an answer and ended thinking (the shares are in demo_data.MIX). Two idle cores with bfloat16
instructions train 7,000 to 8,000 tokens a second, about an hour for all passes. Seeds fix the data and the first
weights. An interrupted pass continues from the state in `--work`; progress is counted in tokens, never by the clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import demo_data
import demo_tokenizer
import torch
from demo_model import Qwen3, Shape
from demo_optimizer import optimizers, set_rate
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100
BATCH_TOKENS = 4096
LONGEST = 512
CONTEXT = 8192
CLIP = 1.0
Batch = tuple[Tensor, Tensor]


def encode(tokenizer: Tokenizer, sample: demo_data.Sample) -> tuple[list[int], int]:
    """Return the token ids and the index where the learnt part begins. The parts are encoded separately, as when the
    model runs."""
    seen = tokenizer.encode(sample.prompt).ids + tokenizer.encode(sample.forced).ids
    return seen + tokenizer.encode(f"{sample.completion}<|im_end|>").ids, len(seen)


def pad(rows: list[tuple[list[int], int]], filler: int) -> Batch:
    """Return inputs and targets of one batch: right-padded to a multiple of 8, prompts masked."""
    length = -(-max(len(ids) for ids, _ in rows) // 8) * 8
    inputs = torch.full((len(rows), length), filler)
    targets = torch.full((len(rows), length), IGNORED)
    for row, (ids, start) in enumerate(rows):
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return inputs, targets


def batches(tokenizer: Tokenizer, stage: int) -> Iterator[Batch]:
    """Yield batches of about BATCH_TOKENS, each with samples of similar length, in random order within a pool."""
    seed, filler = 1000 * stage, tokenizer.encode("<|endoftext|>").ids[0]
    random, samples = Random(seed), demo_data.stream(seed, stage)
    while True:
        encoded = (encode(tokenizer, sample) for sample, _ in zip(samples, range(1024), strict=False))
        pool = sorted((row for row in encoded if len(row[0]) <= LONGEST), key=lambda row: len(row[0]))
        made: list[list[tuple[list[int], int]]] = []
        rows: list[tuple[list[int], int]] = []
        for row in pool:
            if rows and (len(rows) + 1) * len(row[0]) > BATCH_TOKENS:
                made, rows = [*made, rows], []
            rows.append(row)
        made.append(rows)
        random.shuffle(made)
        yield from (pad(rows, filler) for rows in made)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy on the learnt tokens; products in bfloat16, the rest and the weights in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs)
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def config(shape: Shape, tokenizer: Tokenizer) -> dict[str, object]:
    """Return config.json with the keys of the official one."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"), "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "head_dim": shape.head_dim, "hidden_act": "silu", "hidden_size": shape.hidden, "initializer_range": 0.02,
        "intermediate_size": shape.ffn, "max_position_embeddings": CONTEXT, "max_window_layers": shape.layers,
        "model_type": "qwen3", "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads, "rms_norm_eps": shape.eps, "rope_scaling": None,
        "rope_theta": int(shape.rope_theta), "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }  # fmt: skip


def generation_config(tokenizer: Tokenizer) -> dict[str, object]:
    """Return generation_config.json: the sampling that the official hybrids recommend."""
    end, text_end = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    return {
        "bos_token_id": text_end, "do_sample": True, "eos_token_id": [end, text_end], "pad_token_id": text_end,
        "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0",
    }  # fmt: skip


def write_json(path: Path, data: object) -> None:
    """Write JSON in the layout of the official files."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_checkpoint(folder: Path, model: nn.Module, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write the official layout: weights in bfloat16, no lm_head because it is tied, tokenizer, template,
    configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    write_json(folder / "tokenizer_config.json", demo_tokenizer.tokenizer_config(tokenizer))
    write_json(folder / "config.json", config(shape, tokenizer))
    write_json(folder / "generation_config.json", generation_config(tokenizer))


class Run:
    """A training run: the model, its optimizers, its progress, and the folder of its state."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.stage)
        self.options, self.shape, self.tokenizer = options, Shape(), demo_tokenizer.build()
        self.model = Qwen3(self.shape, LONGEST)
        self.step = self.tokens = self.first_batch = 0
        self.seconds = 0.0
        if options.init:
            weights = load_file(options.init / "model.safetensors")
            self.model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        self.optimizers = optimizers(self.model)
        self.state = options.work / f"state-{options.stage}.pt"
        if self.state.exists():
            self.resume()

    def resume(self) -> None:
        """Continue from the last saved state; the data skips what was already seen."""
        saved = torch.load(self.state)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = self.first_batch = saved["step"]
        self.tokens, self.seconds = saved["tokens"], saved["seconds"]

    def save(self) -> None:
        """Write the state to resume from, and a checkpoint to try."""
        optimizer_states = [optimizer.state_dict() for optimizer in self.optimizers]
        saved = {
            "model": self.model.state_dict(),
            "optimizers": optimizer_states,
            "step": self.step,
            "tokens": self.tokens,
        }
        torch.save(saved | {"seconds": self.seconds}, self.state.with_suffix(".new"))
        self.state.with_suffix(".new").replace(self.state)
        write_checkpoint(self.options.out, self.model, self.shape, self.tokenizer)

    def train(self) -> None:
        """Train up to `tokens` tokens (including padding)."""
        loss_function = torch.compile(loss_of, dynamic=True) if self.options.compile else loss_of
        source = batches(self.tokenizer, self.options.stage)
        for _ in range(self.first_batch):
            next(source)
        losses: list[float] = []
        last_save = last = time.monotonic()
        while self.tokens < self.options.tokens:
            inputs, targets = next(source)
            losses.append(self.update(loss_function(self.model, inputs, targets)))
            self.tokens += inputs.numel()
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if self.step % 50 == 0:
                self.log(losses)
                losses = []
            if now - last_save > self.options.save_every:
                self.save()
                last_save = now
        self.save()

    def update(self, loss: Tensor) -> float:
        """Do one step of both optimizers and return the loss."""
        set_rate(self.optimizers, self.step, self.tokens / self.options.tokens, self.options.rate)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def log(self, losses: list[float]) -> None:
        """Print one line: the progress and the speed of the run."""
        mean, speed = sum(losses) / len(losses), self.tokens / self.seconds
        line = f"step {self.step} tokens {self.tokens} loss {mean:.4f} seconds {self.seconds:.0f} tokens/s {speed:.0f}"
        print(line, flush=True)
        with (self.options.work / f"log-{self.options.stage}.txt").open("a") as log:
            log.write(line + "\n")


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="state and log")
    parser.add_argument("--out", type=Path, default=Path("localqwen/demo"), help="the checkpoint")
    parser.add_argument("--tokens", type=int, default=16_000_000, help="how much to train on")
    parser.add_argument("--stage", type=int, default=1, help="number of the pass: its seed")
    parser.add_argument("--init", type=Path, help="start from the weights of this checkpoint")
    parser.add_argument("--rate", type=float, default=1.0, help="scale of the learning rates")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=180, help="seconds between saved states")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser.parse_args()


def main() -> None:
    """Train the model."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    Run(options).train()


if __name__ == "__main__":
    main()
