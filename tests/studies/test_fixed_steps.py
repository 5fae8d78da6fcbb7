"""Studies along flows in steps of a given size."""

from dataclasses import replace

import numpy as np
import pytest
from small import SMALL

from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES


def found(study, method, step, **changes):
    inputs, options = SMALL[study]()
    inputs["clock"] = replace(inputs["clock"], method=method, step=step)
    return STUDIES[study].run(**inputs, **options | changes)


@pytest.mark.parametrize(
    ("study", "changes"),
    [
        ("momentum", {"depths": [2]}),
        ("strong_imbalance", {}),
        ("scalar_blocks", {}),
        ("residual_scaling", {}),
        ("mixed_regime", {"widths": [200, 400, 800], "repeats": 2}),
    ],
)
def test_they_come_to_a_finding(study, changes):
    """The floor of their orders has nothing in it then but round-off: the largest of one number was asked for."""
    finding = Finding.of(found(study, "rk4", 0.1, **changes))
    assert finding.status == "ok"
    assert len(finding.checks) > 1


def test_what_a_study_integrates_by_a_method_of_its_own_has_no_step():
    assert Finding.of(found("interpolant", "rk4", 0.1)).status == "ok"


def test_orders_of_steps_beside_a_flow_have_the_error_of_that_flow_as_floor():
    """Heavy ball takes no step of the method, whose error is in each of its distances from the flow."""
    data = found("momentum", "euler", 0.01, depths=[2])
    orders = Finding.of(data).orders
    assert float(data.error_time) > 1e-3
    assert all(np.isnan(order.value) and "the floor" in order.reason for order in orders)
