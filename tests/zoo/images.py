"""Images and signals, in torch: encoders and decoders, dilated and spectral convolutions, capsules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Case

F = nn.functional


class UNet(nn.Module):
    """Two levels (Ronneberger et al., 2015): max pooling, transposed convolution, skips."""

    def __init__(self) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.InstanceNorm2d(b, affine=True), nn.LeakyReLU())

        self.a, self.b, self.c = block(1, 4), block(4, 6), block(8, 4)
        self.pool, self.up, self.out = nn.MaxPool2d(2), nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.out(self.c(torch.cat([a, self.up(self.b(self.pool(a)))], 1)))


class Autoencoder(nn.Module):
    """Strided down, pixel shuffle up; a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(36, 3))
        self.up = nn.Sequential(nn.Linear(3, 36), nn.Mish(), nn.Unflatten(1, (4, 3, 3)), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates and skips (van den Oord et al., 2016)."""

    def __init__(self, c: int = 4) -> None:
        super().__init__()
        self.into, self.gates = nn.Conv1d(1, c, 1), nn.ModuleList(nn.Conv1d(c, 2 * c, 2, dilation=d) for d in (1, 2, 4))
        self.skips, self.out = nn.ModuleList(nn.Conv1d(c, c, 1) for _ in range(3)), nn.Conv1d(c, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.into(x), 0.0
        for gate, skip in zip(self.gates, self.skips, strict=True):
            a, b = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            x = x + (made := skip(a.tanh() * b.sigmoid()))
            total = total + made
        return self.out(F.relu(total)).mT


class TCN(nn.Module):
    """Temporal convolutions with weight norm (Bai et al., 2018)."""

    def __init__(self, c: int = 4) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.one, self.two = norm(nn.Conv1d(2, c, 3)), norm(nn.Conv1d(c, c, 3, dilation=2))
        self.match, self.head, self.drop = nn.Conv1d(2, c, 1), nn.Linear(c, 2), nn.Dropout1d(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(F.relu(self.one(F.pad(x, (2, 0)))))
        return self.head((F.relu(self.two(F.pad(y, (4, 0)))) + self.match(x)).mT)


class Fourier(nn.Module):
    """A Fourier neural operator's layer (Li et al., 2021), its weights real pairs of complex numbers."""

    def __init__(self, c: int = 3, modes: int = 3) -> None:
        super().__init__()
        self.lift, self.local, self.out = nn.Conv1d(1, c, 1), nn.Conv1d(c, c, 1), nn.Conv1d(c, 1, 1)
        self.weight, self.modes = nn.Parameter(torch.randn(c, c, modes, 2) / c), modes

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        low = torch.fft.rfft(x)[..., : self.modes]
        mixed = torch.einsum("bim,iom->bom", low, torch.view_as_complex(self.weight))
        return self.out(F.gelu(torch.fft.irfft(mixed, n=x.shape[-1]) + self.local(x)))


class Capsules(nn.Module):
    """Capsules with three rounds of routing by agreement (Sabour et al., 2017); outputs are the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.vote = nn.Conv2d(1, 8, 3, 2), nn.Parameter(torch.randn(8, 3, 4, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        u = squashed(self.conv(x).reshape(len(x), 8, 4))
        votes = torch.einsum("nid,ijde->nije", u, self.vote)
        b = votes.new_zeros(votes.shape[:3])
        for _ in range(3):
            v = squashed((b.softmax(2)[..., None] * votes).sum(1))
            b = b + (votes * v[:, None]).sum(-1)
        return v.norm(dim=-1)


def squashed(s: Tensor) -> Tensor:
    square = s.square().sum(-1, keepdim=True)
    return square / (1 + square) * s / (square + 1e-9).sqrt()


class Spatial(nn.Module):
    """A spatial transformer (Jaderberg et al., 2015): where to look is learnt, and sampled bilinearly."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.net = nn.Linear(36, 6), nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        nn.init.normal_(self.where.weight, 0.0, 0.02)
        self.where.bias.data = torch.tensor([1.0, 0.0, 0.03, 0.0, 1.0, 0.01])

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.where(x.flatten(1)).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.net(F.grid_sample(x, grid, align_corners=False))


class Siren(nn.Module):
    """Sines of sines (Sitzmann et al., 2020), from coordinates to colours."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((2, 8), (8, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(3.0 * layer(x))
        return self.layers[-1](x)


class NeRF(nn.Module):
    """Colours along rays (Mildenhall et al., 2020): positional encoding, densities, compositing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, rays: Tensor) -> Tensor:
        t = torch.linspace(0.1, 1.0, 6)
        points = rays[:, None, :3] + t[:, None] * rays[:, None, 3:]
        encoded = torch.cat([f(k * points) for k in (1.0, 2.0) for f in (torch.sin, torch.cos)], -1)
        colour, density = self.net(encoded).split([3, 1], -1)
        kept = (-F.softplus(density) * 0.18).exp()
        through = torch.cat([torch.ones_like(kept[:, :1]), kept[:, :-1]], 1).cumprod(1)
        return (through * (1 - kept) * colour.sigmoid()).sum(1)


class Squeezed(nn.Module):
    """Squeeze and excitation, depthwise and grouped convolution, average and adaptive pooling, channels shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.group = nn.Conv2d(4, 4, 3, groups=4, padding="same"), nn.Conv2d(4, 8, 1, groups=2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.Hardswish(), nn.Conv2d(2, 8, 1))
        self.shuffle, self.head = nn.ChannelShuffle(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(self.group(F.relu6(self.depth(x))))
        return self.head(F.avg_pool2d(x * self.gate(x).sigmoid(), 3).amax((2, 3)))


class Residual3d(nn.Module):
    """Volumes, with group norm, trilinear upsampling and reflected borders."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 4, 3, 2, 1, padding_mode="replicate"), nn.Conv3d(4, 4, 3, padding=1)
        self.norm, self.out = nn.GroupNorm(2, 4), nn.Conv3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y + self.b(F.softplus(self.norm(y)))
        return self.out(F.interpolate(y, scale_factor=2.0, mode="trilinear"))


def same(model: Callable[[], nn.Module], *shape: int, loss: Any = "squares", classes: int = 0) -> Callable[[], Case]:
    """Inputs of a shape, and targets for what the model makes of them."""

    def build() -> Case:
        made, x = model(), torch.randn(*shape)
        z = made(x)
        y = torch.randint(classes, z.shape[:-1]) if classes else torch.rand_like(z).detach()
        return Case(made, x, y, "classes" if classes else loss)

    return build


def margin(v: Tensor, y: Tensor) -> Tensor:
    """The capsules' loss; y is their number, as ones and zeros."""
    y = (y > 0.5).to(v.dtype)
    return (y * F.relu(0.9 - v).square() + 0.5 * (1 - y) * F.relu(v - 0.1).square()).sum(-1)


CASES = {
    "U-Net": same(UNet, 2, 1, 8, 8),
    "Convolutional autoencoder": same(Autoencoder, 3, 1, 6, 6, loss="yes or no"),
    "WaveNet": same(WaveNet, 2, 1, 8, classes=5),
    "TCN, weight norm, dropout": same(TCN, 2, 2, 6, classes=2),
    "Fourier neural operator": same(Fourier, 3, 1, 10),
    "Capsules": same(Capsules, 3, 1, 5, 5, loss=margin),
    "Spatial transformer": same(Spatial, 3, 1, 6, 6, classes=3),
    "SIREN": same(Siren, 8, 2),
    "NeRF": same(NeRF, 5, 6),
    "Squeeze and excitation": same(Squeezed, 3, 4, 6, 6, classes=3),
    "Residual network of volumes": same(Residual3d, 2, 1, 4, 4, 4),
}
