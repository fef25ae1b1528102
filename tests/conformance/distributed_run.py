"""A training run of the toy data set in two processes; Lightning starts this script a second time for the other."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import bmlr
from bmlr.config import TrainerOptions
from bmlr.training import train
from toy import Toy

if __name__ == "__main__":
    _, folder, method, *arguments = sys.argv
    strategy = "auto" if "--auto" in arguments else "ddp"
    options = TrainerOptions(epochs=2, batch_size=8, accelerator="cpu", strategy=strategy, devices=2, progress=False)
    train(Toy(), bmlr.methods.create(method), trainer=options, run=folder, resume="--resume" in arguments)
