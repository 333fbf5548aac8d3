"""How the process begins and ends: counted, since times depend on the machine."""

import subprocess
import sys

import pytest

from quant.kernels.native.library import find_library

# A module that prints when it is taken apart, and a function that runs at the end.
BEFORE = """
import atexit, sys, threading, time
class Module:
    def __del__(self):
        print("taken apart", flush=True)
sys.modules["a_module"] = Module()
atexit.register(lambda: print("at the end"))
"""
AFTER = """
from erniechat.ui.process import leave
print("answer")
leave(7)
"""
DAEMON = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
WAITED_FOR = "threading.Thread(target=lambda: (time.sleep(0.2), print('waited for'))).start()\n"


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("thread", ["", DAEMON])
def test_the_process_leaves_without_taking_modules_apart(thread: str) -> None:
    done = run(BEFORE + thread + AFTER)
    assert (done.returncode, done.stdout) == (7, "answer\nat the end\n")


def test_a_thread_that_is_no_daemon_is_waited_for() -> None:
    done = run(BEFORE + WAITED_FOR + AFTER)
    assert done.returncode == 7
    assert done.stdout.splitlines()[:3] == ["answer", "waited for", "at the end"]


ONE_SHOT = """
import gc, sys
from erniechat import cli
def count(phase, info):
    loader = sys.modules.get("erniechat.loader")
    during[loader is not None and not hasattr(loader, "load_engine")] += phase == "start"
during = [0, 0]
gc.callbacks.append(count)
status = cli.main(["-p", "What is 17 + 25?", "--no-stdin"])
print("during imports", during[True], "enabled", gc.isenabled())
print("frozen", gc.get_freeze_count() > 50_000)
print("imported", *sorted({name.split(".")[0] for name in sys.modules}))
"""
# What only other runs need: a hub, a chat, Markdown, a GGUF file, a GPU, compilers.
UNWANTED = """
    bitsandbytes gguf httpx huggingface_hub llguidance markdown_it prompt_toolkit pygments requests
    rich safetensors sympy transformers triton yaml
"""


@pytest.mark.skipif(isinstance(find_library(), str), reason="other kernels import bitsandbytes")
def test_one_answer_imports_what_it_needs_and_looks_for_no_garbage_meanwhile() -> None:
    answer, garbage, frozen, imported = run(ONE_SHOT).stdout.splitlines()
    assert answer == "17 + 25 = 42"
    assert (garbage, frozen) == ("during imports 0 enabled True", "frozen True")
    assert {"torch", "numpy", "tokenizers"} <= set(imported.split())
    assert sorted(set(UNWANTED.split()) & set(imported.split())) == []
