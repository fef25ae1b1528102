"""A LightningModule that trains by BMLR."""

from typing import Any

import lightning
import torch
from net import EPOCHS, AudioTextNet, accuracy, make_loaders
from torch import Tensor, nn

import bmlr
from bmlr.integrations.lightning import BalancedMixin


class Classifier(BalancedMixin, lightning.LightningModule):
    """The model with its loss and optimiser."""

    def __init__(self, net: nn.Module, example: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        model = bmlr.wrap(net, encoders={"audio": "audio_net", "text": "text_net"}, example=example)
        self.balance(model, bmlr.BMLR())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        return self.balanced_loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


lightning.seed_everything(0)
train, val = make_loaders()
module = Classifier(AudioTextNet(), next(iter(train))[0])
trainer = lightning.Trainer(max_epochs=EPOCHS, gradient_clip_val=1.0, accumulate_grad_batches=2, logger=False)
trainer.fit(module, train)
print(f"accuracy {accuracy(module.net.cpu(), val):.3f}")
