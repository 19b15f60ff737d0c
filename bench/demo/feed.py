"""Train a small model on what a dataset gateway serves, saving model and place in the epoch together.

    python feed.py --url http://127.0.0.1:8800 --source datasets/corpus --checkpoints DIR --seen FILE --rank 0 --world-size 1

A bigram model of bytes: small, so that the demo is about the data. Every few steps rank 0 saves a checkpoint that holds the
model, the optimizer and the dataset's state. A run that finds a checkpoint goes on from it, with however many ranks it has.
Each step appends the ids of its samples to FILE: what was seen can be counted afterwards.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tieredfs_client.dataset import GatewayDataset

BATCH = 256


def samples(texts: list[bytes]) -> torch.Tensor:
    return torch.tensor([list(text) for text in texts], dtype=torch.long)


def save(path: Path, contents: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on batches from a gateway.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--seen", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds per step, to be killed in")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Embedding(256, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    data = GatewayDataset(
        asked.url,
        asked.source,
        batch_size=BATCH,
        shuffle="full",
        seed=1,
        rank=asked.rank,
        world_size=asked.world_size,
        format="torch",
    )
    saved = sorted(asked.checkpoints.glob("feed-*.pt"))
    step = 0
    if saved:
        found = torch.load(saved[-1], weights_only=True)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        data.load_state_dict(found["data"])
        step = found["step"]
    with asked.seen.open("a") as seen:
        for batch in data:
            step += 1
            text = samples(batch["text"])
            if len(text):
                loss = functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                print(f"step {step} loss {loss.item():.6f}", flush=True)
            seen.write(json.dumps({"step": step, "ids": batch["id"].tolist()}) + "\n")
            seen.flush()
            if asked.rank == 0 and asked.world_size == 1 and step % asked.save_every == 0:
                contents = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                save(asked.checkpoints / f"feed-{step:06d}.pt", contents | {"data": data.state_dict()})
            time.sleep(asked.pause)


if __name__ == "__main__":
    main()
