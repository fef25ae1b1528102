"""A Trainer of Hugging Face that trains by BMLR."""

import torch
from net import EPOCHS, AudioTextNet, accuracy, make_loaders, make_samples
from transformers import TrainingArguments

import bmlr
from bmlr.integrations.hf import BalancedTrainer

torch.manual_seed(0)
train, val = make_loaders()
samples = [{**inputs, "labels": label} for inputs, label in make_samples(600, 0)]
net = AudioTextNet()
model = bmlr.wrap(net, encoders={"audio": "audio_net", "text": "text_net"}, example=next(iter(train))[0])
args = TrainingArguments(
    "trained", num_train_epochs=EPOCHS, per_device_train_batch_size=30, learning_rate=1e-2, save_strategy="no"
)
trainer = BalancedTrainer(model, args, method=bmlr.BMLR(), train_dataset=samples)
trainer.train()
print(f"accuracy {accuracy(net.cpu(), val):.3f}")
