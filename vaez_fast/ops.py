"""The ops, under the name that users import: `from vaez_fast.ops import rsample_kl`."""

import vaez_kernels
from vaez_kernels import *  # noqa: F403

__all__ = [name for name in vaez_kernels.__all__ if name.islower() and name != "interpreting"]
