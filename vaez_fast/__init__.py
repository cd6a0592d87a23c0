"""vaez_fast: what distribution do a VAE's latents z really have?"""

from .moved import install

__version__ = "0.1.0"

install()
