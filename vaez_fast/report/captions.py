"""What the article's report says under the figures of the theory, in their order."""

THEORY = (
    (
        "derivatives.png",
        "The KL's summands F (mu) and G (sigma), which are zero at one point only, and their "
        "derivatives.",
    ),
    ("kl-surface.png", "The KL over the (mu, sigma) plane."),
    ("gradient-flow.png", "Its gradient flow: lines integrated, dots in closed form."),
    ("lyapunov.png", "The KL falls along every path: it is its own Lyapunov function."),
    ("spiral.png", "The article's spiral needs momentum; the flow itself cannot turn."),
    ("monte-carlo-kl.png", "Monte Carlo KL minus the analytic one, with 95 % intervals."),
    ("estimator-variance.png", "Gradient variance: sticking the landing over total derivative."),
    ("published-code.png", "What the article's published code minimised: σ where σ² belongs."),
    ("fit-null.png", "What the fit finds in exactly normal draws."),
    (
        "elbo-curvature.png",
        "The whole ELBO of a linear VAE over its decoder's and encoder's weight, the encoder's "
        "scale at its best. (0, 1) is its maximum only if the data vary less than the decoder's "
        "noise, else a saddle (Lucas et al. 2019).",
    ),
    (
        "linear-vae.png",
        "The linear VAE at its optimum. Left: on Gaussian data the aggregate q(z) is exactly "
        "N(0, I) although no q(z|x) is. Right: on data in two clusters its z are two clusters; "
        "their mean and variance are those of N(0, 1), and a Gaussian fit finds a KL of 0.",
    ),
    (
        "rotation.png",
        "Left: the KL does not change when mean and covariance turn, so it does not prefer a "
        "diagonal covariance. Right: the ELBO with a diagonal q does; it is largest if the "
        "posterior's axes are those of z.",
    ),
)
