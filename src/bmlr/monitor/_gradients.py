"""Gradient norms of the encoders during training, and conflict of losses."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bmlr._checks import check_integer
from bmlr._files import atomic_write
from bmlr._modes import preserved_buffers
from bmlr._random import preserved_random_state
from bmlr.batch import Batch, as_batch
from bmlr.functional import widened
from bmlr.model import MultimodalClassifier

#: Name of the recording in the directory of a run.
GRADIENTS = "gradients.csv"
Encoders = MultimodalClassifier | Mapping[str, nn.Module]


def gradient_norms(encoders: Encoders) -> dict[str, Tensor]:
    """Euclidean norm of each encoder's current gradient.

    A scalar per name; 0 without a gradient.

    Args:
        encoders: A model of the library, or modules by modality.

    Example:
        >>> import torch
        >>> audio = torch.nn.Linear(1, 1, bias=False)
        >>> (3 * audio(torch.ones(1, 1))).sum().backward()
        >>> gradient_norms({"audio": audio})["audio"]
        tensor(3.)
    """
    norms = {}
    for name, encoder in _encoders(encoders).items():
        parameters = list(encoder.parameters())
        gradients = [p.grad.detach() for p in parameters if p.grad is not None]
        device = parameters[0].device if parameters else None
        norms[name] = (
            torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(widened(g)) for g in gradients]))
            if gradients
            else torch.zeros((), device=device)
        )
    return norms


def gradient_conflict(
    fused_loss: Tensor, unimodal_losses: Mapping[str, Tensor], encoders: Encoders
) -> dict[str, Tensor]:
    r"""Cosine between the gradients of multimodal and unimodal loss on each encoder.

    .. math:: \cos \beta_u = \frac{g_m^\top g_u}{\lVert g_m \rVert\,\lVert g_u \rVert}

    over all parameters of the encoder (MMPareto, Wei and Hu, ICML 2024). Negative is conflict: a step that helps one
    loss hurts the other. NaN if one of the gradients is zero. The parameters' own gradients stay as they are.

    Args:
        fused_loss: Loss of the multimodal prediction, a scalar with its graph; the graph is kept.
        unimodal_losses: Loss of each modality's prediction.
        encoders: A model of the library, or modules by modality.

    Example:
        >>> import torch
        >>> audio = torch.nn.Linear(2, 1, bias=False)
        >>> out = audio(torch.eye(2))
        >>> gradient_conflict(out[0].sum(), {"audio": -out.sum()}, {"audio": audio})["audio"]
        tensor(-0.7071)
    """
    modules = _encoders(encoders)
    cosines = {}
    for name, loss in unimodal_losses.items():
        parameters = [p for p in modules[name].parameters() if p.requires_grad]
        fused, unimodal = (_flat_gradient(value, parameters) for value in (fused_loss, loss))
        norms = torch.linalg.vector_norm(fused) * torch.linalg.vector_norm(unimodal)
        cosines[name] = torch.where(norms > 0, (fused @ unimodal) / norms, torch.nan)
    return cosines


def _flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    if not parameters or not loss.requires_grad:
        return torch.zeros(1, device=loss.device)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            widened((torch.zeros_like(p) if g is None else g).detach().flatten())
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


def batch_conflict(model: MultimodalClassifier, batch: Batch) -> dict[str, Tensor]:
    """Conflict of gradients on one batch.

    A separate forward pass without side effects runs in the model's current modes, on copies of the buffers (batch
    statistics are used but not kept). Random states are restored, and the parameters' own gradients stay as they are.

    Args:
        model: The model.
        batch: The batch, on the model's device.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> batch = bmlr.Batch({"a": torch.randn(5, 4), "v": torch.randn(5, 6)}, torch.arange(5) % 3)
        >>> sorted(batch_conflict(model, batch))
        ['a', 'v']
    """
    if model.fusion.untrained_by:
        return {}
    with preserved_random_state(), preserved_buffers(model), torch.enable_grad():
        output = model(batch.inputs, batch.present)
        fused = output.task.loss(output.logits, batch.targets)
        unimodal = {
            u: output.task.loss(logits, batch.targets, output.mask(u)) for u, logits in output.unimodal_logits.items()
        }
        return gradient_conflict(fused, unimodal, model)


class GradientMonitor:
    """Records gradient norms of each encoder and conflict of losses during training.

    The norms are those the optimiser sees: after a method's changes and after clipping. Numbers stay on the device
    until they are written, so that no step waits for a transfer.

    Under Lightning: ``Trainer(callbacks=[MonitorCallback(GradientMonitor(directory))])``. In a loop of your own::

        with monitor.watch(model):  # norms at every step of an optimiser
            ...

    or ``monitor.record(model, batch)`` between backward pass and step; with a batch the conflict is measured too,
    every ``conflict_every`` records. For any other model give its encoders by name,
    ``{"audio": net.audio, "video": net.video}``, and the result of :func:`gradient_conflict` as ``conflict``.

    Args:
        directory: Directory of ``gradients.csv``, such as that of a run; None keeps the records in memory.
        norm_every: Steps between records of norms.
        conflict_every: Recorded steps between measurements of conflict.

    Raises:
        ValueError: If a parameter is not a positive integer.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> optimizer, monitor = torch.optim.Adam(model.parameters()), GradientMonitor(conflict_every=1)
        >>> batch = bmlr.Batch({"a": torch.randn(5, 4), "v": torch.randn(5, 6)}, torch.arange(5) % 3)
        >>> torch.nn.functional.cross_entropy(model(batch.inputs).logits, batch.targets).backward()
        >>> monitor.record(model, batch)
        >>> list(monitor.rows[0])
        ['step', 'epoch', 'norm_a', 'norm_v', 'ratio_a/v', 'conflict_a', 'conflict_v']
    """

    def __init__(self, directory: Path | str | None = None, *, norm_every: int = 1, conflict_every: int = 50) -> None:
        self.path = None if directory is None else Path(directory) / GRADIENTS
        self.norm_every = check_integer("norm_every", norm_every, 1)
        self.conflict_every = check_integer("conflict_every", conflict_every, 1)
        self.step = 0
        self.epoch = 0
        self._rows: list[dict[str, float]] = []
        self._pending: list[dict[str, float | Tensor]] = []

    def record(
        self, encoders: Encoders, batch: Any = None, *, conflict: Mapping[str, float | Tensor] | None = None
    ) -> None:
        """Record the current gradients of the encoders, and count the step.

        Args:
            encoders: A model of the library, or modules by modality.
            batch: Batch of this step, for the conflict of a model of this library.
            conflict: Cosines of any other model.
        """
        if self.due(self.norm_every):
            row: dict[str, float | Tensor] = {"step": self.step, "epoch": self.epoch}
            row |= {f"norm_{u}": value for u, value in gradient_norms(encoders).items()}
            if conflict is None and self.wants_conflict and batch is not None:
                if not isinstance(encoders, MultimodalClassifier):
                    raise ValueError(
                        "`batch` goes with a bmlr.MultimodalClassifier; give `conflict` for any other model."
                    )
                conflict = batch_conflict(encoders, _on_device(as_batch(batch), encoders))
            row |= {f"conflict_{u}": value for u, value in (conflict or {}).items()}
            self._pending.append(row)
        self.step += 1

    def due(self, every: int) -> bool:
        """Whether the step is a multiple of ``every``."""
        return self.step % every == 0

    @property
    def wants_conflict(self) -> bool:
        """Whether conflict is due at this step."""
        return self.step % (self.norm_every * self.conflict_every) == 0

    @contextmanager
    def watch(self, encoders: Encoders) -> Iterator[GradientMonitor]:
        """Record norms at every step of the encoders' optimisers.

        The file is written at the end. Gradients are read right after the step.
        """
        watched = {id(p) for module in _encoders(encoders).values() for p in module.parameters()}

        def record_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if any(id(p) in watched for group in optimizer.param_groups for p in group["params"]):
                self.record(encoders)

        handle = register_optimizer_step_post_hook(record_step)
        try:
            yield self
        finally:
            handle.remove()
            self.write()

    @property
    def rows(self) -> list[dict[str, float]]:
        """Numbers by name, per recorded step; conflict where it was measured."""
        for row in self._pending:
            numbers = {name: float(value) for name, value in row.items()}
            norms = {name[5:]: value for name, value in numbers.items() if name.startswith("norm_")}
            ratios = {f"ratio_{a}/{b}": _ratio(norms[a], norms[b]) for a, b in itertools.combinations(norms, 2)}
            conflict = {name: numbers.pop(name) for name in list(numbers) if name.startswith("conflict_")}
            self._rows.append({**numbers, **ratios, **conflict})
        self._pending.clear()
        return self._rows

    def write(self) -> None:
        """Write ``gradients.csv`` atomically, given a directory and a record."""
        rows = self.rows
        if self.path is None or not rows:
            return
        columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))

        def save(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                for row in rows:
                    writer.writerow({name: int(v) if name in {"step", "epoch"} else v for name, v in row.items()})

        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, save)

    def resume(self, step: int) -> None:
        """Continue from a step, keeping the file's records of earlier steps."""
        self.step = step
        self._pending.clear()
        if self.path is not None and self.path.is_file():
            self._rows = [row for row in read_gradients(self.path) if row["step"] < step]


def read_gradients(path: Path | str) -> list[dict[str, float]]:
    """Read the rows of ``gradients.csv`` without empty cells.

    Args:
        path: The file, or a directory that holds it.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not a recording of gradients.
    """
    path = Path(path)
    path = path / GRADIENTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There are no gradients in {path.parent}: {path.name} is missing.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError(f"{path} should have a column step. Found {reader.fieldnames}.")
        try:
            return [{name: float(value) for name, value in row.items() if value} for row in reader]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error


def summarise_gradients(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Medians over the recorded steps per modality, and the rate of conflict.

    Returns:
        By modality: ``norm`` (median), ``norm_fraction`` (median of norm / sum of all norms), ``conflict`` (median
        cosine) and ``conflict_rate`` (fraction of cosines below zero); None without measurements.

    Example:
        >>> summary = summarise_gradients([{"step": 0, "norm_a": 3.0, "norm_v": 1.0, "conflict_v": -0.5}])
        >>> summary["v"]
        {'norm': 1.0, 'norm_fraction': 0.25, 'conflict': -0.5, 'conflict_rate': 1.0}
    """
    names = [name[5:] for name in dict.fromkeys(itertools.chain.from_iterable(rows)) if name.startswith("norm_")]
    summary: dict[str, dict[str, float | None]] = {}
    for u in names:
        norms = [row[f"norm_{u}"] for row in rows if math.isfinite(row.get(f"norm_{u}", math.nan))]
        totals = [(row.get(f"norm_{u}", math.nan), sum(row.get(f"norm_{v}", math.nan) for v in names)) for row in rows]
        cosines = [row[f"conflict_{u}"] for row in rows if math.isfinite(row.get(f"conflict_{u}", math.nan))]
        summary[u] = {
            "norm": _median(norms),
            "norm_fraction": _median([norm / total for norm, total in totals if total > 0]),
            "conflict": _median(cosines),
            "conflict_rate": sum(c < 0 for c in cosines) / len(cosines) if cosines else None,
        }
    return summary


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _ratio(first: float, second: float) -> float:
    return first / second if second else math.inf if first else math.nan


def _encoders(encoders: Encoders) -> dict[str, nn.Module]:
    return dict(encoders.encoders.items()) if isinstance(encoders, MultimodalClassifier) else dict(encoders)


def _on_device(batch: Batch, model: MultimodalClassifier) -> Batch:
    parameter = next(model.parameters())
    return batch.to(parameter.device, dtype=parameter.dtype)
