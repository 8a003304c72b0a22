"""Shares of work in threads that compute alone."""

import threading

import pytest
import torch

from tiekd.kernels import in_threads


@pytest.fixture
def threads_of_torch():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_each_results_in_order_without_gradients(threads_of_torch):
    """Results are in order, from threads with one torch thread and no gradients."""
    together = threading.Barrier(3)

    def look(argument: int) -> tuple[int, int, int, bool]:
        together.wait(10)  # so that no thread takes two arguments
        return argument, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    threads_of_torch(3)
    before = torch.get_num_threads()
    arguments, threads, counts, gradients = zip(
        *in_threads.map_in_threads(look, [5, 6, 7]), strict=True
    )
    assert arguments == (5, 6, 7)
    assert len({*threads, threading.get_ident()}) == 4
    assert counts == (1, 1, 1)
    assert not any(gradients)
    assert torch.get_num_threads() == before == in_threads.num_threads()


def test_each_one_share_runs_in_caller():
    """The function is called in the caller's thread."""
    assert in_threads.map_in_threads(lambda argument: (argument, threading.get_ident()), [5]) == [
        (5, threading.get_ident())
    ]


def test_each_raises_error_of_share():
    """An exception of the function is raised in the caller."""
    with pytest.raises(ZeroDivisionError):
        in_threads.map_in_threads(lambda argument: 1 / argument, [1, 0])


def test_each_keeps_thread_count_of_later_threads(monkeypatch, threads_of_torch):
    """A thread that starts after `map_in_threads` has torch's thread count of before."""
    monkeypatch.setattr(in_threads, "_pools", {})
    threads_of_torch(2)
    in_threads.map_in_threads(lambda argument: argument, range(4))
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2]
