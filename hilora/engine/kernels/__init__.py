"""Kernels for a GPU, each with a plain torch or numpy twin that the CPU uses."""
