"""Both libraries' products against double precision, at sizes on both sides of the choice."""

import pytest
import torch

from sklvebm.kernels import products

SMALL, LARGE = (7, 5, 6), (600, 48, 64)  # rows, units in, units out


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(shape, dtype=torch.float32):
    n_rows, n_in, n_out = shape
    g = generator()
    draws = [
        torch.randn(*size, generator=g, dtype=torch.float64)
        for size in ((n_rows, n_in), (n_out, n_in), (n_out,))
    ]
    return [draw.to(dtype) for draw in draws]


def errors(shape, dtype):
    """Return largest absolute errors of the three functions, relative to the largest entries."""
    rows, weight, bias = layer(shape, dtype)
    exact_rows, exact_weight, exact_bias = rows.double(), weight.double(), bias.double()
    a = exact_rows @ exact_weight.T + exact_bias
    back = exact_rows @ exact_weight.T
    with torch.no_grad():
        pairs = [
            (products.affine(rows, weight, bias), a),
            (products.affine_tanh(rows, weight, bias), torch.tanh(a)),
            (products.product(rows, weight.T.contiguous()), back),
        ]
    assert all(actual.dtype == dtype for actual, _ in pairs)
    assert all(actual.shape == expected.shape for actual, expected in pairs)
    return [float((actual - e).abs().max() / e.abs().max()) for actual, e in pairs]


@pytest.fixture(params=["as chosen", "without oneDNN"])
def library(request, monkeypatch):
    if request.param == "without oneDNN":
        monkeypatch.setattr(products, "_onednn_linear", None)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-6)])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_products_equal_double_precision(library, shape, dtype, tolerance):
    assert max(errors(shape, dtype)) < tolerance


def test_narrow_products_equal_double_precision(library):
    assert max(errors((50, 20, 3), torch.float64)) < 1e-14


def test_one_library_serves_small_and_double_products_the_other_large_ones(monkeypatch):
    calls = []

    def spy(rows, weight, bias, *_):
        # stands in for oneDNN, so that the choice is tested on builds without it, too
        calls.append(rows.shape)
        return torch.nn.functional.linear(rows, weight, bias)

    monkeypatch.setattr(products, "_onednn_linear", spy)
    for shape, dtype in [(SMALL, torch.float32), (LARGE, torch.float64), (LARGE, torch.float32)]:
        rows, weight, bias = layer(shape, dtype)
        products.affine(rows, weight, bias)
        products.affine_tanh(rows, weight, bias)
        products.product(rows, weight.T)
    assert calls == 3 * [torch.Size(LARGE[:2])]


def test_products_of_middle_size_take_onednn_only_where_it_saves_a_tanh(monkeypatch):
    calls = []

    def spy(rows, weight, bias, kind, *_):
        calls.append(kind)
        return torch.nn.functional.linear(rows, weight, bias)

    monkeypatch.setattr(products, "_onednn_linear", spy)
    rows, weight, bias = layer((512, 32, 64))
    back = products.product(rows, weight.T)
    products.affine_tanh(rows, weight, bias)
    assert calls == ["none", "tanh"]
    torch.testing.assert_close(products.plain_product(rows, weight.T), back)
    products.affine(rows, weight, bias)
    assert calls == ["none", "tanh"]


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_what_is_not_a_number_stays_so(library, shape):
    rows, weight, bias = layer(shape)
    rows[3] = torch.nan
    with torch.no_grad():
        for values in (
            products.affine(rows, weight, bias),
            products.affine_tanh(rows, weight, bias),
            products.product(rows, weight.T),
        ):
            assert bool(values[3].isnan().all())
            assert not bool(values[:3].isnan().any())
