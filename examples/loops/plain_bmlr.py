"""A plain PyTorch loop that trains by BMLR."""

import torch
from net import EPOCHS, AudioTextNet, accuracy, make_loaders

import bmlr

torch.manual_seed(0)
train, val = make_loaders()
net = AudioTextNet()
model = bmlr.wrap(net, encoders={"audio": "audio_net", "text": "text_net"}, example=next(iter(train))[0])
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
balancer = bmlr.Balancer(model, bmlr.BMLR(), optimizer, max_epochs=EPOCHS)
for _ in range(EPOCHS):
    for batch in balancer.epoch(train):
        balancer.step(batch)
print(f"accuracy {accuracy(net, val):.3f}")
