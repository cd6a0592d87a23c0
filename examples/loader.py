"""One's own DataLoader and one's own log."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import vaez_fast as vf


class SmallVAE(nn.Module):
    def __init__(self, pixels: int = 784, latent: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 128), nn.ReLU(), nn.Linear(128, pixels))

    def encode(self, x: Tensor) -> vf.Gaussian:
        return vf.Gaussian(*self.encoder(x).chunk(2, -1))

    def decode(self, z: Tensor) -> vf.Bernoulli:
        return vf.Bernoulli(self.decoder(z))


def stripes(rows: int) -> Tensor:
    """Pictures (N, 784) of 0 and 1 with stripes of random width and place."""
    draw = torch.Generator().manual_seed(0)
    width, place = 2 + 4 * torch.rand(2, rows, 1, generator=draw)
    lines = ((torch.arange(28) + place * width) // width) % 2
    return lines[:, :, None].expand(rows, 28, 28).flatten(1).float()


def main(rows: int = 4096, epochs: int = 5) -> list[str]:
    torch.manual_seed(0)
    lines: list[str] = []

    def log(step: int, numbers: Mapping[str, float]) -> None:
        lines.append(f"step {step}: ELBO {numbers['elbo']:.1f} nats per picture")

    data = TensorDataset(stripes(rows))
    loader = DataLoader(
        data,
        batch_size=128,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda rows: torch.stack([x for (x,) in rows]),
    )
    vf.Trainer(SmallVAE(), log=log).train(loader, epochs=epochs)
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
