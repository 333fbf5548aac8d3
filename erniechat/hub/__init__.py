"""Models on the hub: what they consist of, what of it is here, and how the rest gets here."""
