"""A Trainer of Hugging Face."""

import torch
from net import EPOCHS, AudioTextNet, accuracy, make_loaders, make_samples
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments


class WithLoss(nn.Module):
    """The model with its loss, as a Trainer wants it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, audio: Tensor, text: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.net(audio, text)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


torch.manual_seed(0)
_, val = make_loaders()
samples = [{**inputs, "labels": label} for inputs, label in make_samples(600, 0)]
net = AudioTextNet()
args = TrainingArguments(
    "trained", num_train_epochs=EPOCHS, per_device_train_batch_size=30, learning_rate=1e-2, save_strategy="no"
)
trainer = Trainer(WithLoss(net), args, train_dataset=samples)
trainer.train()
print(f"accuracy {accuracy(net.cpu(), val):.3f}")
