"""The settings of a run: names of arms and limits of the seed."""

from __future__ import annotations

from typing import Any

import pytest

from vaez_fast.config import ConfigError, TrainConfig
from vaez_fast.drawing import style


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


def test_what_is_not_usual_is_in_an_arms_name() -> None:
    names = {
        TrainConfig(posterior="full-covariance"): "elbo/analytic/joint/posterior=full-covariance",
        TrainConfig(posterior="iaf"): "elbo/total-derivative/joint/posterior=iaf",
        TrainConfig(prior="vamp"): "elbo/total-derivative/joint/prior=vamp",
        TrainConfig(free_bits=0.25): "elbo/analytic/joint/free-bits=0.25",
        TrainConfig(kl_warmup=0.5): "elbo/analytic/joint/kl-warmup=0.5",
        TrainConfig(optimizer="rmsprop"): "elbo/analytic/joint/optimizer=rmsprop",
        TrainConfig(decoder="randn", optimizer="rmsprop"): "randn/optimizer=rmsprop",
        TrainConfig(beta=2.0, num_samples=3, posterior="iaf", prior="flow", kl_warmup=1): (
            "elbo/total-derivative/joint/beta=2/k=3/posterior=iaf/prior=flow/kl-warmup=1"
        ),
    }
    for config, name in names.items():
        assert config.arm == name
        assert len(style.colour(name)) == 7
        assert style.linestyle(name) == "-"


def test_where_the_kl_has_no_closed_form_the_default_is_monte_carlo() -> None:
    richer: list[dict[str, Any]] = [{"prior": "mixture"}, {"prior": "flow"}, {"posterior": "iaf"}]
    for settings in richer:
        assert TrainConfig(**settings).kl == "total-derivative"
    assert TrainConfig(posterior="full-covariance").kl == "analytic"
    assert TrainConfig(posterior="full-covariance", prior="flow").kl == "total-derivative"
    assert TrainConfig(objective="iwae").kl == "total-derivative"


def test_the_largest_seed_is_the_largest_word_of_the_noise_stream() -> None:
    assert TrainConfig(seed=2**32 - 1).seed == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match="seed must be an integer in"):
            TrainConfig(seed=seed)
