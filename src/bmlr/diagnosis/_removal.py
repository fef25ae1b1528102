"""Predictors that remove modalities: by zero features or replaced inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice
from bmlr.batch import Batch
from bmlr.diagnosis._predictions import SubsetPredictor, check_modalities, first_modalities
from bmlr.diagnosis._replacements import RemovalOptions, Replacements, chosen_inputs, make_replacements
from bmlr.functional import subsets_of
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier, Output

#: A model given as a function: inputs by modality to logits of shape (B, C).
ModelFunction: TypeAlias = Callable[[dict[str, Tensor]], Tensor]


class AbsentModalityPredictor(SubsetPredictor):
    """Removes modalities of a :class:`bmlr.MultimodalClassifier` as absent ones: features of zero.

    The encoders run once per batch.

    Args:
        model: The model.
        method: The method whose predictions count; None takes the model's logits.
    """

    def __init__(self, model: MultimodalClassifier, method: Method | None = None) -> None:
        parameter = next(model.parameters())
        super().__init__(
            model.modalities,
            [model] if method is None else [model, method],
            "its features replaced by zero, as for a modality that is absent",
            parameter.device,
        )
        self.model, self.method, self.dtype = model, method, parameter.dtype

    def to_model(self, batch: Batch) -> Batch:
        """The batch on the model's device, floating point inputs in its type."""
        return batch.to(self.device or "cpu", dtype=self.dtype)

    def predict_subsets(self, batch: Batch) -> tuple[dict[frozenset[str], Tensor], dict[str, Tensor]]:
        """Logits with every subset, and unimodal logits."""
        output = self.model(batch.inputs, batch.present)
        logits = {}
        for subset in subsets_of(self.modalities):
            kept = {u: z if u in subset else torch.zeros_like(z) for u, z in output.features.items()}
            logits[subset] = self._prediction(output.replace_features(kept)).logits
        return logits, self._prediction(output).unimodal_logits

    def predict(self, batch: Batch) -> Prediction:
        """The method's prediction on a batch of any device."""
        moved = self.to_model(batch)
        return self._prediction(self.model(moved.inputs, moved.present))

    def _prediction(self, output: Output) -> Prediction:
        if self.method is not None:
            return self.method.predict(output)
        return Prediction(output.logits, output.unimodal_logits)


class ReplacedInputPredictor(SubsetPredictor):
    """Removes modalities of any model by replacing their inputs.

    Args:
        predict: Logits, shape (B, C), of a batch.
        unimodal: Unimodal logits of a batch; None for a model without.
        modalities: Names of the modalities; other inputs are passed through.
        modules: Modules to switch to evaluation mode.
        device: Device of the batches; None leaves them.
        replacements: Replacements of the inputs.
    """

    def __init__(
        self,
        predict: Callable[[Batch], Tensor],
        unimodal: Callable[[Batch], dict[str, Tensor]] | None,
        *,
        modalities: Sequence[str],
        modules: Sequence[nn.Module],
        device: torch.device | None,
        replacements: Replacements,
    ) -> None:
        super().__init__(modalities, modules, replacements.description, device, shuffles=replacements.shuffles)
        self.predict, self.unimodal, self.replacements = predict, unimodal, replacements

    def predict_subsets(self, batch: Batch) -> tuple[dict[frozenset[str], Tensor], dict[str, Tensor]]:
        """Logits with every subset, and unimodal logits if the model has them."""
        # The same draws for every subset: differences between subsets then contain no noise of the draws.
        draws = [{u: self._replace(u, batch) for u in self.modalities} for _ in range(self.replacements.n_draws)]
        logits = {}
        for subset in subsets_of(self.modalities):
            removed = [u for u in self.modalities if u not in subset]
            if not removed:
                logits[subset] = self.predict(batch)
                continue
            inputs = [{**batch.inputs, **{u: draw[u] for u in removed}} for draw in draws]
            logits[subset] = mean_logits([self.predict(dataclasses.replace(batch, inputs=x)) for x in inputs])
        return logits, {} if self.unimodal is None else self.unimodal(batch)

    def _replace(self, name: str, batch: Batch) -> Any:
        """Replace inputs; samples without the modality keep their placeholder."""
        inputs = batch.inputs[name]
        replaced = self.replacements.by_name[name](inputs)
        return chosen_inputs((batch.present or {}).get(name), replaced, inputs)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Mean of logits over draws, shape (B, C).

    It is the normalised geometric mean of the probabilities. An arithmetic mean of probabilities would keep each draw's
    vote for a class. In log space the votes of a strong modality's draws cancel, and the remaining modalities decide.

    Example:
        >>> import torch
        >>> mean_logits([torch.tensor([[4.0, 0.0, 3.0]]), torch.tensor([[0.0, 4.0, 3.0]])]).argmax(1)
        tensor([2])
    """
    return logits[0] if len(logits) == 1 else torch.stack([values.double() for values in logits]).mean(0)


def make_predictor(
    model: MultimodalClassifier | ModelFunction,
    batches: Iterable[Any],
    options: RemovalOptions | None = None,
    *,
    method: Method | None = None,
    module: nn.Module | Sequence[nn.Module] | None = None,
    seed: int = 0,
) -> SubsetPredictor:
    """The predictor of a model; see :func:`bmlr.diagnosis.diagnose` for the arguments.

    Raises:
        ValueError: If an argument does not fit the model or the batches.
    """
    options = options or RemovalOptions()
    if isinstance(model, MultimodalClassifier):
        if module is not None:
            raise ValueError("`module` is for a model given as a function. Found it with a bmlr.MultimodalClassifier.")
        return _classifier_predictor(AbsentModalityPredictor(model, method), batches, options, seed)
    if not callable(model):
        raise ValueError(
            "`model` should be a bmlr.MultimodalClassifier or a function from inputs to logits. "
            f"Found {type(model).__name__}."
        )
    if method is not None:
        raise ValueError("`method` goes with a bmlr.MultimodalClassifier. Found a model given as a function.")
    check_choice("mode", options.mode or "mean", ("zero", "mean", "shuffle", "noise"))
    names = first_modalities(batches) if options.modalities is None else options.modalities
    check_modalities(names)
    modules = modules_of(model, module)
    return ReplacedInputPredictor(
        lambda batch: model(dict(batch.inputs)),
        None,
        modalities=names,
        modules=modules,
        device=device_of(modules),
        replacements=make_replacements(names, batches, options, seed),
    )


def modules_of(model: Callable[..., Tensor], module: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """Modules to switch to evaluation mode.

    A function does not reveal its own.
    """
    if module is None:
        if isinstance(model, nn.Module):
            return [model]
        # In training mode dropout would blur the predictions and batch normalisation would change the model.
        raise ValueError(
            "`module` should be given with a function: the module behind it (or a list of several, or an empty list), "
            "to switch to evaluation mode. Found None."
        )
    return [module] if isinstance(module, nn.Module) else list(module)


def device_of(modules: Sequence[nn.Module]) -> torch.device | None:
    """Device of the first parameter; None without any."""
    parameter = next((p for module in modules for p in module.parameters()), None)
    return None if parameter is None else parameter.device


def _classifier_predictor(
    predictor: AbsentModalityPredictor, batches: Iterable[Any], options: RemovalOptions, seed: int
) -> SubsetPredictor:
    """The predictor itself, or one that replaces inputs."""
    mode = check_choice("mode", options.mode or "absent", ("absent", "zero", "mean", "shuffle", "noise"))
    names = predictor.modalities
    check_modalities(names)
    if options.modalities is not None and set(options.modalities) != set(names):
        raise ValueError(
            f"`modalities` should be those of the model, {list(names)}, or None. Found {list(options.modalities)}."
        )
    if mode == "absent":
        if options.baselines:
            raise ValueError(
                "`baselines` replace inputs: give `mode` = 'zero', 'mean', 'shuffle' or 'noise' with them."
            )
        return predictor
    return ReplacedInputPredictor(
        lambda batch: predictor.predict(batch).logits,
        lambda batch: predictor.predict(batch).unimodal_logits,
        modalities=names,
        modules=predictor.modules,
        device=predictor.device,
        replacements=make_replacements(names, batches, options, seed),
    )
