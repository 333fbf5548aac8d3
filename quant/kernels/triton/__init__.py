"""Triton kernels for NVIDIA GPUs. Only `backend` may be imported without Triton."""
