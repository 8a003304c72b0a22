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

    def look(share: int) -> tuple[int, int, int, bool]:
        together.wait(10)  # so that no thread takes two shares
        return share, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    threads_of_torch(3)
    before = torch.get_num_threads()
    shares, threads, counts, gradients = zip(*in_threads.each(look, [5, 6, 7]), strict=True)
    assert shares == (5, 6, 7)
    assert len({*threads, threading.get_ident()}) == 4
    assert counts == (1, 1, 1)
    assert not any(gradients)
    assert torch.get_num_threads() == before == in_threads.count()


def test_each_one_share_runs_in_caller():
    """A single share runs in the caller's thread."""
    assert in_threads.each(lambda share: (share, threading.get_ident()), [5]) == [
        (5, threading.get_ident())
    ]


def test_each_raises_error_of_share():
    """An exception in a share is raised in the caller."""
    with pytest.raises(ZeroDivisionError):
        in_threads.each(lambda share: 1 / share, [1, 0])


def test_each_keeps_thread_count_of_later_threads(monkeypatch, threads_of_torch):
    """A thread that starts after `each` has torch's thread count of before."""
    monkeypatch.setattr(in_threads, "_pools", {})
    threads_of_torch(2)
    in_threads.each(lambda share: share, range(4))
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2]
