"""Signals as one exception: what they leave of the terminal."""

import sys
import termios
import tty

import pexpect

CHILD = """
import os, signal, tty
from erniechat.ui.signals import Interrupted, signals_raise
try:
    with signals_raise():
        tty.setraw(0)
        os.kill(os.getpid(), signal.SIGTERM)
except Interrupted as exc:
    raise SystemExit(exc.exit_status)
"""


def test_a_mode_that_nobody_had_time_to_leave_is_left_at_the_end():
    child = pexpect.spawn(sys.executable, ["-c", "input('go?')\n" + CHILD], timeout=60)
    child.expect_exact("go?")
    before = termios.tcgetattr(child.child_fd)
    assert before[tty.LFLAG] & termios.ICANON
    child.send("\n")
    child.expect(pexpect.EOF)
    assert termios.tcgetattr(child.child_fd) == before
    child.close()
    assert child.exitstatus == 143
