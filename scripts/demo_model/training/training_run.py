"""Defines a training run that can be stopped at any time and resumed: its state, learning rate, losses, progress bar
and plot.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

_STATE = "state.pt"
_LOSSES = "losses.jsonl"
_PLOT = "losses.png"
_INNER = re.compile(r"(blocks|layers)\.\d+\.")
"""Matches the names of weights inside a list of layers, for example blocks.0.attn.qkv.weight."""


class TrainingRun:
    """Trains a module with AdamW, and keeps its state in `directory`.

    With `muon`, the optimiser Muon trains the matrices inside a list of layers. Muon needs half the steps that AdamW
    needs for the same result.

    During the first `warmup` steps, the learning rate rises. Then the learning rate falls as a cosine, almost to zero
    at the last step. All random numbers of a step must come from `generator(step)`, so that a resumed run draws the
    same numbers as an uninterrupted run.

        run = TrainingRun(Path("out/vocoder"), model, steps=1000, rate=1e-3)
        for step in run:
            run.update({"loss": loss_of(model, run.generator(step))})
    """

    def __init__(
        self,
        directory: Path,
        module: nn.Module,
        steps: int,
        rate: float,
        *,
        seed: int = 0,
        warmup: int = 100,
        weight_decay: float = 0.01,
        save_every: int = 100,
        muon: bool = False,
    ):
        self.directory = directory
        self.module = module
        self.steps = steps
        self.rate = rate
        self.seed = seed
        self.warmup = warmup
        self.save_every = save_every
        inner = [p for name, p in module.named_parameters() if p.requires_grad and p.dim() == 2 and _INNER.search(name)]
        chosen = {id(p) for p in inner} if muon else set()
        matrices = [p for p in module.parameters() if p.requires_grad and p.dim() > 1 and id(p) not in chosen]
        vectors = [p for p in module.parameters() if p.requires_grad and p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]
        if muon:
            self.optimizers.append(
                torch.optim.Muon(inner, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        self.done = 0
        self._bar: tqdm | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / _STATE).exists():
            self._resume()

    def __iter__(self) -> Iterator[int]:
        self.module.train()
        with tqdm(total=self.steps, initial=self.done, desc=self.directory.name, mininterval=5) as self._bar:
            while self.done < self.steps:
                yield self.done
        self.module.eval()

    def generator(self, step: int) -> torch.Generator:
        """Return a generator of random numbers that depend only on the seed and the step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def update(self, losses: dict[str, Tensor]) -> None:
        """Take one step down the gradient of `losses["loss"]`, and record all entries of `losses`."""
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate_now()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done += 1
        record = {"step": self.done, **{name: round(float(value.detach()), 5) for name, value in losses.items()}}
        with (self.directory / _LOSSES).open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if name != "step"}, False)
            self._bar.update()
        if self.done % self.save_every == 0 or self.done == self.steps:
            self.save()

    def save(self) -> None:
        """Write the state that a resumed run needs, and plot the losses so far."""
        state = {
            "module": self.module.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "done": self.done,
        }
        unfinished = self.directory / (_STATE + ".unfinished")
        torch.save(state, unfinished)
        unfinished.rename(self.directory / _STATE)
        plot_losses(self.directory)

    def _resume(self) -> None:
        state = torch.load(self.directory / _STATE)
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = state["done"]

    def _rate_now(self) -> float:
        progress = min(1.0, self.done / self.steps)
        return (
            self.rate * min(1.0, (self.done + 1) / self.warmup) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        )


def trained(module: Any, directory: Path) -> Any:
    """Load the weights that a run has left in `directory` into `module`, and return `module`."""
    assert isinstance(module, nn.Module)
    module.load_state_dict(torch.load(directory / _STATE)["module"])
    return module.eval()


def plot_losses(directory: Path) -> None:
    """Write losses.png beside losses.jsonl: every recorded value over the steps, smoothed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = {line["step"]: line for line in map(json.loads, (directory / _LOSSES).read_text().splitlines())}
    figure, axes = pyplot.subplots(figsize=(8, 5))
    names = sorted({name for record in records.values() for name in record} - {"step"})
    for name in names:
        series = [(step, record[name]) for step, record in sorted(records.items()) if name in record]
        smooth, curve = series[0][1], []
        for _, value in series:
            smooth += 0.05 * (value - smooth)
            curve.append(smooth)
        axes.plot([step for step, _ in series], curve, label=name)
    axes.set(xlabel="step", yscale="log", title=directory.name)
    axes.legend()
    figure.savefig(directory / _PLOT, dpi=80)
    pyplot.close(figure)
