"""`python -m erniechat` and the `erniechat` command: runs the command line and leaves."""

from typing import NoReturn

import erniechat.cli as cli
from erniechat.ui.failure import fill_descriptors
from erniechat.ui.process import leave


def main() -> NoReturn:
    """Run the command line; leave with its exit status."""
    fill_descriptors()
    leave(cli.main())


if __name__ == "__main__":
    main()
