"""What all tests share: float64, as everywhere in the package, one thread, and Ctrl-C."""

import os
import signal
import time

# They run side by side, as do the programs that they start: further threads of OpenMP would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Not in a fixture: test modules make tensors when they are imported.
torch.set_default_dtype(torch.float64)

# A shell ignores it in what it starts in the background, and programs that the tests start would do so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _studies_are_run_once_for_all_workers(tmp_path_factory):
    if "PYTEST_XDIST_WORKER" in os.environ:
        import small

        small.shared = tmp_path_factory.getbasetemp().parent / "studies"
        small.shared.mkdir(exist_ok=True)


def pytest_runtest_setup(item):
    """Starts no slow test after the deadline of .ci/run, if there is one: on a machine that is too slow it says so."""
    deadline = float(os.environ.get("NEURALODE_FLOW_DEADLINE", "inf"))
    if item.get_closest_marker("slow") and time.time() > deadline:
        pytest.skip("no time is left for it here; ./scripts/test -m slow runs it")
