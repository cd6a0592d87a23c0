"""Counts of genes in single cells, as scVI models them (Lopez et al. 2018)."""

import torch
from torch import Tensor, nn

import vaez_fast as vf
from vaez_fast.sources import SparseRows, split


class Cells(nn.Module):
    def __init__(self, genes: int, latent: int = 10, width: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(genes, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)),
            nn.Linear(width, 2 * latent),
        )
        self.head = nn.Sequential(
            *(nn.Linear(latent, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, genes)),
        )
        self.log_dispersion = nn.Parameter(torch.zeros(genes))

    def encode(self, batch: dict[str, Tensor]) -> vf.Gaussian:
        return vf.Gaussian(*self.net(batch["counts"].log1p()).chunk(2, -1))

    def decode(self, z: Tensor, batch: dict[str, Tensor]) -> vf.NegativeBinomial:
        return vf.NegativeBinomial(self.head(z), self.log_dispersion, library=batch["library"])


def simulated(rows: int, genes: int) -> dict[str, Tensor | SparseRows]:
    """Five kinds of cells of different sizes; most counts are zero."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.softmax(1.5 * torch.randn(5, genes, generator=draw), 1)
    kind = torch.randint(5, (rows,), generator=draw)
    size = torch.exp(5.0 + 0.4 * torch.randn(rows, generator=draw))
    counts = torch.poisson(size[:, None] * kinds[kind], generator=draw)
    return {"counts": SparseRows.of(counts.to_sparse_csr()), "library": counts.sum(1)}


def main(rows: int = 4096, genes: int = 500, epochs: int = 10) -> vf.Evaluation:
    torch.manual_seed(0)
    training, held_out = split(simulated(rows, genes), 0.1)
    fit = vf.Trainer(Cells(genes), beta=vf.warmup(200), optimizer=torch.optim.AdamW, lr=2e-3)
    fit.train(training, epochs=epochs, batch_size=128)
    return fit.evaluate(held_out, samples=100)


if __name__ == "__main__":
    print(main())
