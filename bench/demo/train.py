"""Train a small byte-level GPT on a text file, saving a checkpoint every few steps, and resume from the newest one.

An ordinary PyTorch script: it is given a directory and knows nothing of what kind of file system that is.

    python train.py --text corpus.txt --checkpoints DIR --steps 80 --save-every 20

A checkpoint is saved under a temporary name, fsynced, and renamed to its final name. Rename is atomic: what has a final
name is whole. A process that dies in the middle of a save leaves a temporary file that nobody will ever load, and the
checkpoint before it untouched. A checkpoint holds all that the next step depends on (weights, optimizer, the random
state of the sampler), so that a resumed run computes the very numbers that the first one would have.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 256, 6, 8, 128, 8


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.mix(self.norm_attention(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        fed: Tensor = self.feed(self.norm_feed(x))
        return x + fed


class Model(nn.Module):
    """About five million parameters over the 256 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        logits: Tensor = self.head(self.layers(self.token(tokens) + self.position(places)))
        return logits


def batch(text: Tensor, sampler: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,), generator=sampler)
    rows = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()]).long()
    return rows[:, :-1], rows[:, 1:]


def save(state: dict[str, Any], directory: Path, step: int) -> None:
    path = directory / f"ckpt-{step:06d}.pt"
    temporary = directory / f".{path.name}.tmp"
    torch.save(state, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    print(f"saved {path.name}", flush=True)


def newest(directory: Path) -> Path | None:
    return max(directory.glob("ckpt-*.pt"), default=None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--save-every", type=int, default=20)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    text = torch.frombuffer(bytearray(options.text.read_bytes()), dtype=torch.uint8)
    model, sampler, step = Model(), torch.Generator().manual_seed(1), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    checkpoint = newest(options.checkpoints)
    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        sampler.set_state(state["sampler"])
        step = state["step"]
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e6:.1f} M parameters, {len(text) / 1e6:.1f} MB of text, from step {step}", flush=True)

    while step < options.steps:
        step += 1
        tokens, following = batch(text, sampler)
        loss = functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"step {step} loss {loss.item()!r}", flush=True)
        if step % options.save_every == 0:
            state = {
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "sampler": sampler.get_state(),
            }
            save(state, options.checkpoints, step)


if __name__ == "__main__":
    main()
