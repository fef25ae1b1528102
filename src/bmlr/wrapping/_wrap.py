"""The wrapped model and its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bmlr._checks import nearest_name
from bmlr._modes import module_mode
from bmlr.batch import input_size
from bmlr.encoders.features import masked_features
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Task, as_task
from bmlr.wrapping._parts import EncoderParts, WrappedFusion, all_trainable, owned_parameters
from bmlr.wrapping._runner import Runner
from bmlr.wrapping._sites import Site, map_values

#: Relative and absolute difference up to which two passes count as equal.
_TOLERANCE = 1e-4


def wrap(
    net: nn.Module,
    encoders: Mapping[str, str | nn.Module],
    example: Mapping[str, Any],
    *,
    inputs: Mapping[str, str | Sequence[str]] | None = None,
    head: str | nn.Module | None = None,
    task: Task | None = None,
) -> WrappedModel:
    """Let every method train a model that is already written.

    Args:
        net: A model whose ``forward`` takes tensors by name and returns logits of shape (B, C): a tensor, the first
            entry of a tuple, or the entry ``logits`` of a dictionary or of a Hugging Face ``ModelOutput``.
        encoders: By modality, the module whose output are its features, or its name, such as ``bert.pooler``; also the
            name of a method, such as ``encode_text``. Features have shape (B, d) or (B, …, d).
        example: A small batch of at least two different samples: the arguments of ``net.forward`` by name, without
            targets. It is run once, in evaluation mode, to find parameters, widths and classes.
        inputs: By modality, the arguments of ``net.forward`` that are its input, such as
            ``{"text": ("input_ids", "attention_mask")}``. A modality left out is an argument of its own name.
        head: Module whose output are the logits, or its name; None takes what ``forward`` returns.
        task: Task of :mod:`bmlr.tasks`; None is that of classes, as many as there are logits.

    Returns:
        A :class:`MultimodalClassifier` that shares its parameters with ``net``. ``net`` is unchanged: its code, the
        names of its ``state_dict()``, and its use without this library.

    Raises:
        ValueError: If a name does not exist, an encoder or the head does not run exactly once, an encoder reads another
            modality's input, or the logits are not a function of the features alone; the message says which.

    Example:
        >>> import torch, bmlr
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ear, self.eye = torch.nn.Linear(4, 8), torch.nn.Linear(6, 8)
        ...         self.classifier = torch.nn.Linear(16, 3)
        ...     def forward(self, audio, video):
        ...         return {"logits": self.classifier(torch.cat([self.ear(audio), self.eye(video)], 1))}
        >>> batch = {"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}
        >>> model = bmlr.wrap(Net(), {"audio": "ear", "video": "eye"}, batch)
        >>> losses = bmlr.BMLR()(model(batch), torch.tensor([0, 2]))
        >>> sorted(losses.terms)
        ['audio', 'fused', 'video']
    """
    return WrappedModel(net, encoders, example, inputs=inputs, head=head, task=task)


class WrappedModel(MultimodalClassifier):
    """A model of one's own with the interface that methods train; see :func:`wrap`.

    Attributes:
        net: The model itself.
        arguments: By modality, the arguments of ``net.forward`` that are its input.

    Example:
        >>> import torch, bmlr
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ear, self.eye, self.head = (torch.nn.Linear(n, 3) for n in (4, 6, 3))
        ...     def forward(self, audio, video):
        ...         return self.head(self.ear(audio) + self.eye(video))
        >>> batch = {"audio": torch.randn(2, 4), "video": torch.randn(2, 6)}
        >>> model = bmlr.wrap(Net(), {"audio": "ear", "video": "eye"}, batch)
        >>> model.modalities, model.task.num_outputs, list(model.state_dict())[0]
        (('audio', 'video'), 3, 'net.ear.weight')
    """

    def __init__(
        self,
        net: nn.Module,
        encoders: Mapping[str, str | nn.Module],
        example: Mapping[str, Any],
        *,
        inputs: Mapping[str, str | Sequence[str]] | None = None,
        head: str | nn.Module | None = None,
        task: Task | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if not encoders:
            raise ValueError("`encoders` should name at least 1 modality. Found none.")
        self.net = net
        self.arguments = _arguments_of(encoders, inputs or {}, example)
        sites = {name: Site.find(net, target, f"encoders['{name}']") for name, target in encoders.items()}
        runner = Runner(net, sites, None if head is None else Site.find(net, head, "head"))
        arguments = {key: example[key] for keys in self.arguments.values() for key in keys}
        with module_mode(net, training=False):
            with all_trainable(net):
                features, logits = runner.run(arguments)
                owned = {name: owned_parameters(net, z, sites[name]) for name, z in features.items()}
            for name, z in features.items():
                if z.ndim < 2 or len(z) != len(logits):
                    raise ValueError(
                        f"Encoder '{name}' should return features of shape (B, d) or (B, …, d). "
                        f"Found {tuple(z.shape)} for {len(logits)} samples."
                    )
            parts = {name: EncoderParts(net, parameters) for name, parameters in owned.items()}
            dims = {name: z.shape[-1] for name, z in features.items()}
            if task is None and logits.shape[1] == 1:
                raise ValueError(
                    "`task` should be given for a model of 1 output, such as bmlr.tasks.Regression(). Found none."
                )
            self.task = as_task(logits.shape[1] if task is None else task)
            if self.task.num_outputs != logits.shape[1]:
                raise ValueError(
                    f"`task` should have as many outputs as the model, {logits.shape[1]}. "
                    f"Found {self.task}, which needs {self.task.num_outputs}."
                )
            # Plain attributes: registered, every parameter would stand in `state_dict()` under several names.
            object.__setattr__(self, "encoders", nn.ModuleDict(parts))
            object.__setattr__(self, "fusion", WrappedFusion(runner, dims, logits.shape[1], list(parts.values())))
            self._runner = runner
            with torch.no_grad():
                runner.remember(map_values(lambda x: x.detach().clone(), arguments), parts)
                self._check(arguments, features, logits)

    def _check(self, arguments: Mapping[str, Any], features: Mapping[str, Tensor], logits: Tensor) -> None:
        """Check that encoders read their own input alone, and the head the features alone."""
        for name, z in features.items():
            if _equal(z[:1].expand_as(z), z):
                raise ValueError(f"`example` should hold at least 2 different samples. Those of '{name}' are equal.")
        if not _equal(self.fusion({name: z.detach() for name, z in features.items()}), logits):
            raise ValueError(
                "The model's logits should be a function of the encoders' features alone. Others came for the "
                "same features: something behind the encoders reads an input, such as a mask, or another output of an "
                "encoder. Name in `encoders` a module behind it, such as the pooling."
            )
        inputs = self.split_inputs(arguments)
        for name, z in features.items():
            if not _equal(self.encode(name, inputs[name]), z):
                raise ValueError(
                    f"Encoder '{name}' should read its own modality's input alone, {list(self.arguments[name])}. "
                    "Its features change with another's input: name in `encoders` a module before the modalities meet, "
                    "or all its arguments in `inputs`."
                )

    def split_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs by modality, from the arguments of ``net.forward`` by name.

        Args:
            batch: Arguments by name; others, such as labels, are left out.
        """
        if self.arguments.keys() == batch.keys() and all(len(keys) == 1 for keys in self.arguments.values()):
            return dict(batch)
        return {
            name: batch[keys[0]] if len(keys) == 1 else {key: batch[key] for key in keys}
            for name, keys in self.arguments.items()
        }

    def forward(self, inputs: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> Output:
        """Run ``net`` once, and keep features and logits.

        Args:
            inputs: The input of each modality, or the arguments of ``net.forward`` by name.
            present: Presence of each modality, as in :class:`MultimodalClassifier`.
        """
        if inputs.keys() != self.arguments.keys():
            inputs = self.split_inputs(inputs)
        is_exporting = torch.compiler.is_compiling() and not self.training
        if present is not None and not is_exporting:
            return super().forward(inputs, present)
        features, logits = self._runner.run(self._join_inputs(inputs))
        if present is None:
            return Output(features, self.fusion, self.task).keep_logits(logits)
        masked = {name: masked_features(z, present.get(name)) for name, z in features.items()}
        return Output(masked, self.fusion, self.task, present)

    def _run_encoder(self, name: str, inputs: Any, batch_size: int) -> Tensor:
        keys = self.arguments[name]
        arguments = {keys[0]: inputs} if len(keys) == 1 else {key: inputs[key] for key in keys}
        features: Tensor = self._runner.encode(name, arguments, batch_size)
        return features

    def zero_features(self, name: str, inputs: Any) -> Tensor:
        """Features of samples that lack a modality: zeros, of the shape that the encoder gives."""
        if self._runner.features[name].ndim == 2:
            return super().zero_features(name, inputs)
        # The length of a sequence is known to the encoder alone.
        with torch.no_grad(), module_mode(self.net, training=False):
            return torch.zeros_like(self._run_encoder(name, inputs, input_size(name, inputs)))

    def _join_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for name, keys in self.arguments.items():
            arguments.update({keys[0]: inputs[name]} if len(keys) == 1 else {key: inputs[name][key] for key in keys})
        return arguments


def _arguments_of(
    encoders: Mapping[str, object], inputs: Mapping[str, str | Sequence[str]], example: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Arguments of the model by modality.

    Raises:
        ValueError: If a modality or an argument is unknown, or two modalities share one.
    """
    if unknown := [name for name in inputs if name not in encoders]:
        raise ValueError(
            f"`inputs` should name modalities of `encoders`, {list(encoders)}. Found '{unknown[0]}'."
            f"{nearest_name(unknown[0], encoders)}"
        )
    arguments: dict[str, tuple[str, ...]] = {}
    for name in encoders:
        keys = inputs.get(name, name)
        arguments[name] = (keys,) if isinstance(keys, str) else tuple(keys)
        for key in arguments[name]:
            if key not in example:
                raise ValueError(
                    f"`example` should hold '{key}', the input of '{name}'. It holds {list(example)}: name "
                    f"its arguments in `inputs`, such as inputs={{'{name}': ('{next(iter(example), 'x')}',)}}."
                )
    return arguments


def _equal(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first.float(), second.float(), rtol=_TOLERANCE, atol=_TOLERANCE)
