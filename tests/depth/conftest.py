"""The tests of this folder run twice: with the compiled engine, where there is one, and with torch alone."""

import pytest

from neuralode_flow.depth.engine import compiled


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def route(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(compiled, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("the engine is not compiled here")
    return request.param
