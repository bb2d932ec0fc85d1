"""Random templates with steps: what is done, and in which order, is what a small oracle says."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED, CreateTaskRequest, TaskSpec
from kapell.v1.template_pb2 import PARAMETER_TYPE_BOOL, CreateTemplateRequest, TemplateSpec, TemplateStep

from tests.domain.world import World

Shape = tuple[dict[str, list[str]], dict[str, tuple[str, bool]], dict[str, bool]]
"""What each step depends on; the parameter its `when` asks for, and whether negated; the parameters."""


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Any DAG of up to 12 steps, written down in any order."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 12)))]
    graph = {
        name: draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        for index, name in enumerate(names)
    }
    order = draw(st.permutations(names))
    switches = ["p", "q", "r"]
    asked = draw(st.dictionaries(st.sampled_from(names), st.tuples(st.sampled_from(switches), st.booleans())))
    values = {switch: draw(st.booleans()) for switch in switches}
    return {name: graph[name] for name in order}, asked, values


def expected(shape: Shape) -> dict[str, set[str]]:
    """A done step depends on each done step that it reaches by way of steps that are left out, and only these."""
    graph, asked, values = shape
    is_done = {name: name not in asked or values[asked[name][0]] is not asked[name][1] for name in graph}
    found: dict[str, set[str]] = {}
    for name in filter(is_done.get, graph):
        reached: set[str] = set()
        pending = list(graph[name])
        while pending:
            other = pending.pop()
            if is_done[other]:
                reached.add(other)
            else:
                pending += graph[other]
        found[name] = reached
    return found


def template(shape: Shape) -> TemplateSpec:
    graph, asked, values = shape
    spec = TemplateSpec(agent_type="code", prompt=" ".join(f"{{deps.{name}.result}}" for name in graph))
    for switch in values:
        spec.parameters.add(name=switch, rules={"type": PARAMETER_TYPE_BOOL}, required=True)
    for name, depends_on in graph.items():
        places = " ".join(f"{{deps.{other}.result}}" for other in depends_on)
        switch, negated = asked.get(name, ("", False))
        when = f"not {switch}" if negated else switch
        spec.steps.append(TemplateStep(name=name, prompt=f"{name}: {places}", depends_on=depends_on, when=when))
    return spec


@settings(max_examples=60)
@given(shapes())
def test_any_template_is_worked_off_in_its_order(shape: Shape) -> None:
    world = World()
    world.do(CreateTemplateRequest(template_id="t", spec=template(shape)))
    graph, _, values = shape
    parameters: dict[str, Any] = dict(values)

    task = world.do(CreateTaskRequest(task=TaskSpec(template="t", parameters=parameters)))

    wanted = expected(shape)
    names = {entry.task_id: entry.name for entry in task.dependencies}
    assert {
        names[found.task_id]: {entry.name for entry in found.dependencies}
        for found in world.rows.tasks.values()
        if found.parent_task_id == task.task_id
    } == wanted
    agent_id = world.register("code")
    ended: list[str] = []
    for _ in range(len(wanted) + 1):
        task_id = world.lease(agent_id)
        name = names.get(task_id, "itself")
        assert wanted.get(name, set(wanted)) <= set(ended)
        told = [f"<{other}>" if other in wanted else f"(step {other} was left out)" for other in graph.get(name, graph)]
        head = "" if name == "itself" else f"{name}: "
        assert world.content(task_id).prompt == head + " ".join(told)
        world.complete(task_id, f"<{name}>")
        ended.append(name)
    assert (ended[-1], world.task(task.task_id).state) == ("itself", TASK_STATE_SUCCEEDED)
