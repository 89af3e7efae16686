"""PPO's critic: a linear value head on states of the policy's own trunk, so that it costs no second model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewardlm.errors import ModelError


class ValueHead(nn.Module):
    """V(s) = w · h / |h|·√H + b on the trunk's last state h, Float[N, H] → Float[N], float32.

    The state is scaled to unit root-mean-square first, because trunks differ in scale by orders of magnitude. On the
    policy's own states it is detached: a fresh critic's errors would otherwise shake the policy's features. A critic
    with an adapter of its own learns features too.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        # From zero, so that the first advantages are not the noise of a random critic.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, *, detach: bool = True) -> Tensor:
        hidden = (hidden.detach() if detach else hidden).float()
        scale = hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        values: Tensor = self.linear(hidden * scale).squeeze(-1)
        return values

    def start_at(self, reward: float) -> None:
        """Expect ``reward`` in every state: the first batch's mean, before the first update.

        A critic that starts at 0 under rewards around 5 makes late tokens look better than early ones, by lambda to
        the power of the distance from the end: a gradient about position, not about what was said.
        """
        nn.init.constant_(self.linear.bias, reward)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, str(path))

    def load(self, path: Path) -> None:
        """Read weights that ``save`` wrote. Raises ModelError if the file is missing, damaged or of another size."""
        try:
            self.load_state_dict(load_file(str(path)))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"value head {path}: {' '.join(str(error).split())[:200]}") from error
