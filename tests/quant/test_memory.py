"""Free and allowed bytes, from made-up control groups and a made-up GPU."""

import mmap
import resource
from types import SimpleNamespace

import psutil
import pytest
import torch

from quant import memory
from quant.memory import DeviceMemory, gpu_memory, host_memory, process_memory

GIB = 2**30
NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 16 GiB with 10 GiB available."""
    known = SimpleNamespace(available=10 * GIB, total=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: known)


class FakeKernel:
    """Files as the kernel shows them, in a folder."""

    def __init__(self, folder):
        self.cgroup_root = folder / "cgroup"
        self.proc_self = folder / "self"

    def write(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))

    def membership(self, text):
        self.write(self.proc_self / "cgroup", text)

    def v2(self, group, *, limit="max", high="max", used=0, active=0, inactive=0):
        folder = self.cgroup_root / group
        self.write(folder / "memory.max", f"{limit}\n")
        self.write(folder / "memory.high", f"{high}\n")
        self.write(folder / "memory.current", f"{used}\n")
        self.write(
            folder / "memory.stat", f"anon 1\nactive_file {active}\ninactive_file {inactive}\n"
        )

    def v1(self, group, *, limit, used, active=0, inactive=0):
        folder = self.cgroup_root / "memory" / group
        self.write(folder / "memory.limit_in_bytes", f"{limit}\n")
        self.write(folder / "memory.usage_in_bytes", f"{used}\n")
        stat = f"inactive_file 7\ntotal_active_file {active}\ntotal_inactive_file {inactive}\n"
        self.write(folder / "memory.stat", stat)

    def host_memory(self):
        return host_memory(self.cgroup_root, self.proc_self)


@pytest.fixture
def kernel(tmp_path):
    return FakeKernel(tmp_path)


def test_without_control_groups_the_machine_is_what_there_is(kernel):
    assert kernel.host_memory() == DeviceMemory(10 * GIB, 16 * GIB)


def test_a_container_of_version_2_leaves_its_limit_less_its_usage(kernel):
    kernel.membership("0::/\n")
    kernel.v2("", limit=4 * GIB, used=1 * GIB)
    assert kernel.host_memory() == DeviceMemory(3 * GIB, 4 * GIB)


def test_cached_files_count_as_free(kernel):
    kernel.membership("0::/\n")
    kernel.v2("", limit=4 * GIB, used=4 * GIB, active=1 * GIB, inactive=2 * GIB)
    assert kernel.host_memory().free_nbytes == 3 * GIB


def test_the_tightest_of_the_groups_around_the_process_counts(kernel):
    kernel.membership("0::/user.slice/chat.service\n")
    kernel.v2("user.slice/chat.service", limit=8 * GIB, used=1 * GIB)
    kernel.v2("user.slice", limit=6 * GIB, used=5 * GIB)
    kernel.v2("other.slice", limit=1, used=1)
    assert kernel.host_memory() == DeviceMemory(1 * GIB, 6 * GIB)


def test_the_mark_from_which_a_group_is_slowed_down_counts_as_a_limit(kernel):
    kernel.membership("0::/\n")
    kernel.v2("", limit=8 * GIB, high=2 * GIB, used=GIB)
    assert kernel.host_memory() == DeviceMemory(1 * GIB, 2 * GIB)


def test_a_limit_above_what_is_free_changes_nothing(kernel):
    kernel.membership("0::/\n")
    kernel.v2("", limit=64 * GIB, used=0)
    assert kernel.host_memory() == DeviceMemory(10 * GIB, 16 * GIB)


def test_a_group_over_its_limit_has_nothing_free(kernel):
    kernel.membership("0::/\n")
    kernel.v2("", limit=GIB, used=2 * GIB)
    assert kernel.host_memory().free_nbytes == 0


def test_a_group_without_a_limit_changes_nothing(kernel):
    kernel.membership("0::/\n")
    kernel.v2("", used=GIB)
    assert kernel.host_memory() == DeviceMemory(10 * GIB, 16 * GIB)


def test_version_1_is_read_too_and_its_path_may_be_the_hosts(kernel):
    kernel.membership("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/x\n")
    kernel.v1("", limit=4 * GIB, used=3 * GIB, active=GIB, inactive=GIB)
    assert kernel.host_memory() == DeviceMemory(3 * GIB, 4 * GIB)


def test_version_1_without_a_limit_changes_nothing(kernel):
    kernel.membership("4:memory:/\n")
    kernel.v1("", limit=NO_LIMIT_V1, used=3 * GIB)
    assert kernel.host_memory() == DeviceMemory(10 * GIB, 16 * GIB)


def test_a_path_cannot_leave_the_root_of_the_groups(kernel):
    kernel.membership("0::/../outside\n")
    kernel.v2("../outside", limit=1, used=0)
    assert kernel.host_memory() == DeviceMemory(10 * GIB, 16 * GIB)


def test_the_real_machine_can_be_asked(monkeypatch):
    monkeypatch.undo()
    found = host_memory()
    assert 0 <= found.free_nbytes <= found.total_nbytes
    assert found.total_nbytes > 2**28


def test_the_peak_is_the_kernels_in_kibibytes(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t 99999999 kB\nVmRSS:\t 3 kB\n")
    assert process_memory(tmp_path).peak_rss_nbytes == 99999999 * 1024


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_without_proc_the_peak_is_getrusages_in_its_platforms_unit(
    tmp_path, monkeypatch, platform, unit
):
    monkeypatch.setattr(memory.sys, "platform", platform)
    usage = SimpleNamespace(ru_maxrss=10**12)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert process_memory(tmp_path).peak_rss_nbytes == 10**12 * unit


def test_a_peak_stays_when_the_memory_is_gone():
    before = process_memory()
    block = mmap.mmap(-1, 64 * 2**20)  # malloc might reuse what the process holds
    for _ in range(64):
        block.write(b"x" * 2**20)
    during = process_memory()
    block.close()
    after = process_memory()
    assert during.rss_nbytes - before.rss_nbytes > 48 * 2**20
    assert after.rss_nbytes < during.rss_nbytes
    assert after.peak_rss_nbytes >= during.rss_nbytes - 2**20  # the kernel counts in batches


def test_without_a_gpu_there_is_no_gpu_memory(monkeypatch):
    assert gpu_memory(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_memory(torch.device("cuda")) is None


def test_what_torch_has_cached_on_a_gpu_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * GIB)
    assert gpu_memory(torch.device("cuda", 0)) == DeviceMemory(6 * GIB, 24 * GIB)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_real_gpu_can_be_asked():
    found = gpu_memory(torch.device("cuda"))
    assert found is not None
    assert 0 < found.free_nbytes <= found.total_nbytes
