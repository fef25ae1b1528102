"""The model, encoders of named modalities and a fusion, and its output."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from bmlr import fusion as fusions
from bmlr._checks import check_named, check_present
from bmlr._modes import preserved_buffers, running_batch_norm
from bmlr.batch import input_size, map_tensors, tensors_of
from bmlr.encoders.features import describe_output, feature_dim, masked_features
from bmlr.fusion import Fusion
from bmlr.tasks import Task, as_task

_Value = TypeVar("_Value")

#: Name of all that follows the encoders, beside those of the modalities.
FUSION = "fusion"


class _Lazy(Generic[_Value]):
    """Property computed once.

    ``functools.cached_property`` takes a lock before Python 3.12, which breaks the graph of ``torch.compile``.
    """

    def __init__(self, compute: Callable[[Output], _Value]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type[Output], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, output: None, owner: type[Output]) -> _Lazy[_Value]: ...
    @overload
    def __get__(self, output: Output, owner: type[Output]) -> _Value: ...

    def __get__(self, output: Output | None, owner: type[Output]) -> _Lazy[_Value] | _Value:
        if output is None:
            return self
        value = self.compute(output)
        setattr(output, self.name, value)  # an instance attribute, which hides this non-data descriptor from now on
        return value


@dataclasses.dataclass(eq=False)
class Output:
    """Features of a batch, and logits computed on first use.

    A method pays only for the logits it needs. However many it reads, running statistics of the fusion take in the
    pass of all modalities once, and no pass over zeroed features.

    Attributes:
        features: Features of each modality, shape (B, d); zero where the modality is absent.
        fusion: The classifier head the logits come from.
        task: What the logits are to predict.
        present: Presence of each modality, a boolean mask of shape (B,) per name; None or a name left out means that
            all samples have it.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier(
        ...     {"audio": torch.nn.Linear(4, 8), "video": torch.nn.Linear(6, 8)}, 3)
        >>> output = model({"audio": torch.randn(2, 4), "video": torch.randn(2, 6)})
        >>> output.logits.shape, output.unimodal_logits["audio"].shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    features: dict[str, Tensor]
    fusion: Fusion
    task: Task
    present: Mapping[str, Tensor] | None = None
    _is_counted: bool = dataclasses.field(default=False, init=False, repr=False)

    @property
    def batch_size(self) -> int:
        """Number of samples B."""
        size: int = next(iter(self.features.values())).shape[0]  # len() would fix it in an exported model
        return size

    @_Lazy
    def detached_features(self) -> dict[str, Tensor]:
        """The features without gradient."""
        return {name: z.detach() for name, z in self.features.items()}

    @_Lazy
    def logits(self) -> Tensor:
        """Multimodal logits, shape (B, C); gradients reach encoders and classifier head."""
        self._check_trained()
        return self._fuse(self.features)

    @_Lazy
    def unimodal_logits(self) -> dict[str, Tensor]:
        """Unimodal logits, shape (B, C) each; gradients reach encoders and classifier head."""
        self._check_trained()
        return self._as_predictions(self.fusion(self.features, unimodal=True))

    @_Lazy
    def decision_logits(self) -> Tensor:
        """Multimodal logits, shape (B, C), with gradients to Θ only (BMLR, Eq. 11)."""
        return self._fuse(self.detached_features)

    @_Lazy
    def encoder_logits(self) -> dict[str, Tensor]:
        """Unimodal logits, (B, C) each, with gradients to the encoders only (BMLR, Eq. 11)."""
        return self._as_predictions(self._frozen_fusion(unimodal=True))

    def subset_logits(self, keep: Collection[str], *, freeze_fusion: bool = False) -> Tensor:
        """Multimodal logits, shape (B, C), of some modalities; the other features are zero.

        Args:
            keep: Names of the modalities to keep.
            freeze_fusion: Let gradients reach the encoders only.
        """
        logits: Tensor = (
            self._frozen_fusion(keep=tuple(keep)) if freeze_fusion else self.fusion(self.features, keep=tuple(keep))
        )
        return logits

    def replace_features(self, features: Mapping[str, Tensor]) -> Output:
        """The output for other features, with the same fusion and presence."""
        return Output(dict(features), self.fusion, self.task, self.present)

    def keep_logits(self, logits: Tensor) -> Output:
        """Take over multimodal logits, shape (B, C), of a pass that is already made."""
        self.logits, self._is_counted = logits, True
        return self

    def mask(self, name: str) -> Tensor | None:
        """Presence of modality ``name``, shape (B,); None if all samples have it."""
        return None if self.present is None else self.present.get(name)

    def readout_losses(self, targets: Tensor) -> dict[str, Tensor]:
        """Losses of auxiliary readouts by name; empty for other readouts."""
        if self.fusion.unimodal_readout != "auxiliary":
            return {}
        logits = self.fusion(self.detached_features, unimodal=True)
        return {f"{name}_readout": self.task.loss(values, targets, self.mask(name)) for name, values in logits.items()}

    def _check_trained(self) -> None:
        if self.fusion.untrained_by:
            raise RuntimeError(
                f"{self.fusion.untrained_by} leaves the fusion of the model untrained, whose logits mean nothing: "
                "predict by `method.predict(output)`."
            )

    def _fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Multimodal logits; only the first pass of an output adds to running statistics."""
        if self._is_counted:
            with preserved_buffers(self.fusion):
                logits: Tensor = self.fusion(features)
        else:
            logits, self._is_counted = self.fusion(features), True
        return logits

    def _as_predictions(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unimodal logits as predictions of their own: the terms of a sum are shares of one."""
        return self.task.whole_predictions(logits) if self.fusion.unimodal_readout == "split" else logits

    def _frozen_fusion(self, **options: Any) -> Any:
        """The fusion with detached parameters: gradients reach the features only."""
        parameters = {name: value.detach() for name, value in self.fusion.named_parameters()}
        return torch.func.functional_call(self.fusion, parameters, (self.features,), options)


class MultimodalClassifier(nn.Module):
    """Encoders of named modalities and a fusion.

    It predicts classes, labels or numbers, as its task says; C stands for the width of its logits.

    Args:
        encoders: One module per modality that maps its input to features of shape (B, d). A single one makes an
            ordinary classifier, which serves as a unimodal baseline.
        task: Number of classes C, or a task of :mod:`bmlr.tasks`. May be left out if ``fusion`` is a module, whose
            width is then the number of classes.
        fusion: A name among :func:`bmlr.fusion.available`, or a :class:`bmlr.fusion.Fusion` of your own.
        feature_dims: Feature width d of each modality. May be left out for encoders with an attribute
            ``num_features`` or ``out_features``, such as those of this library, timm's and ``nn.Linear``, and for an
            ``nn.Sequential`` with such a layer, whose last one counts.
        fusion_options: Further arguments for a fusion chosen by name, such as ``{"conditioner": "video"}``.

    Raises:
        ValueError: If names, widths or the fusion do not fit; the message names the argument.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier(
        ...     {"audio": torch.nn.Linear(4, 8), "text": torch.nn.Linear(6, 5)}, 3, fusion="film")
        >>> model({"audio": torch.randn(2, 4), "text": torch.randn(2, 6)}).logits.shape
        torch.Size([2, 3])
    """

    #: What :meth:`freeze` froze.
    frozen: frozenset[str] = frozenset()

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        task: Task | int | None = None,
        fusion: str | Fusion = "concat",
        *,
        feature_dims: Mapping[str, int] | None = None,
        fusion_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_named("encoders", encoders)
        if not encoders:
            raise ValueError("`encoders` should name at least 1 modality. Found none.")
        for name in encoders:
            if not name or "." in name or name in {"fused", FUSION} or hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    "`encoders` should have names without a dot, other than 'fused', 'fusion' and the attributes of "
                    f"torch.nn.ModuleDict. Found {name!r}."
                )
        self.encoders = nn.ModuleDict(dict(encoders))
        if isinstance(fusion, Fusion):
            for argument, value in {"fusion_options": fusion_options, "feature_dims": feature_dims}.items():
                if value:
                    raise ValueError(f"`{argument}` should be left out where `fusion` is a module. Found {value}.")
            if set(fusion.modalities) != set(encoders):
                raise ValueError(
                    f"`fusion` should have the modalities of `encoders`, {sorted(encoders)}. "
                    f"Found {sorted(fusion.modalities)}."
                )
            self.task = as_task(fusion.num_outputs if task is None else task)
            if self.task.num_outputs != fusion.num_outputs:
                raise ValueError(
                    f"`task` should have the width of `fusion`, {fusion.num_outputs} outputs. "
                    f"Found {self.task}, which needs {self.task.num_outputs}."
                )
            self.fusion: Fusion = fusion
        else:
            if task is None:
                raise ValueError("`task` should be a number of classes or a task where `fusion` is a name. Found none.")
            self.task = as_task(task)
            dims = {name: feature_dim(name, encoder, feature_dims) for name, encoder in encoders.items()}
            self.fusion = fusions.create(fusion, dims, self.task.num_outputs, **(fusion_options or {}))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(self.encoders)

    def freeze(self, *names: str) -> None:
        """Train no parameter of some encoders, and keep them in evaluation mode.

        Args:
            *names: Modalities; ``fusion`` is all that follows the encoders.

        Raises:
            KeyError: If there is no such modality.
        """
        parts = [self._part(name) for name in names]
        self.frozen = self.frozen | set(names)
        for part in parts:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, but for what is frozen."""
        super().train(mode)
        for name in self.frozen:
            # One by one: a wrapped head holds the whole model, and not all of it is the head's.
            for module in self._part(name).modules():
                module.training = False
        return self

    def _part(self, name: str) -> nn.Module:
        return self.fusion if name == FUSION else self.encoders[name]

    def split_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs by modality, from all that a loader gives by name; the rest, such as labels, is left out."""
        return {name: batch[name] for name in self.encoders if name in batch}

    def forward(self, inputs: Mapping[str, Any], present: Mapping[str, Tensor] | None = None) -> Output:
        """Encode the inputs of every modality.

        Args:
            inputs: The input of each modality, first dimension B: a tensor, or a dictionary or tuple of tensors, which
                its encoder gets as it is.
            present: Presence of each modality, a boolean mask of shape (B,) per name; all samples have a modality
                left out. Inputs of absent modalities never enter an encoder; their features are zero.

        Raises:
            ValueError: If the names or batch sizes of ``inputs`` or ``present`` do not fit, or an encoder returns
                anything but features of shape (B, d).
        """
        check_named("inputs", inputs)
        if inputs.keys() != set(self.encoders):
            raise ValueError(f"`inputs` should have the modalities {list(self.encoders)}. Found {list(inputs)}.")
        sizes = {name: input_size(name, x) for name, x in inputs.items()}
        batch_size = next(iter(sizes.values()))
        if any(size != batch_size for size in sizes.values()):
            raise ValueError(f"`inputs` should all have the same batch size. Found {sizes}.")
        if present is not None:
            check_present(present, self.encoders, batch_size)
        features = {name: self.encode(name, inputs[name], (present or {}).get(name)) for name in self.encoders}
        return Output(features, self.fusion, self.task, present)

    def encode(self, name: str, inputs: Any, present: Tensor | None = None) -> Tensor:
        """Features of one modality, shape (B, d); zero where it is absent.

        Args:
            name: Name of the modality.
            inputs: Its input, first dimension B.
            present: Presence in each sample, boolean, shape (B,); None means in all. A single present sample among
                absent ones is normalised by running statistics, since batch normalisation cannot train on it.

        Raises:
            ValueError: If the encoder returns anything but features of shape (B, d).
        """
        batch_size = input_size(name, inputs)
        encoder = self.encoders[name]
        if present is not None and torch.compiler.is_compiling() and not self.training:
            # A number of samples that depends on values cannot be exported. Samples do not meet in evaluation mode.
            return masked_features(self._run_encoder(name, inputs, batch_size), present)
        if present is None:
            return self._run_encoder(name, inputs, batch_size)
        rows = present.nonzero().squeeze(1)  # the only wait for the device
        if len(rows) == batch_size:
            return self._run_encoder(name, inputs, batch_size)
        if len(rows) == 0:
            return self.zero_features(name, inputs)
        # Only the samples that have it: a batch normalisation must not count the others.
        kept = map_tensors(lambda x: x[rows], inputs)
        with running_batch_norm(encoder) if len(rows) == 1 else contextlib.nullcontext():
            encoded = self._run_encoder(name, kept, len(rows))
        return encoded.new_zeros((batch_size, *encoded.shape[1:])).index_put((rows,), encoded)

    def zero_features(self, name: str, inputs: Any) -> Tensor:
        """Features of samples that lack a modality: zeros, shape (B, d)."""
        shape = (input_size(name, inputs), self.fusion.feature_dims[name])
        return torch.zeros(shape, dtype=torch.get_default_dtype(), device=tensors_of(inputs)[0].device)

    def _run_encoder(self, name: str, inputs: Any, batch_size: int) -> Tensor:
        try:
            features = self.encoders[name](inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"Batch normalisation in the encoder of '{name}' cannot train on a batch of {batch_size}, which leaves "
                "one value per channel: use larger batches, and leave out a last one of a single sample."
            ) from error
        width = self.fusion.feature_dims[name]
        if not isinstance(features, Tensor):
            raise ValueError(
                f"Encoder '{name}' should return features of shape (B, {width}). Found {describe_output(features)}."
            )
        if features.ndim != 2 or features.shape[1] != width or features.shape[0] != batch_size:
            raise ValueError(
                f"Encoder '{name}' should return features of shape (B, {width}). "
                f"Found {tuple(features.shape)} for {batch_size} samples."
            )
        return features
