"""Each kernel and its twin in torch equal what they are for, ``‖GᵀA‖²``, computed in float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vigor_service.engine.ops.autotune import UnavailableError
from vigor_service.engine.ops.kernels import gram_norm, product_norm
from vigor_service.engine.ops.kernels.row_ranges import RowRanges, row_ranges
from vigor_service.engine.ops.kernels.weight_norms import NormImplementation

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux alone")

from vigor_service.engine.ops.kernels import gram_norm_triton, launch_triton, product_norm_triton

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANGES = [(0, 1), (1, 18), (18, 67), (67, 83), (90, 122)]  # one token, odd lengths, whole tiles, rows of nobody
SMALL_GRAM = launch_triton.Tile({"ROWS": 16, "FEATURES": 16}, num_warps=1, num_stages=1)
SMALL_PRODUCT = launch_triton.Tile({"OUTPUTS": 16, "INPUTS": 32, "ROWS": 16, "GROUP": 8}, num_warps=1, num_stages=1)


def triton_grams(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Tensor:
    return gram_norm_triton.gram_norms(x_NI, gradient_NO, ranges, tile=SMALL_GRAM)


def triton_products(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Tensor:
    return product_norm_triton.product_norms(x_NI, gradient_NO, ranges, tile=SMALL_PRODUCT)


TWINS = [gram_norm.gram_norms, product_norm.product_norms]
KERNELS = [triton_grams, triton_products, gram_norm_triton.gram_norms, product_norm_triton.product_norms]
# Each size and each type; every pair of both takes the interpreter long.
QUICK = [(16, 32, torch.bfloat16), (37, 23, torch.float32), (1, 65, torch.float16), (70, 1, torch.float32)]
SIZES_AND_DTYPES = [
    pytest.param(*sizes, dtype, id=f"{sizes}-{dtype}", marks=[] if (*sizes, dtype) in QUICK else pytest.mark.slow)
    for sizes in [(16, 32), (37, 23), (1, 65), (70, 1)]
    for dtype in DTYPES
]
NAMES = ["small Gram tiles", "small product tiles", "Gram", "product"]


def matrices(num_inputs: int, num_outputs: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_NI, gradient_NO = (torch.randn(130, size, generator=generator) for size in (num_inputs, num_outputs))
    return x_NI.to(device, dtype), gradient_NO.to(device, dtype)


def expected_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Tensor:
    pairs = zip(ranges.split(x_NI.double()), ranges.split(gradient_NO.double()), strict=True)
    return torch.stack([(g.T @ a).square().sum() for a, g in pairs])


def assert_norms(norms_B: Tensor, expected_B: Tensor, tolerance: float = 1e-5) -> None:
    assert norms_B.dtype == torch.float64
    torch.testing.assert_close(norms_B, expected_B, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("num_inputs", "num_outputs", "dtype"), SIZES_AND_DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_a_kernel_equals_the_norm(
    kernel: NormImplementation,
    num_inputs: int,
    num_outputs: int,
    dtype: torch.dtype,
    kernel_device: torch.device,
) -> None:
    x_NI, gradient_NO = matrices(num_inputs, num_outputs, dtype, kernel_device)
    ranges = row_ranges(RANGES, kernel_device)
    assert_norms(kernel(x_NI, gradient_NO, ranges), expected_norms(x_NI, gradient_NO, ranges))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_equals_the_norm(twin: NormImplementation, dtype: torch.dtype, device: torch.device) -> None:
    x_NI, gradient_NO = matrices(37, 23, dtype, device)
    ranges = row_ranges(RANGES, device)
    rounds = twin is product_norm.product_norms and dtype == torch.bfloat16
    assert_norms(twin(x_NI, gradient_NO, ranges), expected_norms(x_NI, gradient_NO, ranges), 1e-3 if rounds else 1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_a_kernel_takes_views_as_they_are(kernel: NormImplementation, kernel_device: torch.device) -> None:
    x_NI = torch.randn(70, 260, device=kernel_device).T[::2, ::2]
    gradient_NO = torch.randn(130, 64, device=kernel_device)[:, 5:28]
    ranges = row_ranges(RANGES, kernel_device)
    assert_norms(kernel(x_NI, gradient_NO, ranges), expected_norms(x_NI, gradient_NO, ranges))


@pytest.mark.parametrize("kernel", [*TWINS, *KERNELS], ids=["twin of Gram", "twin of product", *NAMES])
def test_squares_beyond_float16_do_not_overflow(kernel: NormImplementation, kernel_device: torch.device) -> None:
    x_NI, gradient_NO = (300 * tensor for tensor in matrices(20, 24, torch.float16, kernel_device))
    ranges = row_ranges(RANGES, kernel_device)
    assert_norms(kernel(x_NI, gradient_NO, ranges), expected_norms(x_NI, gradient_NO, ranges))


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_a_kernel_gives_the_same_bits_twice(kernel: NormImplementation, kernel_device: torch.device) -> None:
    x_NI, gradient_NO = matrices(37, 23, torch.float32, kernel_device)
    ranges = row_ranges(RANGES, kernel_device)
    assert torch.equal(kernel(x_NI, gradient_NO, ranges), kernel(x_NI, gradient_NO, ranges))


def test_long_sequences_are_taken_a_few_at_a_time(device: torch.device) -> None:
    rows_NI = torch.ones(2 * 6000, 1, device=device)
    ranges = row_ranges([(0, 6000), (6000, 12000)], device)  # Gram matrices of half the elements held at once
    assert gram_norm.gram_norms(rows_NI, rows_NI, ranges).tolist() == [6000**2] * 2


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_what_a_kernel_does_not_take_is_refused_by_name(kernel: NormImplementation) -> None:
    x_NI, gradient_NO = matrices(4, 3, torch.float32, torch.device("cpu"))
    ranges = row_ranges(RANGES, x_NI.device)
    with pytest.raises(ValueError, match=r"equally many rows, not \(\(130, 4\), \(129, 3\)\)"):
        kernel(x_NI, gradient_NO[1:], ranges)
    with pytest.raises(ValueError, match=r"one dtype .* not \(torch.float64, torch.float64\)"):
        kernel(x_NI.double(), gradient_NO.double(), ranges)
    with pytest.raises(ValueError, match=r"one dtype .* not \(torch.float32, torch.float16\)"):
        kernel(x_NI, gradient_NO.half(), ranges)
    with pytest.raises(ValueError, match="one device, not cpu and meta"):
        kernel(x_NI, gradient_NO.to("meta"), ranges)


def test_a_range_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[\(3, 3\)\]"):
        row_ranges([(0, 3), (3, 3)], torch.device("cpu"))


def test_a_launch_that_fails_says_which_and_why() -> None:
    with (
        pytest.raises(UnavailableError, match="kernel gram_norm does not run: no driver"),
        launch_triton.launching("gram_norm", torch.ones(1)),
    ):
        raise RuntimeError("no driver")


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from vigor_service.engine.ops.kernels import gram_norm_triton, product_norm_triton

POINTERS = {"torch.float32": "*fp32", "torch.bfloat16": "*bf16", "torch.float16": "*fp16"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
for module, kernel in (
    (gram_norm_triton, gram_norm_triton.gram_norm_kernel),
    (product_norm_triton, product_norm_triton.product_norm_kernel),
):
    for dtype, tile in module.TILES.items():
        if f"{kernel.__name__} {dtype}" not in sys.argv:
            continue
        constants = tile.constants()
        options = {name: constants.pop(name) for name in OPTIONS}
        constants |= {"x_column_stride": 1, "gradient_column_stride": 1}
        pointers = {"x": POINTERS[str(dtype)], "gradient": POINTERS[str(dtype)], "bounds": "*i64", "partials": "*fp32"}
        types = {name: pointers.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, type in enumerate(types.values()) if type != "constexpr"}
        built = compile(ASTSource(kernel, types, constants, aligned), GPUTarget("cuda", 90, 32), options)
        print(kernel.__name__, dtype, built.metadata.shared, "wgmma" in built.asm["ptx"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["gram_norm_kernel", "product_norm_kernel"])
def test_kernels_compile_for_hopper_and_use_its_tensor_cores_for_16_bits(
    kernel: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    chosen = [f"{kernel} torch.{dtype}" for dtype in ("float32", "float16", "bfloat16")]
    command = [sys.executable, "-W", "error", "-c", COMPILE, *chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    built = [line.split() for line in done.stdout.splitlines()]
    assert len(built) == len(chosen)
    for _, dtype, shared_bytes, has_wgmma in built:
        assert int(shared_bytes) <= 227 * 1024, dtype
        assert (has_wgmma == "True") == (dtype != "torch.float32")
