"""Arguments of functions: legal values, and messages in the words of scikit-learn."""

from numbers import Integral, Real

import numpy as np
import pytest

from sklvebm.validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
    check_random_state,
    validate_params,
)


@validate_params(
    {
        "X": ["array-like"],
        "count": [Interval(Integral, 1, None, closed="left"), None],
        "share": [Interval(Real, 0, 1, closed="right")],
        "kind": [StrOptions(frozenset({"a", "b"})), callable],
        "model": [HasMethods(["fit", "predict"]), None],
        "pair": [tuple, list],
        "flag": ["boolean"],
        "random_state": ["random_state"],
    }
)
def function(
    X, *, count=None, share=0.5, kind="a", model=None, pair=(), flag=False, random_state=None
):
    """Return whether it was called."""
    return True


@pytest.mark.parametrize(
    "legal",
    [
        {"count": 1},
        {"count": np.int64(3)},
        {"share": 1},
        {"share": np.float32(0.25)},
        {"kind": "b"},
        {"kind": len},
        {"pair": [1, 2]},
        {"flag": np.bool_(True)},
        {"random_state": 3},
        {"random_state": np.random},
        {"random_state": np.random.RandomState(0)},
        {"random_state": np.random.default_rng(0)},
    ],
    # by the kind of the value: addresses and versions differ from process to process
    ids=lambda legal: " ".join(f"{name}-{type(v).__name__}" for name, v in legal.items()),
)
def test_legal_values_pass(legal):
    assert function([1], **legal)
    assert function(np.ones(3), **legal)


@pytest.mark.parametrize(
    ("illegal", "message"),
    [
        ({"X": 3}, "The 'X' parameter of function must be an array-like. Got 3 instead."),
        ({"X": "rows"}, "The 'X' parameter of function must be an array-like. Got 'rows'"),
        ({"count": 0}, "must be an int in the range [1, inf) or None. Got 0 instead."),
        ({"count": 1.0}, "must be an int in the range [1, inf) or None. Got 1.0 instead."),
        ({"count": True}, "must be an int in the range [1, inf) or None. Got True instead."),
        ({"share": 0}, "must be a float in the range (0.0, 1.0]. Got 0 instead."),
        ({"share": float("nan")}, "must be a float in the range (0.0, 1.0]. Got nan"),
        ({"kind": "c"}, "must be a str among {'a', 'b'} or a callable. Got 'c' instead."),
        ({"model": object}, "must be an object implementing 'fit' and 'predict' or None."),
        ({"pair": 3}, "must be an instance of 'tuple' or an instance of 'list'. Got 3"),
        ({"flag": 1}, "must be a bool. Got 1 instead."),
        ({"random_state": -1}, "a RandomState or a Generator. Got -1 instead."),
        ({"random_state": "0"}, "a RandomState or a Generator. Got '0' instead."),
    ],
    ids=str,
)
def test_illegal_values_are_named_with_the_rule(illegal, message):
    with pytest.raises(InvalidParameterError) as caught:
        function(**{"X": [1], **illegal})
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


def test_wrong_names_are_python_s_to_report():
    with pytest.raises(TypeError, match="unexpected keyword argument 'counts'"):
        function([1], counts=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'X'"):
        function()


def test_a_checked_function_keeps_its_name_and_its_table():
    assert function.__name__ == "function"
    assert function.__doc__ == "Return whether it was called."
    assert function._parameter_constraints["kind"][0].options == {"a", "b"}


def test_random_states_of_every_kind_become_generators_of_the_old_kind():
    own = np.random.RandomState(0)
    assert check_random_state(own) is own
    assert check_random_state(3).randint(10**6) == np.random.RandomState(3).randint(10**6)
    new = np.random.default_rng(0)
    first, second = (check_random_state(new).randint(10**6) for _ in range(2))
    assert first != second
    again = check_random_state(np.random.default_rng(0))
    assert again.randint(10**6) == first
