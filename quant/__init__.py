"""Quantized weights, the kernels that multiply with them, and the store of routed experts.

Knows nothing of chat, text or terminals.
"""
