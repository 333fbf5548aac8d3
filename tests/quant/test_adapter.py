"""What moves experts between tokens: when it does, when it does not, and how often it is asked."""

from types import SimpleNamespace

import torch

from quant.experts.adaptation import AdaptationPolicy
from quant.experts.adapter import ADAPT_EVERY, GPU_NBYTES_PER_SECOND, ExpertAdapter
from quant.experts.placement import ExpertKey
from quant.experts.sharing import SharingCosts

NUM_EXPERTS, LAYERS, NUM_LAYERS = 8, (1, 2), 3
EXPERT_NBYTES = 1_000_000
KEYS = [ExpertKey(i, j) for i in LAYERS for j in range(NUM_EXPERTS)]
EAGER = AdaptationPolicy(hysteresis=1.0, noise=0.0, horizon_tokens=10**9)


class Moves:
    """Exchanges that are carried out only when a test says so."""

    def __init__(self) -> None:
        self.num_done = self.num_looks = 0
        self.asked: list[tuple[ExpertKey, ExpertKey]] = []

    def ask(self, pairs) -> None:
        self.asked = list(pairs)

    def advance(self) -> None:
        self.num_looks += 1

    def finish(self) -> None:
        self.asked = []


class LateLane:
    """Copies that have not ended before `end`."""

    def __init__(self) -> None:
        self.begun = []

    def copy(self, target, source) -> None:
        self.begun.append((target, source))

    def mark(self):
        return SimpleNamespace(query=lambda: not self.begun, synchronize=self.end)

    def end(self) -> None:
        for target, source in self.begun:
            target.copy_(source)
        self.begun.clear()


class Store:
    """Half of each layer is on the GPU; who is asked to move does so at once."""

    def __init__(self, bus: float = 1e9, on_disk: frozenset[ExpertKey] = frozenset()) -> None:
        self.resident = {key for key in KEYS if key.expert_idx < 4}
        self.routing_counts = torch.zeros(NUM_LAYERS, NUM_EXPERTS + 1, dtype=torch.int64)
        self.counts = self.routing_counts[:, :NUM_EXPERTS]  # the last one is shared
        self.lane = LateLane()
        self.lanes = SimpleNamespace(main=self.lane)
        self.moves = Moves()
        self.pool = SimpleNamespace(slot_nbytes=EXPERT_NBYTES)
        self.costs = SharingCosts(ram=1e9, bus=bus)
        self.on_disk = on_disk
        self.swaps: list[tuple[ExpertKey, ExpertKey]] = []

    def is_in_ram(self, key: ExpertKey) -> bool:
        return key not in self.resident and key not in self.on_disk

    def swap_all(self, pairs) -> None:
        for promoted, demoted in pairs:
            assert self.is_in_ram(promoted)
            assert demoted in self.resident
            self.resident = self.resident - {demoted} | {promoted}
            self.swaps.append((promoted, demoted))
            self.moves.num_done += 1

    def route(self, num_tokens: int, *keys: ExpertKey) -> None:
        for key in keys:
            self.counts[key] += num_tokens


def make(store: Store, policy: AdaptationPolicy = EAGER, prior=None, prior_tokens: float = 0.0):
    return ExpertAdapter(store, LAYERS, prior, prior_tokens, policy)  # type: ignore[arg-type]


def test_what_a_conversation_uses_comes_and_what_it_does_not_use_leaves():
    store = Store()
    adapter = make(store)
    store.route(
        100, ExpertKey(1, 6), ExpertKey(2, 5), *(ExpertKey(i, j) for i in LAYERS for j in (0, 1, 2))
    )
    assert adapter.adapt(100) == 2
    assert {promoted for promoted, _ in store.swaps} == {ExpertKey(1, 6), ExpertKey(2, 5)}
    assert {demoted for _, demoted in store.swaps} == {ExpertKey(1, 3), ExpertKey(2, 3)}
    assert adapter.adapt(100) == 0  # nothing new was said
    assert adapter.num_swaps == 2


def test_switched_off_nothing_moves_and_nothing_is_read_from_the_device():
    store = Store()
    store.route(1000, ExpertKey(1, 6))
    adapter = make(store, AdaptationPolicy(is_on=False))
    del store.counts  # reading them would wait for the device
    assert adapter.adapt(1000) == 0
    assert store.swaps == []


def test_two_that_are_used_alike_do_not_change_places_for_ever():
    """Turn by turn one of them is a little ahead: with hysteresis that moves nothing."""
    first, second = ExpertKey(1, 0), ExpertKey(1, 6)
    moves = {}
    for name, policy in (("eager", EAGER), ("kept", AdaptationPolicy(horizon_tokens=10**9))):
        store = Store()
        adapter = make(store, policy)
        others = [key for key in store.resident if key != first]
        for turn in range(20):
            store.route(64, first, second, *others)
            store.route(9, (first, second)[turn % 2])
            store.route(100, *others)
            adapter.adapt(64 * (turn + 1))
        moves[name] = len(store.swaps)
    assert moves["eager"] >= 10
    assert moves["kept"] <= 1


def test_a_move_that_does_not_pay_for_its_way_is_left_out():
    """One hit in ten tokens more for a thousand tokens, against two ways over the bus."""
    moved = {}
    for bus in (1e9, 1e6):
        store = Store(bus)
        policy = AdaptationPolicy(hysteresis=1.0, noise=0.0, horizon_tokens=1000)
        adapter = make(store, policy)
        store.route(100, *(key for key in store.resident if key != ExpertKey(1, 3)))
        store.route(10, ExpertKey(1, 6))
        adapter.adapt(100)
        saved = 0.1 * 1000 * (EXPERT_NBYTES / (1e9 + bus) - EXPERT_NBYTES / GPU_NBYTES_PER_SECOND)
        moved[bus] = (len(store.swaps), saved > 2 * EXPERT_NBYTES / bus)
    assert moved == {1e9: (1, True), 1e6: (0, False)}


def test_who_is_only_on_disk_waits_for_being_read_for_a_token():
    hot = ExpertKey(1, 6)
    store = Store(on_disk=frozenset({hot}))
    adapter = make(store)
    store.route(500, hot)
    assert adapter.adapt(500) == 0
    store.on_disk = frozenset()
    store.route(10, hot)
    assert adapter.adapt(510) == 1


def test_no_more_experts_move_at_once_than_the_policy_allows():
    store = Store()
    adapter = make(
        store, AdaptationPolicy(hysteresis=1.0, noise=0.0, horizon_tokens=10**9, max_swaps=3)
    )
    for rank, key in enumerate(key for key in KEYS if key not in store.resident):
        store.route(100 + rank, key)
    assert adapter.adapt(100) == 3
    assert [promoted.expert_idx for promoted, _ in store.swaps] == [7, 6, 5]  # the best ones
    assert all(promoted.layer_idx == 2 for promoted, _ in store.swaps)


def test_an_earlier_profile_fades_as_the_conversation_goes_on():
    prior = {i: [5e5] * 4 + [0.0] * 4 for i in LAYERS}
    store = Store()
    adapter = make(store, AdaptationPolicy(horizon_tokens=10**9), prior, 1e6)
    store.route(8, ExpertKey(1, 6))
    assert adapter.adapt(8) == 0
    moved = 0
    for turn in range(1, 40):
        store.route(64, ExpertKey(1, 6))
        moved += adapter.adapt(8 + 64 * turn)
    assert moved == 1


def test_more_tokens_never_undo_what_is_right():
    """The six used most end on the GPU, whoever began there, and stay."""
    store = Store()
    adapter = make(store, AdaptationPolicy(horizon_tokens=10**9))
    hot = [ExpertKey(1, 4), ExpertKey(1, 5), ExpertKey(2, 4), ExpertKey(2, 7), ExpertKey(1, 0)]
    seen = []
    for turn in range(30):
        store.route(60, *hot)
        store.route(3, *KEYS)
        adapter.adapt(63 * (turn + 1))
        seen.append(len(store.swaps))
    assert set(hot) <= store.resident
    assert seen[-1] == seen[5]
    assert adapter.num_swaps == seen[-1]


def test_before_the_first_tokens_nothing_moves():
    store = Store()
    assert make(store, AdaptationPolicy()).adapt(0) == 0


def test_within_a_reply_counts_are_read_when_they_are_here_and_never_waited_for():
    store = Store()
    adapter = make(store)
    hot = ExpertKey(1, 6)
    store.route(200, hot)
    for num_tokens in range(1, ADAPT_EVERY + 3):
        adapter.follow(num_tokens)
    assert (store.moves.asked, len(store.lane.begun)) == ([], 1)
    store.lane.end()
    store.route(10_000, ExpertKey(2, 7))  # of tokens after those that were asked for
    adapter.follow(ADAPT_EVERY + 3)
    assert store.moves.asked[0][0] == hot
    assert ExpertKey(2, 7) not in {promoted for promoted, _ in store.moves.asked}
    assert store.moves.num_looks == ADAPT_EVERY + 3  # what is under way goes on at every token
    adapter.follow(ADAPT_EVERY + 4)
    assert store.lane.begun == []
    adapter.follow(2 * ADAPT_EVERY)
    assert len(store.lane.begun) == 1


def test_a_turn_that_ends_before_the_counts_are_here_counts_everything_once():
    store = Store()
    adapter = make(store)
    store.route(200, ExpertKey(1, 6))
    adapter.follow(ADAPT_EVERY)
    assert adapter.adapt(ADAPT_EVERY + 5) == 1
    store.lane.end()
    adapter.follow(ADAPT_EVERY + 6)
    assert (store.moves.asked, adapter.num_swaps) == ([], 1)


def test_switched_off_nothing_is_asked_within_a_reply():
    store = Store()
    adapter = make(store, AdaptationPolicy(is_on=False))
    for num_tokens in range(2 * ADAPT_EVERY):
        adapter.follow(num_tokens)
    assert (store.lane.begun, store.moves.num_looks) == ([], 0)
