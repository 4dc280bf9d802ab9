import numpy as np
import pytest
import torch

from tests.support.fake_scorer import FakeScorer
from vigor_client.weight_format.digest import checksum, model_digest, raw_bytes
from vigor_service.weights.verification.fingerprint import describe, initial_weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 3, 4)])
def test_raw_bytes_are_the_elements_in_row_major_order(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
    as_integers = tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()])
    assert bytes(raw_bytes(tensor)) == as_integers.numpy().tobytes()


def test_a_transposed_tensor_is_described_as_it_reads() -> None:
    tensor = torch.randn(3, 5).T
    assert bytes(raw_bytes(tensor)) == tensor.contiguous().numpy().tobytes()


def test_a_description_names_dtype_shape_and_checksum() -> None:
    tensor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    info = describe("w", tensor, ["v"])
    assert (info.name, info.dtype, info.shape, info.aliases) == ("w", "bfloat16", [2, 3], ["v"])
    assert info.checksum == checksum(b"\x80\x3f" * 6)


def test_the_initial_weights_are_version_zero_of_what_was_loaded() -> None:
    scorer = FakeScorer()
    weights = initial_weights(scorer)
    assert (weights.version, weights.dtype) == (0, "float32")
    assert weights.digest == model_digest(weights.tensors)
    assert weights.num_bytes == sum(tensor.nbytes for tensor in scorer.parameters.values())
    assert {info.name: info.aliases for info in weights.tensors} == {"embed.weight": ["head.weight"], "norm.weight": []}


def test_tensors_of_several_dtypes_are_mixed() -> None:
    scorer = FakeScorer()
    scorer.parameters["norm.weight"] = scorer.parameters["norm.weight"].bfloat16()
    assert initial_weights(scorer).dtype == "mixed"
