"""Fitting a module: one function for a version from scratch and for an update of one.

Deterministic: one thread, and every random number comes from the seed. AdamW or SGD at a constant learning rate (an update is too
short for a schedule, and a full training stops early and keeps its best epoch), label smoothing for classes, Huber's loss for numbers.

Embedding tables are trained by sparse gradients: a step costs what its rows hold, and not what the table holds. With AdamW they
follow Adam lazily (an entry moves, and its moments decay, only in steps that hold it) and without weight decay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.encode import Tensors
from schemas.spec import ModelSpec
from schemas.tensors import input_shape
from training.lazy_adam import LazyAdam
from training.tensors import SCORED_ROWS, batch

_CALIBRATION_STEPS: Final = 60


class Examples(NamedTuple):
    """Encoded rows and their targets (index of the class, or value), of the same length."""

    tensors: Tensors
    targets: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.targets)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a run's log."""

    epoch: int
    step: int
    batch_loss: float | None
    """None in the line before the first step."""
    val_accuracy: float | None = None
    """On rows that this run does not fit (a regression: minus the mean squared error); at the end of each epoch."""
    val_loss: float | None = None


Report = Callable[[Step], None]


def quiet(_step: Step) -> None:
    """Report to nobody."""


def warm_up() -> None:
    """Import what torch imports only with its first optimizer: seconds, for which the first update would wait."""
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """One thread and torch's generator from `seed`; the caller's state comes back afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & ((1 << 63) - 1))
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def fit(
    module: nn.Module,
    spec: ModelSpec,
    examples: Examples,
    unseen: Examples,
    *,
    epochs: int,
    patience: int | None,
    seed: int,
    report: Report = quiet,
) -> list[Step]:
    """Fit `module` in place on `examples`; return the line before the first step and those at the end of each epoch.

    With `patience` the weights of the epoch with the least loss on `unseen` are kept, and that many epochs without a better one
    end the fit; without, `epochs` are run and the last weights stay.
    """
    shape = input_shape(spec)
    order = np.random.default_rng(seed)
    optimizers = _optimizers(module, spec)
    loss_of = _loss(spec, examples.targets)
    curve = [_checked(module, spec, unseen, Step(epoch=0, step=0, batch_loss=None))]
    report(curve[0])
    best: dict[str, Tensor] = {}
    best_loss, waited, step = np.inf, 0, 0
    for epoch in range(1, epochs + 1):
        module.train()
        shuffled = order.permutation(len(examples))
        for start in range(0, len(shuffled), spec.train.batch_rows):
            rows = shuffled[start : start + spec.train.batch_rows]
            loss = loss_of(module(batch(shape, examples.tensors, rows)), examples.targets[rows])
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            line = Step(epoch=epoch, step=step, batch_loss=float(loss.detach()))
            if start + spec.train.batch_rows < len(shuffled):
                report(line)
        line = _checked(module, spec, unseen, line)
        report(line)
        curve.append(line)
        if patience is not None and line.val_loss is not None:
            if line.val_loss < best_loss:
                best, best_loss, waited = copy.deepcopy(module.state_dict()), line.val_loss, 0
            elif (waited := waited + 1) >= patience:
                break
    if patience is not None and np.isfinite(best_loss):
        module.load_state_dict(best)
    module.eval()
    return curve


def _optimizers(module: nn.Module, spec: ModelSpec) -> list[torch.optim.Optimizer]:
    """One for the tables, which give sparse gradients from now on, and one for all other weights."""
    tables = {}
    for part in module.modules():
        # The gradients that torch cannot give sparse stay as they are.
        if isinstance(part, nn.Embedding) or (isinstance(part, nn.EmbeddingBag) and part.mode != "max"):
            part.sparse = True
            tables[id(part.weight)] = part.weight
    sparse = [weights for weights in tables.values() if weights.requires_grad]
    dense = [weights for weights in module.parameters() if id(weights) not in tables]
    settings = spec.train.optimizer
    found: list[torch.optim.Optimizer] = []
    if settings.name == "adamw":
        if dense:
            found.append(
                torch.optim.AdamW(dense, settings.lr, weight_decay=settings.weight_decay, fused=True)
            )
        if sparse:
            found.append(LazyAdam(sparse, settings.lr))
        return found
    if dense:
        found.append(torch.optim.SGD(dense, settings.lr, weight_decay=settings.weight_decay))
    if sparse:
        found.append(torch.optim.SGD(sparse, settings.lr))
    return found


def logits(module: nn.Module, spec: ModelSpec, tensors: Tensors, rows: int) -> Tensor:
    """float32 [rows, outputs], in evaluation mode and without gradients."""
    shape = input_shape(spec)
    module.eval()
    with torch.inference_mode():
        parts = [
            module(batch(shape, tensors, np.arange(start, min(start + SCORED_ROWS, rows)))).float()
            for start in range(0, rows, SCORED_ROWS)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, spec.outputs)


def temperature(module: nn.Module, spec: ModelSpec, unseen: Examples) -> float:
    """The temperature that minimises the log loss of `unseen` (Guo et al., 2017, https://arxiv.org/abs/1706.04599); 1 without rows
    or for a regression. Found by golden-section search of its logarithm in ± log 10."""
    if spec.task == "regression" or not len(unseen):
        return 1.0
    found = logits(module, spec, unseen.tensors, len(unseen)).double()
    truth = torch.from_numpy(unseen.targets.astype(np.int64))

    def loss(log_temperature: float) -> float:
        return float(nn.functional.cross_entropy(found / np.exp(log_temperature), truth))

    ratio = (np.sqrt(5) - 1) / 2
    low, high = -np.log(10), np.log(10)
    for _ in range(_CALIBRATION_STEPS):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        if loss(first) < loss(second):
            high = second
        else:
            low = first
    return float(np.exp((low + high) / 2))


def _loss(spec: ModelSpec, targets: NDArray[np.float64]) -> Callable[[Tensor, NDArray[np.float64]], Tensor]:
    """Loss of a batch's logits against its targets."""
    if spec.task == "regression":
        # In units of the targets' deviation, so that one learning rate and one Huber threshold fit every scale.
        scale = float(targets.std()) or 1.0

        def huber(found: Tensor, truth: NDArray[np.float64]) -> Tensor:
            wanted = torch.from_numpy(truth.astype(np.float32))
            return nn.functional.huber_loss(found[:, 0] / scale, wanted / scale)

        return huber

    def cross_entropy(found: Tensor, truth: NDArray[np.float64]) -> Tensor:
        return nn.functional.cross_entropy(
            found, torch.from_numpy(truth.astype(np.int64)), label_smoothing=spec.train.label_smoothing
        )

    return cross_entropy


def _checked(module: nn.Module, spec: ModelSpec, unseen: Examples, line: Step) -> Step:
    """`line` with what the unseen rows say."""
    if not len(unseen):
        return line
    found = logits(module, spec, unseen.tensors, len(unseen))
    if spec.task == "regression":
        loss = float(((found[:, 0].double() - torch.from_numpy(unseen.targets)) ** 2).mean())
        return msgspec.structs.replace(line, val_accuracy=-loss, val_loss=loss)
    truth = torch.from_numpy(unseen.targets.astype(np.int64))
    return msgspec.structs.replace(
        line,
        val_accuracy=float((found.argmax(1) == truth).float().mean()),
        val_loss=float(nn.functional.cross_entropy(found, truth)),
    )
