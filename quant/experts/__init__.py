"""Routed experts: where they live, how often each is used, and the door through which they run."""
