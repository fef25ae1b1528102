"""A training run of the toy data set in two processes, one of which may meet a mishap in one of its batches."""

import os
import signal
import sys
import time
from pathlib import Path

from bmlr import Batch, MultimodalClassifier
from bmlr.methods import Losses, Method

sys.path.insert(0, str(Path(__file__).parents[1]))

from bmlr.config import TrainerOptions
from bmlr.methods import BMLR
from bmlr.runs import RunError
from bmlr.training import train
from toy import Toy


def mishap(kind: str) -> None:
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "error":
        raise KeyError("of this process alone")
    elif kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)


def meeting(method: Method, kind: str, rank: int, at: int) -> Method:
    """The method, with a mishap in the given process and batch."""
    compute_losses, seen = method.compute_losses, []

    def compute(model: MultimodalClassifier, batch: Batch) -> Losses:
        seen.append(batch)
        if len(seen) == at and int(os.environ.get("LOCAL_RANK", "0")) == rank:
            mishap(kind)
        return compute_losses(model, batch)

    vars(method)["compute_losses"] = compute
    return method


if __name__ == "__main__":
    folder, samples, kind, rank, at = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    Path(f"{folder}.{os.environ.get('LOCAL_RANK', '0')}.pid").write_text(str(os.getpid()))
    options = TrainerOptions(epochs=2, batch_size=8, accelerator="cpu", strategy="ddp", devices=2, progress=False)
    started = time.monotonic()
    try:
        train(Toy(samples), meeting(BMLR(), kind, rank, at), trainer=options, run=folder, resume=True)
    except RunError as error:
        print(f"after {time.monotonic() - started:.1f} s: {error}", file=sys.stderr)
        sys.exit(2)
