"""How fast is the same update in eager PyTorch, the authors' framework?

    pip install torch==2.13.0        # in an environment of its own: the library does not need it
    python benchmarks/torch_update.py --sizes 17 6

One DiffCPS update (paper, algorithm 1) written the plain way: modules, autograd, torch.optim.Adam, a Python loop over
the reverse chain. Batch 256, width 256, three layers, policy interval 2. Prints the median milliseconds per update, to
be set beside `benchmarks/update_speed.py` on the same machine within the same minutes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import time

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

BATCH, WIDTH, TIME, INTERVAL = 256, 256, 16, 2
KAPPA, NORM, RATE, RATE_MULTIPLIER, POLYAK, EMA, DISCOUNT = 0.05, 9.0, 3e-4, 3e-5, 0.005, 0.995, 0.99


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Mish()]
    return nn.Sequential(*layers[:-1])


class Policy(nn.Module):
    """A DDPM over actions: noise network, VP schedule, ancestral sampling with x0 clipped to the box."""

    def __init__(self, observation_size: int, action_size: int, num_steps: int):
        super().__init__()
        self.action_size, self.num_steps = action_size, num_steps
        self.time = mlp(TIME, 2 * TIME, TIME)
        self.body = mlp(action_size + TIME + observation_size, WIDTH, WIDTH, WIDTH, action_size)
        i = torch.arange(1, num_steps + 1)
        beta = 1 - torch.exp(-0.1 / num_steps - 0.5 * 9.9 * (2 * i - 1) / num_steps**2)
        bar = torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1), bar[:-1]])
        self.register_buffer("bar", bar)
        self.register_buffer("mean_x0", beta * before.sqrt() / (1 - bar))
        self.register_buffer("mean_xt", (1 - before) * (1 - beta).sqrt() / (1 - bar))
        self.register_buffer("std", (beta * (1 - before) / (1 - bar)).clamp(min=1e-20).sqrt())

    def noise(self, xt: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        frequency = torch.exp(-math.log(1e4) / (TIME // 2 - 1) * torch.arange(TIME // 2))
        angle = t[:, None] * frequency
        time_features = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        return self.body(torch.cat([xt, time_features, observation], -1))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        x = torch.randn(len(observation), self.action_size)
        for step in reversed(range(self.num_steps)):
            t = torch.full((len(observation),), step)
            bar = self.bar[t][:, None]
            x0 = ((x - (1 - bar).sqrt() * self.noise(x, t, observation)) / bar.sqrt()).clamp(-1, 1)
            x = self.mean_x0[t][:, None] * x0 + self.mean_xt[t][:, None] * x
            if step > 0:
                x = x + self.std[t][:, None] * torch.randn_like(x)
        return x.clamp(-1, 1)

    def denoising_loss(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        t = torch.randint(0, self.num_steps, (len(action),))
        eps = torch.randn_like(action)
        bar = self.bar[t][:, None]
        return nn.functional.mse_loss(self.noise(bar.sqrt() * action + (1 - bar).sqrt() * eps, t, observation), eps)


class Critic(nn.Module):
    def __init__(self, observation_size: int, action_size: int):
        super().__init__()
        self.q1 = mlp(observation_size + action_size, WIDTH, WIDTH, WIDTH, 1)
        self.q2 = mlp(observation_size + action_size, WIDTH, WIDTH, WIDTH, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([observation, action], -1)
        return self.q1(x), self.q2(x)


def follow(average: nn.Module, new: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for old, leaf in zip(average.parameters(), new.parameters(), strict=True):
            old.copy_((1 - rate) * old + rate * leaf)


class Learner:
    def __init__(self, observation_size: int, action_size: int, num_steps: int):
        self.actor, self.critic = (
            Policy(observation_size, action_size, num_steps),
            Critic(observation_size, action_size),
        )
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.multiplier = torch.tensor(1.0, requires_grad=True)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), RATE)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), RATE)
        self.multiplier_adam = torch.optim.Adam([self.multiplier], RATE_MULTIPLIER)
        rows = 200_000
        self.data = (
            torch.randn(rows, observation_size),
            torch.rand(rows, action_size) * 2 - 1,
            torch.randn(rows, 1),
            torch.randn(rows, observation_size),
            (torch.rand(rows, 1) > 0.01).float(),
        )

    def update(self, index: int) -> None:
        rows = torch.randint(0, len(self.data[0]), (BATCH,))
        observation, action, reward, next_observation, continues = (field[rows] for field in self.data)

        with torch.no_grad():
            q1, q2 = self.target_critic(next_observation, self.target_actor(next_observation))
            target = reward + DISCOUNT * continues * torch.minimum(q1, q2)
        q1, q2 = self.critic(observation, action)
        loss = nn.functional.mse_loss(q1, target) + nn.functional.mse_loss(q2, target)
        self.critic_adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.critic.parameters(), NORM)
        self.critic_adam.step()

        if index % INTERVAL == 0:
            bc_loss = self.actor.denoising_loss(observation, action)
            q1, q2 = self.critic(observation, self.actor(observation))
            if torch.rand(()) < 0.5:
                q1, q2 = q2, q1
            q_loss = -q1.mean() / q2.abs().mean().detach()
            self.actor_adam.zero_grad()
            (q_loss + self.multiplier.detach().clamp(0, 100) * (bc_loss - KAPPA)).backward()
            nn.utils.clip_grad_norm_(self.actor.parameters(), NORM)
            self.actor_adam.step()
            self.multiplier_adam.zero_grad()
            (self.multiplier * (KAPPA - bc_loss.detach())).backward()
            self.multiplier_adam.step()

        if index >= 1000 and index % 5 == 0:
            follow(self.target_actor, self.actor, 1 - EMA)
        follow(self.target_critic, self.critic, POLYAK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[17, 6], metavar=("OBS", "ACT"))
    parser.add_argument("--steps", type=int, default=5, help="diffusion steps T")
    parser.add_argument("--calls", type=int, default=9, help="timed calls of 50 updates")
    options = parser.parse_args()
    learner = Learner(*options.sizes, options.steps)  # pyright: ignore[reportCallIssue]
    index = 1000
    times = []
    for call in range(options.calls + 2):  # two to warm up
        started = time.perf_counter()
        for _ in range(50):
            learner.update(index)
            index += 1
        if call >= 2:
            times.append((time.perf_counter() - started) / 50)
    print(
        f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {options.sizes[0]}/{options.sizes[1]}, "
        f"T = {options.steps}: median {1e3 * statistics.median(times):.1f} ms, fastest {1e3 * min(times):.1f} ms"
    )


if __name__ == "__main__":
    main()
