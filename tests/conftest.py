"""What all tests share: float64, as everywhere in the package, and Ctrl-C."""

import signal

import torch

# Not in a fixture: test modules make tensors when they are imported.
torch.set_default_dtype(torch.float64)

# A shell ignores it in what it starts in the background, and programs that the tests start would do so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
