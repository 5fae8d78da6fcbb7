"""The threads of BLAS while a run is on."""

import os
import subprocess
import sys

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


def test_a_blas_that_comes_with_an_import_has_one_thread_too():
    program = (
        "import torch, neuralode_flow as nf\n"
        "from threadpoolctl import ThreadpoolController\n"
        "seen = []\n"
        "flow = nf.IntrinsicFlow(nf.Quadratic(torch.eye(2)), nf.LogMean())\n"
        "def blas(i, z):\n"
        "    seen.append([l['num_threads'] for l in ThreadpoolController().info() if l['user_api'] == 'blas'])\n"
        "nf.integrate(flow, 2 * torch.eye(2), [0.0, 1.0], 'CVODE_BDF', observe=blas)\n"
        "print(len(seen[0]), len(seen[1]), max(seen[1]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    before, after, largest = map(int, ended.stdout.split())
    if after == before:
        pytest.skip("the solver loads no BLAS of its own here")
    assert largest == 1


@pytest.mark.parametrize(("entry", "own"), [("main", None), ("main", "20"), ("plot", None), ("collect", None)])
def test_idle_threads_of_blas_sleep_in_commands(entry, own):
    program = (
        "import os, sys\n"
        "class Seen:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'numpy':\n"
        "            print(os.environ.get('OPENBLAS_THREAD_TIMEOUT'))\n"
        "sys.meta_path.insert(0, Seen())\n"
        f"import neuralode_flow.app.{entry}, numpy\n"
    )
    unset = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    environment = unset if own is None else {**unset, "OPENBLAS_THREAD_TIMEOUT": own}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [own or "4"]
