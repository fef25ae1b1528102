"""Methods that start from trained runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import nn

from bmlr.fusion import Fusion
from bmlr.methods._base import Method
from bmlr.methods._unimodal import Unimodal
from bmlr.model import MultimodalClassifier

#: Model and method of trained runs, by the names of :meth:`bmlr.Method.required_runs`.
Trained = Mapping[str, tuple[MultimodalClassifier, Method]]


def take_encoder(name: str, trained: Trained, model: MultimodalClassifier) -> None:
    """Copy the encoder of a modality from its run into a model.

    Raises:
        ValueError: If it has other layers.
    """
    state, encoder = trained[name][0].encoders[name].state_dict(), model.encoders[name]
    shapes, wanted = ({key: tuple(x.shape) for key, x in part.items()} for part in (state, encoder.state_dict()))
    if shapes != wanted:
        different = sorted(dict(shapes.items() ^ wanted.items()))
        raise ValueError(
            f"`trained['{name}']` should hold an encoder with the layers of the model's. They differ in "
            f"{', '.join(different[:4])}."
        )
    encoder.load_state_dict(state)


def take_head(name: str, trained: Trained, heads: nn.ModuleDict) -> None:
    """Copy the head of a modality from its run."""
    heads[name].load_state_dict(trained[name][1].get_submodule("head").state_dict())


def take_parts(trained: Trained, model: MultimodalClassifier, heads: nn.ModuleDict | None = None) -> None:
    """Copy the trained encoders into a model, and the trained heads, where there are any to take."""
    for name in model.modalities:
        take_encoder(name, trained, model)
        if heads is not None:
            take_head(name, trained, heads)


class StartingMethod(Method):
    """A method that starts from trained runs, by default one of each modality alone.

    Example:
        >>> import bmlr
        >>> bmlr.methods.UMT().required_runs(("audio", "video"))
        {'audio': Unimodal(modality='audio'), 'video': Unimodal(modality='video')}
    """

    state_attributes: ClassVar[tuple[str, ...]] = (*Method.state_attributes, "has_started")

    def __init__(self) -> None:
        super().__init__()
        #: Whether the trained runs have come.
        self.has_started = False

    def setup(self, model: MultimodalClassifier) -> None:
        """Check the model; the trained runs are still to come."""
        super().setup(model)
        self.has_started = False

    def required_runs(self, modalities: Collection[str]) -> dict[str, Method]:
        """Each modality alone, by its name."""
        return {name: Unimodal(name) for name in modalities}

    def start_from(self, trained: Trained, model: MultimodalClassifier) -> None:
        """Take over the trained runs.

        Call it once, after :meth:`setup` and before the optimiser is made. :func:`bmlr.training.train` does.

        Args:
            trained: Model and method of each run, by the names of :meth:`required_runs`.
            model: The model this method trains, with encoders of the same layers.

        Raises:
            ValueError: If a run is missing, is of another method, or its model has other layers.
            RuntimeError: If the method is not set up for the model.
        """
        name = type(self).__name__
        if not self.is_set_up_for(model):
            raise RuntimeError(f"{name} is not set up for this model: call `method.setup(model)` before `start_from`.")
        required = self.required_runs(model.modalities)
        if trained.keys() != required.keys():
            raise ValueError(
                f"`trained` should hold the runs {name} starts from, {list(required)}, each a pair (model, method). "
                f"Found {list(trained)}."
            )
        for key, method in required.items():
            of_run, by = trained[key]
            if repr(by) != repr(method):
                raise ValueError(f"`trained['{key}']` should be a run of {method}. Found {by}.")
            if not by.is_set_up_for(of_run):
                raise ValueError(f"`trained['{key}']` should be a model and the method that trained it. {by} did not.")
        self.take_runs(trained, model)
        self.has_started = True

    @abstractmethod
    def take_runs(self, trained: Trained, model: MultimodalClassifier) -> None:
        """Copy what is needed of trained runs, which are checked."""

    def check_started(self, modalities: Collection[str]) -> None:
        """Check that the trained runs have come.

        Raises:
            RuntimeError: If they have not.
        """
        if not self.has_started and self.required_runs(modalities):
            raise RuntimeError(
                f"{type(self).__name__} starts from runs of single modalities: call "
                "`method.start_from(trained, model)` after `method.setup(model)`, or train by bmlr.training.train, "
                "which makes them."
            )

    def _check_calls(self, fusion: Fusion, tag: str) -> None:
        self.check_started(fusion.modalities)
        super()._check_calls(fusion, tag)
