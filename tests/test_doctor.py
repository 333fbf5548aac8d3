"""`erniechat doctor`: speeds of the machine, predictions that follow from them, and their file."""

import json
import re
from pathlib import Path

import pytest
import torch

from erniechat import doctor, fit
from erniechat.backend import ExpertUse, PlaceReads
from erniechat.cli import main
from erniechat.decode_reads import DecodeReads
from erniechat.machine import figures_path, kept_figures
from erniechat.memory_plan import Budget, Needs, Speeds, plan_memory
from erniechat.model.config import ModelConfig
from erniechat.model.families import family_of
from erniechat.model.machine_costs import BUCKETS, expert_seconds, random_experts
from erniechat.model_sizes import ModelSizes
from erniechat.options import LoadOptions
from erniechat.ui.stats import experts_text, reads_text
from quant import speeds
from quant.experts.store import TierUse
from quant.formats import FORMATS
from quant.kernels.native import NativeBackend
from quant.memory import ProcessMemory

CPU = torch.device("cpu")
SMALL: ModelConfig = family_of({"model_type": "ernie4_5_moe"}).parse_config(
    {
        "model_type": "ernie4_5_moe",
        "hidden_size": 64,
        "head_dim": 64,
        "moe_intermediate_size": 64,
        "moe_num_experts": 8,
        "moe_k": 2,
        "num_hidden_layers": 3,
    }
)
FOUND = {"ram": 10e9, "disk": 1e9}
SIZES = ModelSizes(SMALL, 1000, 1000, 100)
PLAN = plan_memory(SIZES, Needs(0), None, gpu=None, ram=Budget(10_000), has_disk=True)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def test_the_disk_is_read_past_its_cache_and_left_clean(tmp_path: Path):
    assert speeds.measure_disk(tmp_path / "disk", 16 << 20) > 1e6
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.timed
def test_ram_is_faster_than_any_disk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speeds, "PROBE_NBYTES", 64 << 20)
    assert 5e8 < speeds.measure_ram() < 5e12


@pytest.mark.timed
def test_the_bus_and_experts_are_measured():
    assert 1e8 < speeds.measure_bus(CPU) < 1e13
    seconds = {}
    experts = random_experts(SMALL, FORMATS["nf4"], NativeBackend())
    for factor in (1, 32):  # the least of some: others may use this machine too
        seconds[factor] = min(
            speeds.measure_expert_seconds(NativeBackend(), experts, 32 * factor) for _ in range(5)
        )
    assert 2 < seconds[32] / seconds[1] < 128


def test_the_doctor_refreshes_what_is_kept_and_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert doctor.known_speeds(CPU, PLAN) is None
    old = kept_figures(CPU)
    old.put({"ram": 1.0, "bus": 5e9})
    old.save()
    assert doctor.known_speeds(CPU, PLAN) is not None
    monkeypatch.setattr(doctor, "measure_ram", lambda: FOUND["ram"])
    monkeypatch.setattr(doctor, "measure_disk", lambda folder: FOUND["disk"])
    assert main(["doctor", "--4bit"]) == 0
    assert f"at most 14 days: {figures_path()}" in capsys.readouterr().out
    assert doctor.known_speeds(CPU, PLAN) == Speeds(
        ram=9e9, disk=1e9, handoff_seconds=20e-6, token_seconds=3 * 15e-6,
        disk_token_seconds=3 * 5e-6, read_seconds=400e-6,
    )  # fmt: skip  # one thought a line
    assert doctor.measured_speeds(CPU) == FOUND  # the bus of a start is not believed any more
    figures_path().write_text("[1]")
    assert doctor.known_speeds(CPU, PLAN) is None


def test_the_doctor_does_not_claim_to_have_kept_what_it_could_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
):
    monkeypatch.setattr(doctor, "measure_ram", lambda: FOUND["ram"])
    assert main(["doctor", "--no-keep-speeds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] is None
    assert not figures_path().exists()
    blocked = home / "blocked"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert main(["doctor", "--4bit"]) == 0
    out, err = capsys.readouterr()
    assert "cannot keep the measured speeds" in err
    assert "kept for starts" not in out
    assert "not kept: starts and plans will measure again" in out
    # No budget that reads the disk, of which nothing is known, is promised a speed. Whether there
    # is one depends on what this process holds already.
    lines = [line for line in out.splitlines() if "--cpu-memory" in line]
    assert [("not known" in line) for line in lines] == [("disk" in line) for line in lines]


def test_experts_that_the_doctor_measured_are_not_measured_by_the_next_start():
    native = NativeBackend()
    doctor.measure_experts(SMALL, FORMATS["nf4"], CPU, lambda text: None)
    experts = random_experts(SMALL, FORMATS["nf4"], native)
    figures = kept_figures(CPU)
    for size in BUCKETS:
        assert figures.get(f"expert nf4 128x64, {size // 4} rows")
        expert_seconds(SMALL, figures, native, experts, size)
    assert not figures._is_changed


def test_more_memory_is_predicted_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(doctor, "measure_machine", lambda device, report, keep: (FOUND, True))
    # A budget's two digits must tell mini's few experts apart; this process may hold gigabytes.
    monkeypatch.setattr(fit, "process_memory", lambda: ProcessMemory(100 << 20, 100 << 20))
    assert main(["doctor", "--json", "--4bit"]) == 0
    rows = json.loads(capsys.readouterr().out)["budgets"]
    rates = [row["tokens_per_second"] for row in rows]
    assert len(rates) == 4
    assert rates == sorted(rates)
    assert rows[0]["hit_rates"]["RAM"] == pytest.approx(0.25, abs=0.03)
    on_disk = [bool(row["nbytes_per_token"]["disk"]) for row in rows]
    assert on_disk[0]
    for row in (rows[0], rows[-1]):
        nbytes = row["nbytes_per_token"]
        seconds = 8 * 15e-6 + nbytes["RAM"] / 9e9 + nbytes["disk"] * (1 / 1e9 + 1 / 9e9)
        if nbytes["disk"]:  # its counts, and each of 7 layers' 4 experts that is not there
            seconds += 8 * 5e-6 + row["hit_rates"]["disk"] * 28 * 400e-6
        assert row["tokens_per_second"] == pytest.approx(1 / seconds)
    assert main(["doctor", "--4bit"]) == 0
    page = capsys.readouterr().out
    assert "RAM                  10.0 GB/s" in page
    assert page.count("--cpu-memory") == 4


def test_the_plan_tells_the_speed_and_measures_what_it_needs_for_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    figures = kept_figures(CPU)
    figures.put({"disk": FOUND["disk"]})
    figures.save()
    monkeypatch.setattr(doctor, "measure_ram", lambda: FOUND["ram"])
    monkeypatch.setattr(doctor, "measure_disk", pytest.fail)  # this plan reads none
    assert main(["plan", "mini", "--4bit"]) == 0
    page = capsys.readouterr().out
    # 3.5 MiB at 9 GB/s, and 15 µs a layer.
    told = r"a token reads 3\.\d MiB from RAM\nexpected speed: 1[89]\d\d\.\d tok/s"
    assert re.search(told, page)
    assert "disk: 0 B" not in page
    assert doctor.measured_speeds(CPU) == FOUND
    monkeypatch.setattr(doctor, "measure_ram", pytest.fail)  # it is known now
    assert main(["plan", "mini", "--4bit"]) == 0
    assert re.search(told, capsys.readouterr().out)


def test_a_plan_that_cannot_measure_promises_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails() -> float:
        raise OSError("no disk")

    monkeypatch.setattr(doctor, "measure_ram", fails)
    assert main(["plan", "mini"]) == 0
    assert "expected speed: not known; erniechat doctor" in capsys.readouterr().out


def test_without_a_model_the_machine_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "measure_machine", lambda device, report, keep: (FOUND, True))
    options = LoadOptions(model="nobody/nothing", offline=True)
    page = doctor.format_doctor(doctor.run_doctor(options, lambda text: None))
    assert "no prediction for nobody/nothing" in page
    assert "disk                  1.0 GB/s" in page


def test_stats_tell_where_experts_were_found_and_what_a_token_reads():
    reads = {"GPU": PlaceReads(75 << 20, 2e12, 4e12), "RAM": PlaceReads(512, 2.5e9)}
    use = ExpertUse(10, {"GPU": 75, "RAM": 25, "disk": 0}, {}, reads)
    assert experts_text(use) == "found in GPU 75 % · RAM 25 %"
    assert reads_text(use) == (
        "reads 75 MiB from GPU, 50 % of 4,000 GB/s · 1 KiB from RAM, 2.5 GB/s "
        "(erniechat doctor measures what there is)"
    )
    assert experts_text(ExpertUse()) == reads_text(ExpertUse()) == ""
    one = ExpertUse(reads={"RAM": PlaceReads(1 << 20, 1.7e10, 3.45e10)})
    assert reads_text(one) == "reads 1 MiB from RAM, 49 % of 34.5 GB/s"


def test_reads_are_those_of_decoded_tokens_with_what_every_token_uses():
    reads = DecodeReads("GPU", 100, {"gpu": 1000.0})
    before = [TierUse("GPU", 10, 1000), TierUse("RAM", 5, 500)]
    after = [TierUse("GPU", 13, 1300), TierUse("RAM", 6, 600), TierUse("disk", 4, 480)]
    for _ in range(2):
        reads.add(before, after, 2, 4.0)
    assert reads.hit_rate == 3 / 8
    assert reads.reads() == {
        "GPU": PlaceReads(100 + 150, (4 * 100 + 600) / 8, 1000.0),
        "RAM": PlaceReads(50, 200 / 8, None),
        "disk": PlaceReads(240, 960 / 8, None),
    }
    assert reads.reads()["GPU"].share == 0.125
    assert reads.anew().reads() == {}
    assert reads.anew().hit_rate == 1.0
