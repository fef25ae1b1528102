"""Trainer of Hugging Face Transformers that trains by any method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmlr._random import mixed_seed
from bmlr.batch import Batch
from bmlr.integrations._common import check_model, check_one_pass, start_one_pass
from bmlr.loaders import even_chunks
from bmlr.methods import EpochContext, Losses, Method
from bmlr.model import MultimodalClassifier
from bmlr.parameters import optimizer_like
from bmlr.wrapping import WrappedModel

__all__ = ["BalancedTrainer"]


class BalancedTrainer(Trainer):
    """A ``transformers.Trainer`` that trains by a method.

    Accumulation, bfloat16, clipping, distributed data, checkpoints, resume, evaluation and logging are
    the Trainer's. The checkpoint holds the method's state beside the weights. Evaluation and ``predict`` give the
    method's prediction, so that ``compute_metrics`` gets the multimodal logits and the labels, as ever.

    Args:
        model: A model of this library, such as one of :func:`bmlr.wrap`.
        args: Arguments of the training, as for ``Trainer``.
        method: The method.
        **options: Further arguments of ``Trainer``. Batches are dictionaries of the inputs by name, and ``labels``.

    Raises:
        ValueError: If the method cannot train the model, or needs what a Trainer does not do; the message says what.

    Example:
        >>> import torch, bmlr
        >>> from transformers import TrainingArguments
        >>> from bmlr.integrations.hf import BalancedTrainer
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> samples = [{"a": torch.randn(4), "v": torch.randn(6), "labels": i % 3} for i in range(12)]
        >>> args = TrainingArguments("out", max_steps=2, report_to="none", save_strategy="no", disable_tqdm=True)
        >>> trainer = BalancedTrainer(model, args, method=bmlr.methods.OGMGE(), train_dataset=samples)
        >>> trainer.method.is_set_up_for(model)
        True
    """

    def __init__(
        self, model: MultimodalClassifier, args: TrainingArguments | None = None, *, method: Method, **options: Any
    ) -> None:
        check_model(model)
        check_one_pass(method, "a Trainer cannot: use bmlr.Balancer")
        if args is not None and args.fp16 and method.changes_gradients:
            raise ValueError(
                f"`fp16` should be off: {type(method).__name__} changes gradients before they are clipped, and the "
                "Trainer unscales them only then. Use `bf16`."
            )
        if args is not None and args.n_gpu > 1:
            raise ValueError("One process should use one GPU: start the script with torchrun. Found DataParallel.")
        if not method.is_set_up_for(model):
            method.setup(model)
        self.method, self.classifier = method, model
        super().__init__(model=_Balanced(model, method), args=args, **options)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("DeepSpeed and FSDP are not supported: methods read whole gradients. Use torchrun (DDP).")
        names = [key for keys in model.arguments.values() for key in keys] if isinstance(model, WrappedModel) else ()
        # The Trainer drops columns that `forward` does not name, and this one takes any.
        vars(self)["_signature_columns"] = [*(names or model.modalities), "label", "label_ids", *self.label_names]
        self.add_callback(_Epochs(self))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Losses, gradients by the method, and their adjustment at the end of an accumulation."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            terms = model(**inputs)
        total = torch.stack([value.detach() for value in terms.values()]).sum()
        if not bool(torch.isfinite(total)):
            raise RuntimeError(
                f"The loss is not finite in step {self.state.global_step}: "
                f"{ {name: float(value.detach()) for name, value in terms.items()} }."
            )
        scale: Tensor | float = 1 / self.current_gradient_accumulation_steps
        if self.accelerator.scaler is not None:
            scale = self.accelerator.scaler.scale(torch.tensor(scale, device=total.device))
        self.method.backward(Losses(dict(terms)), self.classifier, scale=scale)
        if self.accelerator.sync_gradients:
            self.method.adjust_gradients(self.classifier)
        mean: Tensor = total / self.current_gradient_accumulation_steps
        return mean

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of the task for the method's prediction, for evaluation."""
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def epoch_context(self, epoch: int) -> EpochContext:
        """Model and data for the method between epochs."""

        def batches(loader: Any) -> Iterator[Batch]:
            for inputs in loader:
                prepared = dict(self._prepare_inputs(inputs))
                labels = prepared.pop("labels")
                yield Batch(self.classifier.split_inputs(prepared), labels)

        train: Any = self.train_dataset
        val: Any = self.eval_dataset
        try:
            size = len(train)
        except TypeError:  # a stream
            size = 0

        def shuffled(number: int) -> Iterator[Batch]:
            generator = torch.Generator().manual_seed(mixed_seed(self.args.seed, epoch, number))
            loader: Any = self.get_test_dataloader(train)
            if size:
                chunks = even_chunks(torch.randperm(size, generator=generator), self.args.train_batch_size)
                # Not that of evaluation, which has batches of another size and shares them among processes.
                loader = DataLoader(train, batch_sampler=[x.tolist() for x in chunks], collate_fn=loader.collate_fn)
            return batches(loader)

        def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            optimizer: Any = self.optimizer
            return optimizer_like(optimizer, parameters)

        return EpochContext(
            epoch,
            max(1, math.ceil(self.args.num_train_epochs)),
            self.classifier,
            size,
            lambda: batches(self.get_test_dataloader(train)),
            lambda: batches(() if val is None else self.get_test_dataloader(val)),
            self.args.seed,
            shuffled,
            make_optimizer,
        )


class _Balanced(nn.Module):
    """Model and method in one module: one checkpoint, one forward pass for DDP."""

    def __init__(self, model: MultimodalClassifier, method: Method) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> dict[str, Tensor]:
        """Loss terms in training; in evaluation the predicted logits, with their loss if there are labels."""
        by_modality = self.model.split_inputs(inputs)
        if self.training and labels is not None:
            return self.method.compute_losses(self.model, Batch(by_modality, labels)).terms
        logits = self.method.predict(self.model(by_modality)).logits
        return (
            {"logits": logits} if labels is None else {"loss": self.model.task.loss(logits, labels), "logits": logits}
        )


class _Epochs(TrainerCallback):
    """Tells the method where epochs begin and end."""

    def __init__(self, trainer: BalancedTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin the epoch, whose number the state holds."""
        trainer = self.trainer
        start_one_pass(trainer.method, trainer.epoch_context(int(state.epoch or 0)))

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the epoch."""
        trainer = self.trainer
        trainer.method.end_epoch(trainer.epoch_context(trainer.method.epoch))
