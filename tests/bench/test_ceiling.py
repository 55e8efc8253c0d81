"""How much of a search's ceiling plans take."""

from dataclasses import replace

from idcompress.bench.planning import Ceiling
from idcompress.core.plan import Plan, Step


def test_what_plans_have_in_common_is_counted_once():
    """Also for images of a later look; not under another fill, whose hidden states are others."""
    ceiling, guidance = Ceiling(22), {"guidance_scale": 2}
    plan = Plan((Step(900), Step(500, 5), Step(100, passes="text")), "ddim", "hold", guidance)
    assert ceiling.take("search", plan, 2) == 6
    assert ceiling.calls == 2 * (2 + 2 + 1)
    assert ceiling.take("search", plan, 2) == 0
    assert ceiling.take("search", plan, 3) == 3
    assert ceiling.take("search", replace(plan, steps=(*plan.steps[:2], Step(90))), 3) == 3
    assert ceiling.take("search", replace(plan, steps=(Step(899), *plan.steps[1:])), 1) == 3
    assert ceiling.take("search", replace(plan, fill="linear"), 1) == 3
    assert not ceiling.is_reached
    assert ceiling.take("fit", plan, 2) == 6
    assert ceiling.spent == 24 and ceiling.is_reached
