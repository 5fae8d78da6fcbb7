"""The threads of BLAS while a run is on."""

import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

import neuralode_flow as nf
from neuralode_flow.threads import one_blas_thread


def blas():
    """The largest number of threads of a BLAS library, None where there is none to be set."""
    numbers = [library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"]
    return max(numbers, default=None)


@pytest.fixture(autouse=True)
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        if blas() != 2:
            pytest.skip("BLAS takes no number of threads here")
        yield


def test_a_run_has_one_thread_of_blas_and_leaves_the_number_as_it_was():
    seen = []
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.eye(2)), nf.LogMean())
    nf.integrate(flow, 2 * torch.eye(2), [0.0, 1.0], "DOP853", observe=lambda i, z: seen.append(blas()))
    assert seen == [1, 1]
    assert blas() == 2


def test_runs_inside_of_runs_and_errors_restore_it():
    def fails():
        with one_blas_thread():
            with one_blas_thread():
                assert blas() == 1
            assert blas() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert blas() == 2
