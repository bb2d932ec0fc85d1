"""What may be wrong with a template beyond the shape of its message: found when it is written, all at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from kapell.rules.parameters import Problem
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_ARRAY,
    PARAMETER_TYPE_OBJECT,
    TemplateLock,
    TemplateParameter,
    TemplateSpec,
    TemplateStep,
)

from kapell_server.domain.cycles import find_cycle
from kapell_server.domain.locks.declared import tidied
from kapell_server.domain.locks.paths import PathError, canonical
from kapell_server.domain.templates.declarations import check_declarations
from kapell_server.domain.templates.template_steps import wrong_key
from kapell_server.domain.templates.template_text import (
    MAX_RENDERED,
    MAX_TAGS,
    If,
    Node,
    TextError,
    Use,
    condition,
    count_tags,
    parse,
    places,
    uses,
)

_Declared = Mapping[str, TemplateParameter]


def check_spec(spec: TemplateSpec, path: str = "spec") -> list[Problem]:
    """All that is wrong with a template, beyond the shape of its message."""
    if crowded := _too_many_tags(spec, path):
        return [crowded]
    problems = check_declarations(spec.parameters, f"{path}.parameters")
    declared = {parameter.name: parameter for parameter in spec.parameters}
    named = [step.name for step in spec.steps] or None
    problems += _check_prompt(spec.prompt, f"{path}.prompt", declared, named, "step of the template")
    problems += _check_line(spec.task_name, f"{path}.task_name", declared)
    problems += _check_keys(spec.concurrency_keys, f"{path}.concurrency_keys", declared)
    problems += _check_locks(spec.locks, f"{path}.locks", declared)
    for index, step in enumerate(spec.steps):
        problems += _check_step(step, index, f"{path}.steps[{index}]", declared, named or [])
    problems += _check_cycle(spec, path)
    size = sum(len(text.encode()) for text in (spec.prompt, *(step.prompt for step in spec.steps)))
    if size > MAX_RENDERED:
        what = f"the prompts of the template are {size} bytes together, at most {MAX_RENDERED} are allowed"
        problems.append((f"{path}.steps", what))
    return problems


def _too_many_tags(spec: TemplateSpec, path: str) -> Problem | None:
    """Names the text with which a template gets more tags than it may have: then nothing of it is parsed."""
    left = MAX_TAGS
    for here, texts in _texts(spec, path):
        left -= count_tags(texts, left)
        if left < 0:
            what = f"the template has more than {MAX_TAGS:,} tags in all its texts, doubled braces counted"
            return here, f"{what}; put long lists into parameters, or make it several templates"
    return None


def _texts(spec: TemplateSpec, path: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Every text that may have tags, with its path; the keys of a task or step together."""
    said: list[tuple[str, TemplateSpec | TemplateStep]] = [(path, spec)]
    said += [(f"{path}.steps[{index}]", step) for index, step in enumerate(spec.steps)]
    for here, one in said:
        yield f"{here}.prompt", (one.prompt,)
        yield f"{here}.task_name", (one.task_name,)
        yield f"{here}.concurrency_keys", one.concurrency_keys
        yield f"{here}.locks", [lock.path for lock in one.locks]


def _check_step(step: TemplateStep, index: int, path: str, declared: _Declared, names: list[str]) -> Iterator[Problem]:
    if step.name in names[:index]:
        yield f"{path}.name", f"is {step.name!r}, as that of steps[{names.index(step.name)}]; names are unique"
    for at, wanted in enumerate(step.depends_on):
        if wanted not in names:
            yield f"{path}.depends_on[{at}]", f"there is no step {wanted!r} (there are: {', '.join(names)})"
    known: frozenset[str] = frozenset()
    if step.when.strip():
        try:
            asked = condition(step.when)
            known = _known(asked)
            yield from ((f"{path}.when", what) for what in _wrong_uses([asked], declared))
        except TextError as error:
            yield f"{path}.when", str(error)
    elif step.when:
        yield f"{path}.when", "is blank; leave it empty, or write name, not name or name is word"
    yield from _check_prompt(step.prompt, f"{path}.prompt", declared, step.depends_on, "step in depends_on", known)
    yield from _check_line(step.task_name, f"{path}.task_name", declared, known)
    yield from _check_keys(step.concurrency_keys, f"{path}.concurrency_keys", declared, known)
    yield from _check_locks(step.locks, f"{path}.locks", declared, known)


def _known(asked: If) -> frozenset[str]:
    """What has a value wherever the condition holds."""
    return frozenset() if asked.negated or asked.name.fields else frozenset({asked.name.root})


def _check_prompt(
    text: str,
    path: str,
    declared: _Declared,
    results: Collection[str] | None,
    meant: str,
    known: frozenset[str] = frozenset(),
) -> Iterator[Problem]:
    """`results` are the names whose results there will be; None where each task has its own."""
    if not text.strip():
        yield path, "is required"
    try:
        nodes = parse(text)
    except TextError as error:
        yield path, str(error)
        return
    yield from ((path, what) for what in dict.fromkeys(_wrong_uses(nodes, declared, known)))
    if results is not None:
        for place in dict.fromkeys(places(nodes)):
            if place.dependency not in results:
                there = ", ".join(results) or "none"
                why = f"{place.dependency!r} is no {meant} (there are: {there})"
                yield path, f"{place} would never have a result: {why}"


def _check_line(text: str, path: str, declared: _Declared, known: frozenset[str] = frozenset()) -> Iterator[Problem]:
    try:
        nodes = parse(text)
    except TextError as error:
        yield path, str(error)
        return
    yield from ((path, what) for what in dict.fromkeys(_wrong_uses(nodes, declared, known)))
    if (place := next(places(nodes), None)) is not None:
        yield path, f"{place} is for prompts; this is written before there is a result"


def _check_keys(
    keys: Sequence[str], path: str, declared: _Declared, known: frozenset[str] = frozenset()
) -> Iterator[Problem]:
    for index, key in enumerate(keys):
        here = f"{path}[{index}]"
        yield from _check_line(key, here, declared, known)
        if "{" not in key and "}" not in key and (wrong := wrong_key(key)):
            yield here, wrong


def _check_locks(
    locks: Sequence[TemplateLock], path: str, declared: _Declared, known: frozenset[str] = frozenset()
) -> Iterator[Problem]:
    for index, lock in enumerate(locks):
        here = f"{path}[{index}].path"
        yield from _check_line(lock.path, here, declared, known)
        if "{" in lock.path or "}" in lock.path:
            continue
        try:
            canonical(tidied(lock.path))
        except PathError as error:
            yield here, f"{lock.path!r} {error}"


def _check_cycle(spec: TemplateSpec, path: str) -> Iterator[Problem]:
    graph = {step.name: list(step.depends_on) for step in spec.steps}
    known = {name: [wanted for wanted in depends_on if wanted in graph] for name, depends_on in graph.items()}
    cycle = find_cycle(known)
    if cycle:
        index = next(at for at, step in enumerate(spec.steps) if step.name == cycle[0])
        circle = " → ".join([*cycle, cycle[0]])
        yield f"{path}.steps[{index}].depends_on", f"these steps would wait for each other for ever: {circle}"


def _wrong_uses(nodes: list[Node], declared: _Declared, known: frozenset[str] = frozenset()) -> list[str]:
    return [what for use in uses(nodes, known) if (what := _wrong_use(use, declared))]


def _wrong_use(use: Use, declared: _Declared) -> str:
    """What is wrong with one tag; empty where it is right."""
    name = use.name.root
    parameter = declared.get(name)
    where = f"line {use.line}: "
    if parameter is None and name == "deps":
        return f"{where}{{{use.name}}} is no tag; the result of a dependency is {{deps.NAME.result}}, as a text only"
    if parameter is None:
        known = ", ".join(declared) or "none"
        return f"{where}there is no parameter {name!r} (there are: {known}); a brace that is meant as one is doubled"
    if use.name.fields and parameter.rules.type != PARAMETER_TYPE_OBJECT:
        return f"{where}{{{use.name}}} asks for an entry, and {name!r} is no object"
    if use.kind == "each" and not use.name.fields and parameter.rules.type != PARAMETER_TYPE_ARRAY:
        return f"{where}{{each {name}}} needs an array, and {name!r} is none"
    may_be_absent = not parameter.required and not parameter.HasField("default_value")
    if use.kind == "put" and may_be_absent and not use.guarded:
        return f"{where}{name!r} may have no value here: make it required, give it a default, or ask with {{if {name}}}"
    return ""
