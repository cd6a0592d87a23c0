"""Executes our kernels' PTX on CPU tensors, through the public functions; see tests/ptx."""
