"""A stand-in for the CUDA libraries, under which the host code of a CUDA run is rehearsed."""
