"""In which order a chunk of a prompt stages experts, waits and reads them; nothing is computed."""

from contextlib import nullcontext

import pytest
import torch

from erniechat.model.step_assembly import build_chunk
from tests.cuda import test_tiered
from tests.cuda.test_device_step import CONFIG, pytestmark  # noqa: F401  # the same conditions

NUM_TOKENS = 32


class Kernel:
    """Notes its launches: its name, and the layer whose addresses an argument has.

    Args:
        log: Where.
        name: Of the kernel.
        argument: Index of that argument; None for a kernel of any layer.
        layer_of: Layers by the argument's data_ptr; other launches are not noted.
    """

    def __init__(self, log, name, argument, layer_of) -> None:
        self.log, self.name, self.argument, self.layer_of = log, name, argument, layer_of

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **options) -> None:
        if self.argument is None:
            self.log.append(self.name)
        elif (layer_idx := self.layer_of.get(args[self.argument].data_ptr())) is not None:
            self.log.append((self.name, layer_idx))


class Stream:
    """Notes for what it waits; an event is of the launch before it."""

    def __init__(self, log, name) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: "Event") -> None:
        self.log.append((f"{self.name} waits", event.layer_idx))


class Event:
    """Remembers which layer's experts were brought last."""

    def record(self, stream: Stream) -> None:
        kernel, self.layer_idx = stream.log[-1]
        assert (stream.name, kernel) == ("ahead", "stage_kernel")


@pytest.fixture
def order_of(monkeypatch: pytest.MonkeyPatch):
    """What a chunk does one after the other, with so many experts of a layer staged."""
    from quant.kernels.triton import chunk as module

    models = []

    def run(num_staged: int) -> list[object]:
        monkeypatch.setattr(test_tiered, "NUM_STAGED", num_staged)
        models.append(model := test_tiered.TieredModel("nf4", cpu_share=(0, 1, 1)))
        chunk, log = build_chunk(model.step, model.store), []
        sources = model.step._experts.cpu.stage_sources
        read = {chunk._gate_up_at[i][0].data_ptr(): i for i in CONFIG.moe_layers}
        staged = {sources[i].data_ptr(): i for i in CONFIG.moe_layers} if num_staged else {}
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            by = {"stage_kernel": (0, staged), "tiles_kernel": (3, read)}.get(name, (None, {}))
            monkeypatch.setattr(module, name, Kernel(log, name, *by))
        main = Stream(log, "main")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: main)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "Event", Event)
        chunk._ahead, model.step._beside = Stream(log, "ahead"), None
        chunk.state[3] = NUM_TOKENS
        chunk.forward(NUM_TOKENS)
        return log

    yield run
    monkeypatch.undo()
    for model in models:
        model.store.close()


def test_staged_experts_are_waited_for_after_the_cpu_was_asked_and_before_they_are_read(order_of):
    log = order_of(2)
    first, last = CONFIG.moe_layers
    begun = [log.index(("stage_kernel", i)) for i in (first, last)]
    assert [log[at - 1] for at in begun] == ["ahead waits for main"] * 2
    assert begun[1] < log.index("ask_rows_kernel")  # beside all that the layer before does
    for i, asked in zip((first, last), _all(log, "ask_rows_kernel"), strict=True):
        assert asked < log.index(("main waits", i)) < log.index(("tiles_kernel", i))
    assert [entry[0] for entry in log if isinstance(entry, tuple)].count("main waits") == 2


def test_where_nobody_is_staged_nobody_waits(order_of):
    log = order_of(0)
    assert log.count("ask_rows_kernel") == len(CONFIG.moe_layers)
    assert {entry[0] for entry in log if isinstance(entry, tuple)} == {"tiles_kernel"}
    assert "ahead waits for main" not in log


def _all(log: list[object], entry: object) -> list[int]:
    return [at for at, found in enumerate(log) if found == entry]
