"""Limits on torch's threads end with the work they were set for."""

import threading

import pytest
import torch

from sklvebm.thread_limits import limited_threads, threads_for


@pytest.fixture(autouse=True)
def _four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_the_body_runs_under_the_limit_and_the_setting_returns():
    with limited_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


def test_a_limit_never_raises_the_number_of_threads():
    with limited_threads(64):
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 4


def test_the_setting_returns_after_an_exception():
    with pytest.raises(KeyError), limited_threads(2):
        raise KeyError
    assert torch.get_num_threads() == 4


def test_nested_limits_end_with_the_outermost():
    with limited_threads(3):
        with limited_threads(1):
            assert torch.get_num_threads() == 1
        with limited_threads(2):
            assert torch.get_num_threads() <= 2
    assert torch.get_num_threads() == 4


def test_nested_limits_survive_an_exception_inside():
    with limited_threads(3):
        with pytest.raises(KeyError), limited_threads(1):
            raise KeyError
        assert torch.get_num_threads() <= 3
    assert torch.get_num_threads() == 4


def overlapping(first_to_leave):
    """Hold limits in two threads at once and return after both have left."""
    both_in = threading.Barrier(2, timeout=20.0)
    first_out = threading.Event()
    finished = []

    def use(name):
        with limited_threads(1):
            both_in.wait()
            assert torch.get_num_threads() == 1
            if name != first_to_leave:
                assert first_out.wait(timeout=20.0)
        if name == first_to_leave:
            first_out.set()
        finished.append(name)

    other = threading.Thread(target=use, args=("other",))
    other.start()
    use("main")
    other.join(timeout=20.0)
    assert set(finished) == {"main", "other"}


@pytest.mark.parametrize("first_to_leave", ["main", "other"])
def test_overlapping_limits_leave_the_calling_thread_as_it_was(first_to_leave):
    # torch keeps the number of OpenMP threads for each Python thread
    overlapping(first_to_leave)
    assert torch.get_num_threads() == 4


def test_overlapping_limits_leave_later_threads_as_they_were():
    overlapping("other")
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [4]


def test_overlapping_limits_leave_every_thread_as_it_was():
    leave, left, seen = threading.Event(), threading.Event(), []

    def worker():
        seen.append(torch.get_num_threads())
        with limited_threads(1):
            leave.wait(timeout=20.0)
        seen.append(torch.get_num_threads())
        left.set()

    other = threading.Thread(target=worker)
    other.start()
    with limited_threads(1):
        leave.set()
        left.wait(timeout=20.0)
    other.join(timeout=20.0)
    assert seen == [4, 4]
    assert torch.get_num_threads() == 4


def test_more_work_asks_for_more_threads_up_to_the_setting():
    assert threads_for(10, 10) == 1
    assert threads_for(10_000, 5_000) == 2
    assert threads_for(10**6, 10**6) == 4
