"""A stand-in for the CUDA libraries, which runs the host code of CUDA programs without a GPU."""
