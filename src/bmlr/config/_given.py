"""Finished models: what a run keeps of one, and how it is taken back."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bmlr.config._classes import class_path
from bmlr.data import MultimodalData, SelectedModalities
from bmlr.model import MultimodalClassifier


@dataclasses.dataclass
class GivenModel:
    """A finished model in place of options, as a run keeps it: what it is, but not its code.

    Attributes:
        given: Class of the model.
        modalities: Its modalities; None where they are all of the data set.
        structure: Checksum of its layers, and of the names and shapes of its weights.
        weights: Checksum of the weights that training began with.
        network: The model itself; None in a run that was read, until it is given again.
    """

    given: str
    modalities: tuple[str, ...] | None
    structure: str
    weights: str
    network: MultimodalClassifier | None = dataclasses.field(default=None, repr=False, compare=False)

    #: A finished model has no classes to import by their path.
    own_modules = ()

    @classmethod
    def of(cls, network: MultimodalClassifier, data: MultimodalData) -> GivenModel:
        """Describe a model that is to be trained on a data set.

        Raises:
            ValueError: If its modalities or its task are not those of the data set.
        """
        if not data.modalities:
            data.prepare()
        check_network(network, SelectedModalities(data, network.modalities))
        selected = tuple(name for name in data.modalities if name in network.modalities)
        modalities = None if len(selected) == len(data.modalities) else selected
        return cls(
            class_path(type(network)), modalities, structure_checksum(network), weights_checksum(network), network
        )

    @property
    def fusion_name(self) -> str:
        """Class of the model, in place of the fusion's name."""
        return self.given

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the model."""
        names = None if self.modalities is None else list(self.modalities)
        return {"given": self.given, "modalities": names, "structure": self.structure, "weights": self.weights}

    def select(self, data: MultimodalData) -> MultimodalData:
        """Restrict a data set to the modalities of the model."""
        return data if self.modalities is None else SelectedModalities(data, self.modalities)

    def take(self, network: MultimodalClassifier | None, where: str) -> GivenModel:
        """The same with the model that was given again.

        Raises:
            ValueError: If there is none, or it is another; the message begins with ``where``.
        """
        if network is None:
            raise ValueError(
                f"{where} was trained on a finished model, {self.given}, whose code it does not hold: give the model "
                "again in Python, as in bmlr.load(RUN, model=model). A run of --model.net module.function is read by "
                "every command."
            )
        if class_path(type(network)) != self.given or structure_checksum(network) != self.structure:
            raise ValueError(
                f"`model` should be the one that {where} was trained on, {self.given}. Found "
                f"{class_path(type(network))} with other layers, or weights of other names or shapes."
            )
        return dataclasses.replace(self, network=network)

    @contextlib.contextmanager
    def restored_after_errors(self) -> Iterator[None]:
        """Put the first weights back where training stops early, so that the same call resumes it."""
        network = self.network
        if network is None:
            yield
            return
        mode, tensors = network.training, [*network.parameters(), *network.buffers()]
        before = [(tensor, tensor.detach().clone()) for tensor in tensors]
        try:
            yield
        except BaseException:
            for tensor, value in before:
                tensor.data = value
                tensor.grad = None
            network.train(mode)
            raise


def check_network(network: MultimodalClassifier, data: MultimodalData) -> None:
    """Check that a whole model fits a data set.

    Raises:
        ValueError: If its modalities or its task do not.
    """
    if set(network.modalities) != set(data.modalities):
        raise ValueError(
            f"The model should have the modalities of the data, {', '.join(data.modalities)}. "
            f"Found {', '.join(network.modalities)}: choose them by `modalities`."
        )
    wanted, found = (f"{task.name} with {task.num_outputs} outputs" for task in (data.task, network.task))
    if wanted != found:
        raise ValueError(f"The model should be for the data's task, {wanted}. Found {found}.")


def structure_checksum(network: MultimodalClassifier) -> str:
    """Checksum of the layers, as they print themselves, and of the names and shapes of all weights."""
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(network))
    shapes = [f"{name} {tuple(value.shape)}" for name, value in network.state_dict().items()]
    return hashlib.sha256("\n".join([layers, *shapes]).encode()).hexdigest()


def weights_checksum(network: MultimodalClassifier) -> str:
    """Checksum of all weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            content = value.detach().cpu().contiguous()
            digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
