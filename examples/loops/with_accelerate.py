"""A loop under Accelerate, with accumulation and clipping."""

import torch
from accelerate import Accelerator
from net import EPOCHS, AudioTextNet, accuracy, make_loaders
from torch import nn

torch.manual_seed(0)
train, val = make_loaders()
net = AudioTextNet()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
accelerator = Accelerator(gradient_accumulation_steps=2)
net, optimizer, train = accelerator.prepare(net, optimizer, train)
for _ in range(EPOCHS):
    for inputs, labels in train:
        with accelerator.accumulate(net):
            loss = nn.functional.cross_entropy(net(**inputs), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
net = accelerator.unwrap_model(net).cpu()
print(f"accuracy {accuracy(net, val):.3f}")
