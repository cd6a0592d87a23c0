"""Convolutions on colour images of 8 bits, with discretised logistics."""

import torch
from torch import Tensor, nn

import vaez_fast as vf
from vaez_fast.sources import split, sprites


class ColourVAE(nn.Module):
    def __init__(self, latent: int = 16, width: int = 32) -> None:
        super().__init__()
        half = 2 * width
        self.down = nn.Sequential(
            *(nn.Conv2d(3, width, 4, 2, 1), nn.GELU(), nn.Conv2d(width, half, 4, 2, 1), nn.GELU()),
            *(nn.Flatten(), nn.Linear(half * 8 * 8, 2 * latent)),
        )
        self.up = nn.Sequential(
            *(nn.Linear(latent, half * 8 * 8), nn.Unflatten(1, (half, 8, 8)), nn.GELU()),
            *(nn.ConvTranspose2d(half, width, 4, 2, 1), nn.GELU()),
            nn.ConvTranspose2d(width, 6, 4, 2, 1),
        )

    def encode(self, batch: dict[str, Tensor]) -> vf.Gaussian:
        return vf.Gaussian(*self.down(batch["x"] / 127.5 - 1.0).chunk(2, 1))

    def decode(self, z: Tensor) -> vf.DiscretizedLogistic:
        location, log_scale = self.up(z).chunk(2, 1)
        return vf.DiscretizedLogistic(location, log_scale - 2.0)


def main(rows: int = 4096, epochs: int = 10) -> vf.Evaluation:
    torch.manual_seed(0)
    training, held_out = split(sprites(rows), 0.1)
    fit = vf.Trainer(ColourVAE(), beta=vf.warmup(200), lr=vf.cosine(2e-3), clip=100.0)
    fit.train(training, epochs=epochs, batch_size=64)
    return fit.evaluate(held_out, samples=32)


if __name__ == "__main__":
    print(main())
