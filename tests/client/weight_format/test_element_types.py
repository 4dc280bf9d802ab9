import pytest
import torch
from safetensors.torch import save

from vigor_client.weight_format.element_types import ELEMENT_TYPES, dtype_name, dtype_of_code, is_finite, torch_dtype


@pytest.mark.parametrize("name", sorted(ELEMENT_TYPES))
def test_a_type_is_named_as_torch_and_safetensors_name_it(name: str) -> None:
    element = ELEMENT_TYPES[name]
    tensor = torch.zeros(1, dtype=torch_dtype(name))
    assert dtype_name(tensor.dtype) == name
    assert dtype_of_code(element.code) == name
    assert tensor.element_size() == element.num_bytes
    assert f'"dtype":"{element.code}"'.encode() in save({"a": tensor})


def test_a_code_that_is_not_known_is_shown_as_it_is() -> None:
    assert dtype_of_code("F8_E4M3") == "F8_E4M3"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros(1000, dtype=dtype)
    assert is_finite(tensor)
    tensor[777] = value
    assert not is_finite(tensor)


def test_tensors_without_elements_and_integers_are_finite() -> None:
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.tensor([1, 2]))
