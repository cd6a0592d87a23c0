"""vaez_fast: what distribution do a VAE's latents z really have?"""

__version__ = "0.1.0"
