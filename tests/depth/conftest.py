"""The tests of this folder run twice: with the compiled kernel, where there is one, and with torch alone."""

import pytest

from neuralode_flow.depth import kernel


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def route(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(kernel, "library", lambda: None)
    elif kernel.library() is None:
        pytest.skip("the kernel is not compiled here")
    return request.param
