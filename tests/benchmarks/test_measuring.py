"""A result names the machine and the libraries that it is from."""

from __future__ import annotations

import torch

from benchmarks.measuring import hardware, product_libraries

CONFIG = """PyTorch built with:
  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for Intel(R) 64 architecture applications
  - Intel(R) MKL-DNN v3.12.0 (Git Hash 80afa71049cd69a3df32adcccb623b12cd7baa22)
  - CPU capability usage: AVX512
"""


def test_libraries_of_matrix_products_are_named_with_their_versions() -> None:
    assert product_libraries(CONFIG) == ["MKL 2024.2", "oneDNN 3.12.0"]
    assert product_libraries("PyTorch built with:\n  - GCC 13.3\n") == []


def test_a_processor_is_named_with_its_vector_extensions_as_torch_uses_them() -> None:
    assert torch.backends.cpu.get_cpu_capability() in hardware(torch.device("cpu")).split(", ")
