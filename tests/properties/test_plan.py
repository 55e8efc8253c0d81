"""Steps, plans and cuts as values: JSON both ways, equality, hashes, and one clear message for what cannot be."""

import dataclasses
import importlib.util
import json
import math
import sys

import pytest

import idcompress.core.cut
import idcompress.core.plan


def unchecked(module):
    """A module as users have it, without the checks of types that pytest adds, which would be there first."""
    spec = importlib.util.spec_from_file_location(f"{__name__}.{module.__name__}", module.__file__)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


Cut = unchecked(idcompress.core.cut).Cut
plans = unchecked(idcompress.core.plan)
Plan, Step = plans.Plan, plans.Step

STEPS = [
    Step(999),
    Step(0),
    Step(1000.0),
    Step(12.5),
    Step(500, depth=9),
    Step(500, passes="held"),
    Step(500, passes="text"),
    Step(500, refresh=False),
    Step(3, 1, "held", False),
    Step(500, skip=("mid_block.resnets.0", "down_blocks.0.resnets.1")),
]
PLANS = [
    Plan.over([999]),
    Plan.over([999, 500, 500, 0], sampler="dpm_solver", guidance={"guidance_scale": 7.5, "image_guidance_scale": 1}),
    Plan.over([999.5, 0.25]),
    Plan((Step(999), Step(500, 9, "held", False)), fill="hold"),
    Plan((Step(999), Step(500)), fill="linear", coefficients=((1.5, 2, -3.25), ())),
    Plan((Step(999), Step(500)), coefficients=((), ())),
]


def through_json(value):
    return json.loads(json.dumps(value.to_json(), allow_nan=False))


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_step_comes_back_from_json(step):
    again = Step.from_json(through_json(step))
    assert again == step and hash(again) == hash(step)
    assert type(again.timestep) is type(step.timestep)
    written = {field.name for field in dataclasses.fields(Step)} - (set() if step.skip else {"skip"})
    assert set(through_json(step)) == written


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_plan_comes_back_from_json(plan):
    again = Plan.from_json(through_json(plan))
    assert again == plan and hash(again) == hash(plan)
    assert through_json(again) == through_json(plan)
    checked = idcompress.core.plan.Plan.from_json(through_json(plan))  # every field of the type that it says
    assert through_json(checked) == through_json(plan)
    assert set(through_json(plan)) == {field.name for field in dataclasses.fields(Plan)}


def test_what_is_left_out_has_its_default():
    assert Step.from_json({"timestep": 5}) == Step(5, None, "all", True)
    plan = Plan.from_json({"steps": [{"timestep": 5}]})
    assert plan == Plan((Step(5),), "ddim", "zero", {}, None) == Plan.over([5])
    assert plan.steps[0].is_whole


@pytest.mark.parametrize("step", STEPS[4:], ids=str)
def test_a_step_that_leaves_something_out_is_not_whole(step):
    assert not step.is_whole
    assert Step(step.timestep).is_whole


def test_plans_are_compared_and_hashed_by_value():
    """Whatever they were made of: floats or integers, tuples or lists, guidance in any order."""
    scales = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
    one = Plan((Step(999), Step(3)), guidance=scales, coefficients=((1.0, 2.0), (3.0,)))
    other = Plan([Step(999.0), Step(3.0)], guidance=dict(reversed(scales.items())), coefficients=[[1, 2], [3]])
    assert one == other and hash(one) == hash(other)
    assert len({one, other}) == 1
    assert Plan.over(iter([999, 3])) == Plan.over((999.0, 3.0))
    assert other.timesteps == (999, 3) and all(type(t) is int for t in other.timesteps)


CHANGES = [
    {"steps": (Step(999), Step(4))},
    {"steps": (Step(999), Step(3), Step(3))},
    {"steps": (Step(999), Step(3, 9))},
    {"steps": (Step(999), Step(3, passes="held"))},
    {"steps": (Step(999), Step(3, refresh=False))},
    {"sampler": "dpm_solver"},
    {"fill": "hold"},
    {"guidance": {"guidance_scale": 2.0}},
    {"guidance": {}},
    {"coefficients": ((1.0,), (2.0,))},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_field_makes_another_plan(change):
    plan = Plan.over([999, 3], guidance={"guidance_scale": 1.0})
    other = dataclasses.replace(plan, **change)
    assert other != plan
    assert through_json(other) != through_json(plan)


def test_plans_cannot_be_changed():
    """Neither by their fields nor through what they were made of."""
    scales, rows = {"guidance_scale": 2.0}, [[1.0], [2.0]]
    plan = Plan.over([9, 3], guidance=scales)
    fitted = Plan((Step(9), Step(3)), coefficients=rows)
    scales["guidance_scale"] = 3.0
    rows[0][0] = 5.0
    assert plan.guidance == {"guidance_scale": 2.0}
    assert fitted.coefficients == ((1.0,), (2.0,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.sampler = "ancestral"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.steps[0].depth = 3


def test_what_a_plan_tells():
    plan = Plan((Step(999), Step(500, 9), Step(500, 7)))
    assert len(plan) == 3
    assert plan.timesteps == (999, 500, 500)
    assert plan.depths == (None, 9, 7)


STEP_FAULTS = [
    ({}, "a step lacks the field 'timestep'"),
    ({"timestep": "999"}, "a step's timestep must be a number, got '999'"),
    ({"timestep": None}, "a step's timestep must be a number, got None"),
    ({"timestep": True}, "a step's timestep must be a number, got True"),
    ({"timestep": -1}, "a step's timestep must be 0 or more, got -1"),
    ({"timestep": math.nan}, "a step's timestep must be 0 or more, got nan"),
    ({"timestep": math.inf}, "a step's timestep must be 0 or more, got inf"),
    ({"timestep": 5, "depth": 0}, "a step's depth must be null or a whole number from 1 on, got 0"),
    ({"timestep": 5, "depth": 9.0}, "a step's depth must be null or a whole number from 1 on, got 9.0"),
    ({"timestep": 5, "depth": True}, "a step's depth must be null or a whole number from 1 on, got True"),
    ({"timestep": 5, "depth": "9"}, "a step's depth must be null or a whole number from 1 on, got '9'"),
    ({"timestep": 5, "passes": "none"}, "a step's passes must be all, held, text, got 'none'"),
    ({"timestep": 5, "passes": ["all"]}, "a step's passes must be all, held, text, got ['all']"),
    ({"timestep": 5, "passes": None}, "a step's passes must be all, held, text, got None"),
    ({"timestep": 5, "refresh": 1}, "a step's refresh must be true or false, got 1"),
    ({"timestep": 5, "refresh": None}, "a step's refresh must be true or false, got None"),
    ({"timestep": 5, "level": 3}, "a step has no field 'level'; its fields are timestep, depth, passes, refresh, skip"),
    (999, "a step must be an object, got 999"),
    ("999", "a step must be an object, got '999'"),
    (None, "a step must be an object, got None"),
]


@pytest.mark.parametrize(("value", "message"), STEP_FAULTS, ids=str)
def test_what_no_step_can_be(value, message):
    with pytest.raises(ValueError) as caught:
        Step.from_json(value)
    assert str(caught.value) == message


ONE = [{"timestep": 5}]
PLAN_FAULTS = [
    ({}, "a plan lacks the field 'steps'"),
    ({"steps": []}, "timesteps must hold at least one entry, got a plan without steps"),
    ({"steps": 999}, "a plan's steps must be a list, got 999"),
    ({"steps": "999"}, "a plan's steps must be a list, got '999'"),
    ({"steps": None}, "a plan's steps must be a list, got None"),
    ({"steps": {"timestep": 5}}, "a plan's steps must be a list, got {'timestep': 5}"),
    ({"steps": [999]}, "a step must be an object, got 999"),
    ({"steps": [*ONE, {"timestep": 6}]}, "timesteps must not increase, got 5 then 6 at position 1"),
    ({"steps": ONE, "sampler": ""}, "a plan's sampler must be a name, got ''"),
    ({"steps": ONE, "sampler": None}, "a plan's sampler must be a name, got None"),
    ({"steps": ONE, "sampler": ["ddim"]}, "a plan's sampler must be a name, got ['ddim']"),
    ({"steps": ONE, "fill": "keep"}, "a plan's fill must be zero, hold, linear, got 'keep'"),
    ({"steps": ONE, "fill": None}, "a plan's fill must be zero, hold, linear, got None"),
    ({"steps": ONE, "fill": {}}, "a plan's fill must be zero, hold, linear, got {}"),
    ({"steps": ONE, "guidance": None}, "a plan's guidance must be numbers by name, got None"),
    ({"steps": ONE, "guidance": [7.5]}, "a plan's guidance must be numbers by name, got [7.5]"),
    ({"steps": ONE, "guidance": {"a": "b"}}, "a plan's guidance must be numbers by name, got 'a': 'b'"),
    ({"steps": ONE, "guidance": {"a": True}}, "a plan's guidance must be numbers by name, got 'a': True"),
    ({"steps": ONE, "guidance": {"a": math.nan}}, "a plan's guidance must be numbers by name, got 'a': nan"),
    ({"steps": ONE, "coefficients": 3}, "a plan's coefficients must be null or a list of lists, got 3"),
    ({"steps": ONE, "coefficients": [3]}, "a plan's coefficients must be null or a list of lists, got [3]"),
    ({"steps": ONE, "coefficients": "ab"}, "a plan's coefficients must be null or a list of lists, got 'ab'"),
    ({"steps": ONE, "coefficients": []}, "a plan's coefficients must be a row of finite numbers for each of 1 steps"),
    (
        {"steps": ONE, "coefficients": [["a"]]},
        "a plan's coefficients must be a row of finite numbers for each of 1 steps",
    ),
    (
        {"steps": ONE, "coefficients": [[math.inf]]},
        "a plan's coefficients must be a row of finite numbers for each of 1 steps",
    ),
    (
        {"steps": ONE, "timesteps": [5]},
        "a plan has no field 'timesteps'; its fields are steps, sampler, fill, guidance, coefficients",
    ),
    ([], "a plan must be an object, got []"),
    (None, "a plan must be an object, got None"),
]


@pytest.mark.parametrize(("value", "message"), PLAN_FAULTS, ids=str)
def test_what_no_plan_can_be(value, message):
    with pytest.raises(ValueError) as caught:
        Plan.from_json(value)
    assert str(caught.value) == message


# Cuts.

CUTS = [Cut("none"), Cut("depth_skip", {"depth": 9}), Cut("channels", {"keep": [1, 2, {"a": None}], "share": 0.5})]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_cut_comes_back_from_json(cut):
    again = Cut.from_json(through_json(cut))
    assert again == cut and hash(again) == hash(cut)
    assert through_json(again) == through_json(cut)


def test_cuts_are_compared_and_hashed_by_value():
    one = Cut("channels", {"a": 1, "b": [2]})
    other = Cut("channels", {"b": [2], "a": 1})
    assert one == other and hash(one) == hash(other)
    assert one != Cut("channels", {"a": 1, "b": [3]})
    assert one != Cut("blocks", one.choice)
    assert len({*CUTS, *(Cut.from_json(through_json(cut)) for cut in CUTS)}) == len(CUTS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "a cut must be an object with its method, got {}"),
        ({"depth": 9}, "a cut must be an object with its method, got {'depth': 9}"),
        ("depth_skip", "a cut must be an object with its method, got 'depth_skip'"),
        ({"method": 3}, "a cut's method must be a name, got 3"),
        ({"method": ""}, "a cut's method must be a name, got ''"),
    ],
    ids=str,
)
def test_what_no_cut_can_be(value, message):
    with pytest.raises(ValueError) as caught:
        Cut.from_json(value)
    assert str(caught.value) == message


def test_a_choice_cannot_be_called_method():
    with pytest.raises(ValueError, match="cannot have a field that is called method"):
        Cut("depth_skip", {"method": 3})
