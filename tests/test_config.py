"""The settings of a run: names of arms and limits of the seed."""

from __future__ import annotations

import pytest

from vaez_fast.config import ConfigError, TrainConfig


def test_arms_that_differ_in_a_weight_or_a_count_have_names_of_their_own() -> None:
    weights = [TrainConfig(beta=beta).arm for beta in (0.5, 1.0, 1.5, 2.0, 4.0)]
    assert weights == [
        "elbo/analytic/joint/beta=0.5",
        "elbo/analytic/joint",
        "elbo/analytic/joint/beta=1.5",
        "elbo/analytic/joint/beta=2",
        "elbo/analytic/joint/beta=4",
    ]
    assert TrainConfig(num_samples=2).arm == "elbo/analytic/joint/k=2"
    assert TrainConfig(decoder="randn").arm == "randn"


def test_the_largest_seed_is_the_largest_word_of_the_noise_stream() -> None:
    assert TrainConfig(seed=2**32 - 1).seed == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match="seed must be an integer in"):
            TrainConfig(seed=seed)
