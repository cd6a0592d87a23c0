"""Numbers in columns, with a prior that is learned and scales that are learned."""

import torch
from torch import Tensor, nn

import vaez_fast as vf


class TableVAE(nn.Module):
    def __init__(self, columns: int, latent: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(columns, 64), nn.SiLU(), nn.Linear(64, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 64), nn.SiLU(), nn.Linear(64, columns))
        self.logvar = nn.Parameter(torch.zeros(columns))

    def encode(self, x: Tensor) -> vf.Gaussian:
        return vf.Gaussian(*self.encoder(x).chunk(2, -1))

    def decode(self, z: Tensor) -> vf.Gaussian:
        return vf.Gaussian(self.decoder(z), self.logvar)


def clusters(rows: int, columns: int = 20) -> Tensor:
    """Three clusters on a curved surface, standardised."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 2, generator=draw) + 4.0 * torch.randint(3, (rows, 1), generator=draw)
    x = torch.sin(z @ torch.randn(2, columns, generator=draw))
    x = x + 0.1 * torch.randn(rows, columns, generator=draw)
    return (x - x.mean(0)) / x.std(0)


def main(rows: int = 4096, epochs: int = 20) -> vf.Evaluation:
    torch.manual_seed(0)
    x = clusters(rows)
    fit = vf.Trainer(TableVAE(20), prior=vf.MixturePrior(4, components=20), lr=vf.cosine(1e-2))
    fit.train(x[rows // 10 :], epochs=epochs, batch_size=128)
    return fit.evaluate(x[: rows // 10], samples=100)


if __name__ == "__main__":
    print(main())
