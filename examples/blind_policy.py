"""Does a policy look at its camera? The blind-modality test with a squared error.

A robot is to drive to a light that its camera shows. The demonstrations are smooth: the last action, which is part of
the state, all but says the next one. A policy that imitates them copies it, and leaves the camera alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bmlr.diagnosis import blind_modality_test

Batch = tuple[dict[str, Tensor], Tensor]


class Policy(nn.Module):
    """Camera and state to an action."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(16 + 4, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, camera: Tensor, state: Tensor) -> Tensor:
        """Actions, shape (B, 2)."""
        actions: Tensor = self.head(torch.cat([self.eye(camera), state], 1))
        return actions


def drive(count: int, seed: int, *, smooth: bool) -> list[Batch]:
    """Demonstrations in batches of 64; without ``smooth`` the last action says nothing."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(count, 2, generator=generator) * 2 - 1
    pixels = ((action + 1) * 3.5).round().long()
    camera = 0.1 * torch.randn(count, 1, 8, 8, generator=generator)
    camera[torch.arange(count), 0, pixels[:, 1], pixels[:, 0]] += 1
    last = action + 0.02 * torch.randn(count, 2, generator=generator)
    if not smooth:
        last = last[torch.randperm(count, generator=generator)]
    state = torch.cat([last, torch.randn(count, 2, generator=generator)], 1)
    return [
        ({"camera": camera[i : i + 64], "state": state[i : i + 64]}, action[i : i + 64]) for i in range(0, count, 64)
    ]


def imitate(batches: list[Batch], epochs: int = 20) -> Policy:
    """A policy trained by a plain loop."""
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(epochs):
        for inputs, actions in batches:
            optimizer.zero_grad()
            F.mse_loss(policy(**inputs), actions).backward()
            optimizer.step()
    return policy


def main() -> None:
    """Test a policy that copies its last action, and one that has to look."""
    for smooth in (True, False):
        policy = imitate(drive(1024, 0, smooth=smooth))

        def error(inputs: dict[str, Tensor], actions: Tensor, policy: Policy = policy) -> Tensor:
            return F.mse_loss(policy(**inputs), actions, reduction="none").mean(1)

        test = blind_modality_test(
            error,
            drive(512, 1, smooth=smooth),
            module=policy,
            margin=0.01,  # of an action's variance of a third
            score_name="squared error",
            subject=f"a policy of {'smooth' if smooth else 'abrupt'} demonstrations",
        )
        print(test.to_markdown())


if __name__ == "__main__":
    main()
