"""What is written behind a GPU's back is written whole, in order, and its errors are not lost."""

import threading

import pytest

from idcompress.runs.behind import MOST_WAITING, behind


@pytest.mark.parametrize("beside", [False, True])
def test_all_calls_have_run_in_order_at_the_end(beside):
    done = []
    with behind(beside) as later:
        for number in range(3 * MOST_WAITING):
            later(done.append, number)
    assert done == list(range(3 * MOST_WAITING))


def test_work_goes_on_meanwhile_and_no_more_than_a_few_calls_wait():
    gate, threads = threading.Event(), set()

    def slow():
        threads.add(threading.current_thread().name)
        assert gate.wait(20)

    with behind(beside=True) as later:
        for _ in range(MOST_WAITING):
            later(slow)  # comes back though nothing can end
        gate.set()
        later(slow)
    assert threads == {"files_0"}


@pytest.mark.parametrize("beside", [False, True])
def test_an_error_of_a_call_is_the_error_of_the_run(beside):
    def full():
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), behind(beside) as later:
        later(full)
