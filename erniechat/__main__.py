"""`python -m erniechat` and the `erniechat` command: runs the command line and leaves."""

import signal


def main() -> None:
    """Run the command line; leave with its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until the command line takes it: Ctrl-C during imports ends without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from erniechat import cli
    from erniechat.ui.failure import fill_descriptors
    from erniechat.ui.process import leave

    fill_descriptors()
    leave(cli.main())


if __name__ == "__main__":
    main()
