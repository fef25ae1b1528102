"""A loop under Accelerate, with accumulation and clipping, that trains by BMLR."""

import torch
from accelerate import Accelerator
from net import EPOCHS, AudioTextNet, accuracy, make_loaders

import bmlr
from bmlr.integrations.accelerate import AcceleratedBalancer

torch.manual_seed(0)
train, val = make_loaders()
net = AudioTextNet()
model = bmlr.wrap(net, encoders={"audio": "audio_net", "text": "text_net"}, example=next(iter(train))[0])
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
accelerator = Accelerator(gradient_accumulation_steps=2)
balancer = AcceleratedBalancer(accelerator, model, bmlr.BMLR(), optimizer, max_epochs=EPOCHS, clip_norm=1.0)
train = accelerator.prepare(train)
for _ in range(EPOCHS):
    for batch in balancer.epoch(train):
        balancer.step(batch)
net = net.cpu()
print(f"accuracy {accuracy(net, val):.3f}")
