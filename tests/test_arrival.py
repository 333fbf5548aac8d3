"""The built-in model while its weights are on their way to a GPU, played on a CPU."""

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erniechat.chat.conversation import Message
from erniechat.engine import Engine
from erniechat.errors import CheckpointError
from erniechat.events import Progress, StreamEvent, TextDelta, TurnEnd
from erniechat.loader import load_engine
from erniechat.mini import checkpoint_folder
from erniechat.model import assembly
from erniechat.model.expert_assembly import ExpertPlaces
from erniechat.options import LoadOptions, SamplingOptions
from erniechat.planning import make_plan
from erniechat.resolve import ModelFiles
from erniechat.weights import finished_weights
from quant.copy import QuantizedCopy
from quant.errors import QuantError
from quant.upload import Uploader
from tests.engines import joined, last
from tests.quant.addressed import AddressBackend, needs_native

pytestmark = needs_native
CPU = torch.device("cpu")
GREEDY = SamplingOptions(temperature=0, max_tokens=16)
QUESTION = [Message("user", "What is 17 + 25?")]
ANSWER = "17 + 25 = 42"
PATIENCE = 60.0  # seconds; nothing here takes as long, however busy the machine


class Machine:
    """One whose GPU gets weights when the test opens the way, and until then keeps noise."""

    def __init__(self, whole: Engine, options: LoadOptions) -> None:
        self._whole = whole
        self.plan = make_plan(ModelFiles(checkpoint_folder()), options)
        self.copy = finished_weights(self.plan, options, None, lambda text: None)
        self.opened = threading.Event()
        self.pause = 0.0

    def upload(self, uploader: Uploader, target: torch.Tensor, source: torch.Tensor) -> None:
        assert self.opened.wait(PATIENCE)
        time.sleep(self.pause)
        target.copy_(source)

    def engine(self, weights: QuantizedCopy | None = None) -> Engine:
        backend = AddressBackend()
        formats = dataclasses.replace(
            self.plan.formats, linear_backend=backend, embedding_backend=backend
        )
        decoder = assembly._assemble_pooled(
            self.plan.config,
            weights or self.copy,
            formats,
            CPU,
            torch.float32,
            ExpertPlaces(),
            None,
        )
        return Engine(
            self._whole.info,
            decoder,
            self._whole.prompts,
            stop_ids=self._whole._stop_ids,
            weights_nbytes=self.copy.nbytes,
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, LoadOptions]]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(variable, str(home / variable))
        options = LoadOptions(quant="nf4", dtype="float32", kernels="reference", ctx=256)
        yield load_engine(options), options


@pytest.fixture
def machine(whole, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine(*whole)
    monkeypatch.setattr(Uploader, "__call__", lambda *given: found.upload(*given))
    yield found
    found.pause = 0.0
    found.opened.set()


def ask(engine: Engine) -> Iterator[StreamEvent]:
    return engine.stream_reply(QUESTION, GREEDY, think="off")


def test_a_reply_says_how_far_the_weights_are_and_waits_for_them(machine: Machine) -> None:
    engine = machine.engine()
    upload = engine.decoder.upload
    reply = ask(engine)
    assert next(reply) == Progress("load", 0, upload.nbytes)
    assert upload.nbytes > 4_000_000
    machine.opened.set()
    events = list(reply)
    assert joined(events, TextDelta) == ANSWER
    assert upload.done_nbytes == upload.nbytes
    assert "load" not in [e.stage for e in ask(engine) if isinstance(e, Progress)]


def test_a_token_cannot_be_read_before_the_weights_are_there(machine: Machine) -> None:
    engine = machine.engine()
    decoder = engine.decoder
    threading.Timer(0.2, machine.opened.set).start()
    found = decoder.forward([5, 6, 7], decoder.new_kv_cache(8))
    assert torch.equal(found, decoder.forward([5, 6, 7], decoder.new_kv_cache(8)))


def test_stopped_while_it_waits_a_reply_ends_and_the_next_one_is_whole(machine: Machine) -> None:
    engine = machine.engine()
    reply = ask(engine)
    assert isinstance(next(reply), Progress)
    engine.cancel()
    rest = list(reply)
    assert isinstance(rest[-1], TurnEnd)
    assert rest[-1].finish_reason == "cancelled"
    assert joined(rest, TextDelta) == ""
    machine.opened.set()
    assert joined(list(ask(engine)), TextDelta) == ANSWER


def test_whoever_makes_ready_gives_way_to_a_reply(machine: Machine) -> None:
    engine, asked = machine.engine(), []
    engine.warm_up(GREEDY, lambda: len(asked) > 2 or asked.append(1))
    assert not engine.decoder.wait(0)
    machine.opened.set()
    engine.warm_up(GREEDY, lambda: False)
    assert engine.decoder.wait(0)


def test_a_copy_cut_short_meanwhile_is_told_by_every_reply(
    machine: Machine, tmp_path: Path
) -> None:
    copy = QuantizedCopy(Path(shutil.copytree(machine.copy.folder, tmp_path / "copy")))
    engine = machine.engine(copy)
    os.truncate(copy.path, copy.nbytes // 2)
    machine.opened.set()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"weights.bin can no longer be read: it was cut"):
            list(ask(engine))
    assert engine.memory().weights_nbytes == machine.copy.nbytes  # /stats and leaving still work
    assert engine.expert_use().num_tokens == 0
    engine.close()


def test_a_layer_of_the_copy_counts_as_memory_only_while_it_is_read(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, brought = [], []
    upload, let_go = machine.upload, QuantizedCopy.let_go
    machine.upload = lambda *given: brought.append(1) or upload(*given)
    monkeypatch.setattr(
        QuantizedCopy, "let_go", lambda copy: pieces.append(len(brought)) or let_go(copy)
    )
    machine.opened.set()
    assert machine.engine().decoder.wait(PATIENCE)
    layers = machine.plan.config.moe_layers
    assert len(pieces) == 1 + len(layers)  # what every token uses, then each layer's experts
    assert pieces[-1] == len(brought)
    assert len({late - early for early, late in pairwise(pieces)}) == 1


def test_closed_before_the_end_it_brings_no_more(machine: Machine) -> None:
    machine.pause = 0.02
    machine.opened.set()
    engine = machine.engine()
    engine.close()
    upload = engine.decoder.upload
    assert upload.done_nbytes < upload.nbytes
    with pytest.raises(QuantError, match="let go of"):
        engine.decoder.forward([5], engine.decoder.new_kv_cache(8))


def test_what_fails_beside_the_upload_ends_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.pause = 0.02
    machine.opened.set()
    made = []

    def begin(*given):
        made.append(upload(*given))
        return made[0]

    def fail(*given):
        raise torch.OutOfMemoryError("no memory is left for tables")

    upload = assembly.BackgroundUpload
    monkeypatch.setattr(assembly, "BackgroundUpload", begin)
    monkeypatch.setattr(assembly, "pooled_experts", fail)
    with pytest.raises(torch.OutOfMemoryError):
        machine.engine()
    assert made[0].done_nbytes < made[0].nbytes
    assert not made[0]._thread.is_alive()


def test_the_wait_is_no_part_of_the_time_that_reading_takes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    engine = machine.engine()
    monkeypatch.setattr("erniechat.engine.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    reply = ask(engine)
    next(reply)
    clock[0] = 100.0
    machine.opened.set()
    assert last(list(reply)).seconds.read == 0
