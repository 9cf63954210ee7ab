"""Limits on torch's threads end with the work they were set for."""

import threading
from contextlib import contextmanager

import pytest
import torch

from sklvebm.threads import _team, limited_threads, n_parts, side_by_side, team, threads_for


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


@contextmanager
def limit_elsewhere():
    """Hold a limit in another thread, which has left it when the function yielded returns."""
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with limited_threads(1):
            entered.set()
            leave.wait(timeout=20.0)

    def end():
        leave.set()
        holder.join(timeout=20.0)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(timeout=20.0)
    try:
        yield end
    finally:
        end()


def test_a_limit_outlasts_one_that_another_thread_held_before():
    seen = []

    def work(end):
        with limited_threads(1):
            end()
            seen.append(torch.get_num_threads())  # the first that this thread asks of torch
        seen.append(torch.get_num_threads())

    with limit_elsewhere() as end:
        other = threading.Thread(target=work, args=(end,))
        other.start()
        other.join(timeout=20.0)
    assert seen == [1, 4]


def test_a_team_keeps_its_limit_when_another_thread_leaves_its_own():
    all_in = threading.Barrier(3, timeout=20.0)

    def work(_):
        all_in.wait()
        return torch.get_num_threads()

    with limit_elsewhere() as end, team(3):
        end()
        assert side_by_side(work, range(3)) == [1, 1, 1]
    assert torch.get_num_threads() == 4


def test_more_work_asks_for_more_threads_up_to_the_setting():
    assert threads_for(10, 10) == 1
    assert threads_for(10_000, 5_000) == 2
    assert threads_for(12_000, 5_000) == 3
    assert threads_for(10**6, 10**6) == 4


def test_parts_depend_on_the_work_and_not_on_the_threads():
    assert [n_parts(n, 5_000) for n in (10, 7_999, 8_000, 80_000, 10**9)] == [1, 1, 2, 5, 8]


def test_no_part_is_empty():
    assert [n_parts(n, 10**9) for n in (1, 2, 3, 100)] == [1, 2, 3, 8]


def test_a_team_works_side_by_side_with_one_torch_thread_each():
    all_in = threading.Barrier(3, timeout=20.0)

    def work(number, factor):
        all_in.wait()  # passed by three at once only
        return number * factor, torch.get_num_threads(), torch.is_grad_enabled()

    with team(3), torch.no_grad():
        assert torch.get_num_threads() == 1
        assert side_by_side(work, [1, 2, 3], [2, 2, 2]) == [(n, 1, False) for n in (2, 4, 6)]
    assert torch.get_num_threads() == 4


def test_without_a_team_and_within_a_part_work_is_done_in_turn():
    def names(_):
        return threading.current_thread().name

    def inner(_):
        return {threading.current_thread().name, *side_by_side(names, [0, 1])}

    here = threading.current_thread().name
    assert side_by_side(names, [0, 1]) == [here, here]
    with team(1):
        assert side_by_side(names, [0, 1]) == [here, here]
    with team(2):
        assert all(len(seen) == 1 for seen in side_by_side(inner, [0, 1, 2]))
        assert side_by_side(names, [0]) == [here]
    assert side_by_side(names, [0, 1]) == [here, here]


def test_an_exception_of_a_part_reaches_the_caller_and_the_team_goes_home():
    before = threading.active_count()
    with pytest.raises(KeyError), team(2):
        side_by_side({}.__getitem__, [0, 1])
    assert threading.active_count() == before
    assert torch.get_num_threads() == 4


def test_an_inner_team_gives_way_to_the_outer_one():
    with team(2):
        outer = _team.executor
        with team(2):
            assert _team.executor not in (None, outer)
        with team(1):
            assert _team.executor is None
        assert _team.executor is outer
    assert _team.executor is None
