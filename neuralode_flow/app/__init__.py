"""The command line: the only place that knows Hydra."""

import os
import sys

# Idle threads of OpenBLAS, below NumPy and SciPy, wait for work by spinning for some 30 ms, and every forked process
# begins with such: a small member of a sweep took twice its processor time. Now they sleep, if nobody says otherwise.
# The library reads it when it is loaded; in a process that has it by now, which is none of a command, nothing is set.
if "numpy" not in sys.modules:
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
