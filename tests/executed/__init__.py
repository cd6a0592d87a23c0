"""Our kernels as PTX, executed on CPU tensors through the public functions: see tests/ptx."""
