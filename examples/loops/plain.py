"""A plain PyTorch loop."""

import torch
from net import EPOCHS, AudioTextNet, accuracy, make_loaders
from torch import nn

torch.manual_seed(0)
train, val = make_loaders()
net = AudioTextNet()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for _ in range(EPOCHS):
    for inputs, labels in train:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(**inputs), labels)
        loss.backward()
        optimizer.step()
print(f"accuracy {accuracy(net, val):.3f}")
