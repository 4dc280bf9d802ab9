from pathlib import Path

import pytest
import torch

from vigor_service.engine.memory.device_memory import device_memory_bytes


def test_on_a_cpu_it_is_what_is_resident_of_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name: python\nVmRSS:      3 kB\n")
    (tmp_path / "meminfo").write_text("MemTotal:      10 kB\n")
    memory = device_memory_bytes(torch.device("cpu"), tmp_path)
    assert memory == {"allocated": 3072, "reserved": 3072, "total": 10240}


def test_a_kernel_that_tells_nothing_leaves_zeros(tmp_path: Path) -> None:
    assert set(device_memory_bytes(torch.device("cpu"), tmp_path).values()) == {0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_what_tensors_take_within_what_torch_holds() -> None:
    kept = torch.zeros(1 << 20, device="cuda")
    memory = device_memory_bytes(kept.device)
    assert kept.nbytes <= memory["allocated"] <= memory["reserved"] < memory["total"]
