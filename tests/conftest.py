"""What all tests share: float64, as everywhere in the package."""

import torch

# Not in a fixture: test modules make tensors when they are imported.
torch.set_default_dtype(torch.float64)
