"""From a prompt to token ids: sampling, and prefill then decode."""
