"""Convolutional networks for images, whose sizes and order of channels come from the environment's spec."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from runner.networks.normalizer import ObservationNormalizer
from runner.spec import EnvSpec
from runner.types import PositiveInt

Convolution = tuple[PositiveInt, PositiveInt, PositiveInt]
"""Channels, kernel size and stride."""

NATURE: tuple[Convolution, ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Mnih et al. 2015, Methods; with 512 hidden units."""
SMALL: tuple[Convolution, ...] = ((16, 3, 1),)
"""Young & Tian 2019 (MinAtar), section 4; with 128 hidden units."""
SMALLEST_FOR_NATURE = 36
"""Pixels to a side that leave something of the image after its three layers."""


class Layout(NamedTuple):
    """How images ``[..., *shape]`` become ``[B, channels, height, width]``: by this order of their own dimensions."""

    order: tuple[int, ...]
    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Layout":
        """``[H, W]``, ``[C, H, W]`` or ``[H, W, C]`` (the smaller end is the channels), or a stack ``[S, H, W, C]``."""
        if len(shape) == 2:
            return cls((0, 1), 1, shape[0], shape[1])
        if len(shape) == 3:
            order: tuple[int, ...] = (0, 1, 2) if shape[0] <= shape[2] else (2, 0, 1)
        elif len(shape) == 4:
            order = (0, 3, 1, 2)
        else:
            raise ValueError(f"a convolutional network needs images, [H, W] or with channels; the shape is {shape}")
        *channels, height, width = (shape[dimension] for dimension in order)
        return cls(order, int(np.prod(channels)), height, width)


class CNN(nn.Module):
    """Convolutions and linear layers with rectifiers between them: ``[..., *shape] -> [..., outputs]``.

    Bytes are divided by ``high`` here, so that they are kept as bytes everywhere else.

    Args:
        high: the largest value of observations that are bytes.
    """

    def __init__(
        self,
        shape: Sequence[int],
        convolutions: Sequence[Convolution],
        hidden: Sequence[int],
        outputs: int,
        high: float = 255.0,
        normalizer: ObservationNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.image_dims = Layout.of(shape), len(shape)
        self.high, self.normalizer = high, normalizer
        channels, height, width = self.layout[1:]
        self.convolutions, self.linears = nn.ModuleList(), nn.ModuleList()
        for out, kernel, stride in convolutions:
            if min(height, width) < kernel:
                raise ValueError(f"network.convolutions: {height} x {width} pixels are left for a kernel of {kernel}")
            self.convolutions.append(nn.Conv2d(channels, out, kernel, stride))
            channels, height, width = out, *((side - kernel) // stride + 1 for side in (height, width))
        size = channels * height * width
        for following in (*hidden, outputs):
            self.linears.append(nn.Linear(size, following))
            size = following

    def forward(self, observation: Tensor) -> Tensor:
        """``[..., *shape] -> [..., outputs]``; whole numbers other than bytes are taken as they are."""
        leading = observation.shape[: observation.ndim - self.image_dims]
        x = observation.reshape(-1, *observation.shape[len(leading) :])
        x = x.permute(0, *(1 + dimension for dimension in self.layout.order)).to(torch.float32)
        x = x.reshape(-1, *self.layout[1:])
        if self.normalizer is not None:
            x = self.normalizer(x)
        elif observation.dtype == torch.uint8:
            x = x / self.high
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        x = x.flatten(1)
        *hidden, last = self.linears
        for layer in hidden:
            x = torch.relu(layer(x))
        return last(x).reshape(*leading, -1)


class FeatureCNN(CNN):
    """The same with a rectifier after the last layer, for heads to stand on."""

    @property
    def features(self) -> int:
        return len(self.linears[-1].bias)  # type: ignore[arg-type]

    def forward(self, observation: Tensor) -> Tensor:
        return torch.relu(super().forward(observation))


C = TypeVar("C", bound=CNN)


def make_q_cnn(
    spec: EnvSpec,
    convolutions: list[Convolution] | None = None,
    hidden: list[PositiveInt] | None = None,
    normalize_observations: bool = False,
) -> dict[str, nn.Module]:
    """A network ``q`` of images with one value for each discrete action: ``[B, *image] -> [B, A]``.

    Args:
        convolutions: channels, kernel and stride of each layer; by the size of the image where not given.
        normalize_observations: by one running mean and variance of all pixels, in place of the division by 255.
    """
    if spec.num_actions is None:
        raise ValueError(f"action values need discrete actions; {spec.id} takes vectors of shape {spec.action_shape}")
    return {"q": make_cnn(CNN, spec, convolutions, hidden, normalize_observations, [spec.num_actions])}


def make_cnn(
    kind: type[C],
    spec: EnvSpec,
    convolutions: list[Convolution] | None,
    hidden: list[int] | None,
    normalize_observations: bool,
    outputs: Sequence[int] = (),
) -> C:
    """One for the images of an environment, whose last layer is that of ``outputs``, or else of ``hidden``."""
    layout = Layout.of(spec.observation_shape)
    is_large = min(layout.height, layout.width) >= SMALLEST_FOR_NATURE
    widths = [*(([512] if is_large else [128]) if hidden is None else hidden), *outputs]
    return kind(
        spec.observation_shape,
        (NATURE if is_large else SMALL) if convolutions is None else convolutions,
        widths[:-1],
        widths[-1],
        spec.observation_high or 1.0,
        ObservationNormalizer(()) if normalize_observations else None,
    )
