"""Features of images: small convolutional networks trained to classify the training split.

Distances between sets of images are computed in a network's penultimate layer. It is trained on the
data set itself, in less than a minute. So distances compare only between runs with the same network
(see `Training.sha256`), and not with the Inception distances of the literature. Three networks from
different seeds show how much a distance depends on the network.
"""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..data import Dataset, binarize, binarized, epoch_order
from ..streams import FEATURE_PIXELS
from ..system.archives import read_tensors
from ..system.errors import first_line, shown
from ..system.files import OutputError, write_atomically

CLASSES = 10
SEEDS = (0, 1, 2)  # of the networks in whose features images are compared
MOST_BYTES = 2**24  # the file of three networks has 800 kB
BATCH = 100
MAX_IMAGES = 20_000
# 25 epochs of mnist-5k, 5 of 20,000 images.
IMAGES_SEEN = 100_000
LEARNING_RATE = 2e-3
# 100 images times 16 × 28 × 28 activations are 5 MB.
IMAGES_AT_ONCE = 100


class FeatureNet(nn.Module):
    """Two convolutions and two linear layers; 28 × 28 images of 10 classes.

    torchmetrics reads the width from `num_features`.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 5 * 5, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, CLASSES)
        self.scale = nn.Buffer(torch.ones(()))
        # Pooling takes most of the time otherwise: 1.9 s for 10,000 images on one core, not 0.6.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 784) float32 in [0, 1] → penultimate activations (N, 64) float32."""
        return self.body(images) * self.scale

    def normalize(self, images: Tensor) -> None:
        """Scale the features to a mean square of 1 over `images`; classes do not change.

        Their size is arbitrary after training, and a Fréchet distance grows with its square.
        """
        size = self.features(images).double().square().mean().sqrt().float()
        self.scale.div_(size)
        self.head.weight.data *= size

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """`forward` without gradients, in chunks of images."""
        return torch.cat([self(part) for part in images.split(IMAGES_AT_ONCE)])

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """images (N, 784) float32 in [0, 1] → classes (N,) int64."""
        return self.classes_of(self.features(images))

    @torch.no_grad()
    def classes_of(self, features: Tensor) -> Tensor:
        """features (N, 64) → classes (N,) int64."""
        return self.head(features).argmax(1)

    def sha256(self) -> str:
        """Of the names, shapes and float32 values of all weights."""
        digest = hashlib.sha256()
        for name, weight in self.state_dict().items():
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            digest.update(weight.detach().float().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Training:
    """The record of a feature network's training."""

    data: str
    seed: int
    images: int
    epochs: int
    accuracy_binary: float  # on the test split, statically binarised
    accuracy_grey: float  # on the test split, grey levels
    seconds: float  # of training, without the accuracies
    sha256: str

    def as_dict(self) -> dict[str, str | int | float]:
        return asdict(self)


Networks = list[tuple[FeatureNet, Training]]


def save_features(networks: Networks, file: Path) -> None:
    """Write the networks of `SEEDS` and their records to `file`, completely or not at all."""
    kept = [{"model": net.state_dict(), "training": own.as_dict()} for net, own in networks]
    buffer = io.BytesIO()
    torch.save({"networks": kept}, buffer)
    write_atomically(file, buffer.getvalue())


def load_features(file: Path, device: torch.device) -> Networks:
    """Read what `save_features` wrote.

    Raises:
        OutputError: the file cannot be read, is another file (also one of older versions, which
            held one network), or weights do not match their record.
    """
    content = read_tensors(file, MOST_BYTES)
    try:
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__}")
        if "networks" not in content and "model" in content:
            raise TypeError("it holds one network, as older versions wrote; choose another folder")
        networks = [_network(part) for part in content["networks"]]
        seeds = tuple(training.seed for _, training in networks)
        if seeds != SEEDS:
            raise TypeError(f"expected seeds {SEEDS}, got {shown(seeds)}")
    except (LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise OutputError(
            f"cannot read {file}: no feature networks ({first_line(error)})"
        ) from None
    if any(training.sha256 != net.sha256() for net, training in networks):
        raise OutputError(f"cannot read {file}: its weights are not those of its records")
    return [(net.to(device), training) for net, training in networks]


def _network(content: Any) -> tuple[FeatureNet, Training]:
    if not isinstance(content, dict):
        raise TypeError(f"a network is {shown(content)}")
    net = FeatureNet().requires_grad_(False)
    net.load_state_dict(content["model"])
    training = Training(**content["training"])
    for name, kind in get_type_hints(Training).items():
        if type(value := getattr(training, name)) is not kind:
            raise TypeError(f"its {name} is {shown(value)}")
    return net, training


def kept_networks(dataset: Dataset, file: Path) -> Networks:
    """The networks in `file`; if it is missing they are trained, and written to it.

    So a study that is continued later, or on another machine, uses the same features.

    Raises:
        OutputError: as `load_features`, or the file cannot be written.
    """
    if file.exists():
        return load_features(file, dataset.train.images.device)
    networks = train_networks(dataset)
    save_features(networks, file)
    return networks


def train_networks(dataset: Dataset) -> Networks:
    """Train a network from each of `SEEDS`, as `train_features` does."""
    return [train_features(dataset, seed) for seed in SEEDS]


@torch.enable_grad()
def train_features(dataset: Dataset, seed: int = 0) -> tuple[FeatureNet, Training]:
    """Train a network on at most the first 20,000 images of the training split, on their device.

    Half of every batch is grey levels, the other half binary samples of them, because decoders are
    scored both by means and by samples. Validation and test images are not used for training.

    The same data, seed, machine and number of threads give the same weights to the last bit.
    """
    clock = time.perf_counter()
    images, labels = dataset.train.images[:MAX_IMAGES], dataset.train.labels[:MAX_IMAGES]
    device = images.device
    epochs = -(-IMAGES_SEEN // len(images))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FeatureNet().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    batches = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for epoch in range(epochs):
        drawn = binarize(images, "dynamic", FEATURE_PIXELS.key(seed, epoch, device=device))
        for rows in epoch_order(seed, epoch, len(images), device).split(BATCH):
            grey, binary = rows[::2], rows[1::2]
            x = torch.cat([images[grey].float() / 255, drawn[binary].float()])
            loss = cross_entropy(net.head(net(x)), torch.cat([labels[grey], labels[binary]]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.requires_grad_(False)
    net.normalize(drawn.float())
    seconds = time.perf_counter() - clock

    def accuracy(x: Tensor) -> float:
        return float((net.predict(x) == dataset.test.labels).double().mean())

    return net, Training(
        data=dataset.name,
        seed=seed,
        images=len(images),
        epochs=epochs,
        accuracy_binary=accuracy(binarized(dataset, "test", "static").float()),
        accuracy_grey=accuracy(dataset.test.images.float() / 255),
        seconds=seconds,
        sha256=net.sha256(),
    )
