"""What the scripts say: results to stdout, progress to stderr."""

import sys


def say(text: str) -> None:
    """Write a line of the result to stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def report(text: str) -> None:
    """Write a line of progress to stderr, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
