"""Terminal chat for ERNIE 4.5 mixture-of-experts models in 4 or 8 bits."""

__version__ = "0.1.0"
