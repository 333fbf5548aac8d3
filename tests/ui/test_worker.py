"""The model's thread: calls one after the other, and whether one waits."""

import threading

from erniechat.ui.worker import Worker


def test_a_call_under_way_can_tell_that_another_waits():
    worker, asked, go_on = Worker(), [], threading.Event()

    def warm_up() -> None:
        asked.append(worker.is_wanted)
        go_on.wait(10)
        asked.append(worker.is_wanted)

    warm = worker.submit(warm_up)
    while not asked:
        pass
    reply = worker.submit(lambda: "reply")
    go_on.set()
    assert reply.wait(10)
    assert reply.result() == "reply"
    assert warm.done
    assert asked == [False, True]
    assert worker.finish(10)
