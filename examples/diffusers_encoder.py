"""Encoder and decoder of diffusers' AutoencoderKL, trained by our engine."""

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

import vaez_fast as vf
from vaez_fast.sources import split, sprites


class KLAutoencoder(nn.Module):
    def __init__(self, channels: int = 4, widths: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        blocks = len(widths)
        shape = {"block_out_channels": widths, "norm_num_groups": 8}
        self.encoder = Encoder(
            3, channels, ("DownEncoderBlock2D",) * blocks, double_z=True, **shape
        )
        self.decoder = Decoder(channels, 3, ("UpDecoderBlock2D",) * blocks, **shape)
        self.logvar = nn.Parameter(torch.zeros(()))

    def encode(self, batch: dict[str, Tensor]) -> vf.Gaussian:
        return vf.Gaussian(*self.encoder(batch["pixels"]).chunk(2, 1))

    def decode(self, z: Tensor) -> vf.Gaussian:
        return vf.Gaussian(self.decoder(z), self.logvar)


def main(rows: int = 512, epochs: int = 2) -> vf.Evaluation:
    torch.manual_seed(0)
    data = {"pixels": sprites(rows)["x"] / 127.5 - 1.0}
    training, held_out = split(data, 0.1)
    fit = vf.Trainer(KLAutoencoder(), beta=0.1, lr=1e-3, clip=10.0)
    fit.train(training, epochs=epochs, batch_size=16)
    return fit.evaluate(held_out, samples=4)


if __name__ == "__main__":
    print(main())
