"""TemplateService: hands changes to the engine, reads past it, and renders without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from kapell.rules.parameters import as_struct, plain_struct
from kapell.v1 import agent_pb2, template_pb2
from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.queueing.start_blockers import StartQuestion
from kapell_server.domain.settings import Settings
from kapell_server.domain.tasks.retry import with_defaults
from kapell_server.domain.tasks.task import DEFAULT_PRIORITY
from kapell_server.domain.templates.template_check import check_spec
from kapell_server.domain.templates.template_version import Rendered, compile_version, split_reference
from kapell_server.rpc.template_steps import rendered_steps

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads
    from kapell_server.store.template_reads import History

_MOST_AGENTS = 1000


class TemplateServicer:
    """The methods of TemplateService. Changes go straight to the engine, which answers encoded."""

    def __init__(self, engine: Engine, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads
        self.CreateTemplate = engine.submit
        self.UpdateTemplate = engine.submit
        self.DeleteTemplate = engine.submit
        self.SetTemplateAlias = engine.submit
        self.DeleteTemplateAlias = engine.submit
        self.CloneTemplate = engine.submit

    async def GetTemplate(
        self, request: template_pb2.GetTemplateRequest, caller: Caller
    ) -> template_pb2.GetTemplateResponse:
        revision = self._engine.revision
        template = await self._reads.templates.get(*split_reference(request.template))
        return template_pb2.GetTemplateResponse(template=template, revision=revision)

    async def ListTemplates(
        self, request: template_pb2.ListTemplatesRequest, caller: Caller
    ) -> template_pb2.ListTemplatesResponse:
        return await self._reads.templates.list(request)

    async def ListTemplateVersions(
        self, request: template_pb2.ListTemplateVersionsRequest, caller: Caller
    ) -> template_pb2.ListTemplateVersionsResponse:
        return await self._reads.templates.versions(request)

    async def ValidateTemplate(
        self, request: template_pb2.ValidateTemplateRequest, caller: Caller
    ) -> template_pb2.ValidateTemplateResponse:
        problems = check_spec(request.spec)
        answer = template_pb2.ValidateTemplateResponse()
        if not problems and request.HasField("parameters"):
            compiled = compile_version(template_pb2.TemplateVersion(template_id="template", spec=request.spec))
            try:
                rendered = compiled.render(plain_struct(request.parameters), "parameters")
                answer.prompt = rendered.prompt
                answer.steps.extend(rendered_steps(request.spec, rendered, request.spec.agent_type))
            except KapellError as error:
                problems = list(error.violations)
        for field, description in problems:
            answer.problems.add(field=field, description=description)
        return answer

    async def RenderTemplate(
        self, request: template_pb2.RenderTemplateRequest, caller: Caller
    ) -> template_pb2.RenderTemplateResponse:
        _check_size(request)
        revision = self._engine.revision
        template = await self._reads.templates.get(*split_reference(request.template))
        spec = template.spec
        version = template_pb2.TemplateVersion(template_id=template.template_id, version=template.version, spec=spec)
        rendered = compile_version(version).render(plain_struct(request.parameters), "parameters")
        agent_type = request.agent_type or spec.agent_type
        steps = rendered_steps(spec, rendered, agent_type)
        labels = tuple(spec.labels.items())
        held_up = await self._held_up(agent_type, steps, rendered, (template.template_id, labels), caller)
        return template_pb2.RenderTemplateResponse(
            template_id=template.template_id,
            version=template.version,
            prompt=rendered.prompt,
            display_name=rendered.display_name,
            parameters=as_struct(rendered.values),
            agent_type=agent_type,
            priority=spec.priority if spec.HasField("priority") else DEFAULT_PRIORITY,
            retry_policy=with_defaults(spec.retry_policy),
            timeouts=spec.timeouts if spec.HasField("timeouts") else None,
            history=_history(await self._reads.templates.history(template.template_id)),
            blockers=held_up.blockers,
            budget_holds=held_up.budget_holds,
            revision=revision,
            steps=steps,
            concurrency_keys=rendered.concurrency_keys,
            locks=rendered.locks,
        )

    async def _held_up(
        self,
        agent_type: str,
        steps: list[template_pb2.RenderedStep],
        rendered: Rendered,
        features: tuple[str, tuple[tuple[str, str], ...]],
        caller: Caller,
    ) -> template_pb2.RenderTemplateResponse:
        """What would keep the first steps, or the task itself, from starting now; and types that nobody serves.

        `features` are the template and its labels. The answer has blockers and budget_holds alone.
        """
        ahead = [step for step in steps if not step.left_out]
        beginning = [step for step in ahead if not step.depends_on]
        first = dict.fromkeys(step.agent_type for step in beginning) or {agent_type: None}
        needed = dict.fromkeys([*(step.agent_type for step in ahead), agent_type])
        blockers: list[template_pb2.StartBlocker] = []
        for wanted in needed:
            found = await self._blockers_of(wanted)
            blockers += found if wanted in first else found[:1] if _nobody(found) else []
        starting: Sequence[template_pb2.RenderedStep | Rendered] = beginning or (rendered,)
        keys = dict.fromkeys(key for one in starting for key in one.concurrency_keys)
        locks = tuple(tuple(one.locks) for one in starting)
        question = StartQuestion(tuple(needed), tuple(first), tuple(keys), locks, *features)
        held_up = template_pb2.RenderTemplateResponse.FromString(await self._engine.submit(question, caller))
        held_up.blockers.extend(blockers)
        return held_up

    async def _blockers_of(self, agent_type: str) -> list[template_pb2.StartBlocker]:
        """What would keep a task of this type from starting now."""
        live = [agent_pb2.AGENT_STATE_PENDING, agent_pb2.AGENT_STATE_STARTING, agent_pb2.AGENT_STATE_ACTIVE]
        wanted = agent_pb2.AgentFilter(states=live, agent_types=[agent_type])
        page = await self._reads.list_agents(agent_pb2.ListAgentsRequest(filter=wanted, page_size=_MOST_AGENTS))
        blockers: list[template_pb2.StartBlocker] = []
        if not page.agents:
            text = f"No agent serves {agent_type!r}. Spawn one, or name another agent type."
            blockers.append(template_pb2.StartBlocker(kind=template_pb2.START_BLOCKER_KIND_NO_AGENT, message=text))
        elif all(agent.slots_used >= agent.slots_total for agent in page.agents):
            count = len(page.agents)
            text = f"All agents that serve {agent_type!r} are busy, {count} of them. Spawn another, or wait."
            blockers.append(
                template_pb2.StartBlocker(kind=template_pb2.START_BLOCKER_KIND_AGENTS_BUSY, message=text, count=count)
            )
        waiting = self._engine.diagnostics().ready_tasks.get(agent_type, 0)
        if waiting:
            text = f"{waiting} other tasks for {agent_type!r} are waiting. A higher priority would pass them."
            blockers.append(
                template_pb2.StartBlocker(kind=template_pb2.START_BLOCKER_KIND_QUEUE, message=text, count=waiting)
            )
        return blockers


def _nobody(blockers: list[template_pb2.StartBlocker]) -> bool:
    return any(blocker.kind == template_pb2.START_BLOCKER_KIND_NO_AGENT for blocker in blockers)


def _check_size(request: template_pb2.RenderTemplateRequest) -> None:
    limit = Settings().max_content_bytes
    if request.parameters.ByteSize() > limit:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"parameters is too large: {request.parameters.ByteSize()} bytes, at most {limit} are allowed. "
            "Pass a path or an address instead of the data.",
            violations=(("parameters", f"must be at most {limit} bytes"),),
        )


def _history(history: History) -> template_pb2.TemplateHistory:
    if not history.seconds:
        return template_pb2.TemplateHistory(tasks=history.tasks)
    return template_pb2.TemplateHistory(
        tasks=history.tasks,
        succeeded=len(history.seconds),
        p50_duration=_duration(history.percentile(50)),
        p95_duration=_duration(history.percentile(95)),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
