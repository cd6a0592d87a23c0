"""Each arm has one colour and one line style in every figure."""

from __future__ import annotations

import pytest

from vaez_fast.drawing import style

ARMS = (
    "elbo/total-derivative/joint",
    "elbo/analytic/joint",
    "elbo/sticking-the-landing/joint",
    "kl/total-derivative/separate",
    "kl/analytic/separate",
    "kl/sticking-the-landing/separate",
    "kl/as-published/separate",
    "iwae/total-derivative/joint",
    "iwae/doubly-reparameterised/joint",
    "randn",
)


def test_every_arm_has_a_colour_of_its_own() -> None:
    colours = [style.colour(arm) for arm in ARMS]
    assert len(set(colours)) == len(ARMS)
    assert all(len(c) == 7 and int(c[1:], 16) >= 0 for c in colours)


def test_the_articles_methods_keep_its_colours() -> None:
    assert style.colour("elbo/total-derivative/joint") == style.BLUE
    assert style.colour("kl/total-derivative/separate") == style.GREEN
    assert style.colour("kl/analytic/separate") == style.VERMILLION
    assert style.colour("randn") == style.colour("elbo/analytic/randn") == style.BLACK


def test_the_decoder_changes_the_line_alone() -> None:
    separate, tandem = "kl/analytic/separate", "kl/analytic/simultaneous"
    assert style.colour(separate) == style.colour(tandem)
    assert (style.linestyle(separate), style.linestyle(tandem)) == ("-", "--")
    assert style.linestyle("randn") == "-"


def test_beta_is_a_shade() -> None:
    def brightness(beta: str) -> int:
        colour = style.colour(f"elbo/analytic/joint/beta={beta}")
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    shades = [brightness(beta) for beta in ("0", "0.25", "0.5", "1", "2", "4", "10")]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == len(shades)
    assert style.colour("elbo/analytic/joint/beta=1") == style.colour("elbo/analytic/joint")


def test_more_samples_are_a_darker_shade_with_beta_or_without() -> None:
    arms = [f"iwae/total-derivative/joint{k}" for k in ("", "/k=5", "/k=50")]
    arms += [f"elbo/analytic/joint{k}" for k in ("", "/beta=4", "/beta=4/k=5")]
    assert len({style.colour(arm) for arm in arms}) == len(arms)
    assert style.colour("elbo/analytic/joint/k=1") == style.colour("elbo/analytic/joint")


def test_what_mends_z_has_a_colour_of_its_own_whatever_its_value() -> None:
    settings = [f"posterior={name}" for name in ("full-covariance", "iaf")]
    settings += [f"prior={name}" for name in ("mixture", "vamp", "flow")]
    settings += ["free-bits=0.1", "kl-warmup=0.3", "optimizer=rmsprop"]
    colours = [style.colour(f"elbo/analytic/joint/{setting}") for setting in settings]
    plain = style.colour("elbo/analytic/joint")
    assert len({plain, *colours}) == len(settings) + 1
    assert style.colour("elbo/analytic/joint/free-bits=2") == colours[5]
    assert style.colour("elbo/total-derivative/joint/prior=vamp") == colours[3]
    assert style.colour("elbo/analytic/joint/beta=4/prior=vamp") != colours[3]
    assert style.colour("randn/optimizer=rmsprop") == style.BLACK


BAD = ["", "elbo", "elbo/analytic", "elbo/analytic/both", "x/y/joint", "randn/x=1"]
BAD += [f"elbo/analytic/joint/{end}" for end in ("prior=x", "prior", "gamma=2")]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_arm_has_no_colour(name: str) -> None:
    with pytest.raises(ValueError, match="no arm of the study"):
        style.colour(name)


def test_a_figure_leaves_matplotlibs_settings_alone_and_is_the_same_each_time() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn = []
    for _ in range(2):
        with style.figure(2, sharey=True) as (figure, (left, right)):
            left.plot([0, 1], [0, 1], color=style.colour("randn"))
            right.set_xlabel("x")
            drawn.append(style.png(figure))
    assert drawn[0] == drawn[1]
    assert dict(matplotlib.rcParams) == before
