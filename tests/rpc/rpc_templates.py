"""The part of rpc_table about templates."""

from __future__ import annotations

from typing import Any

from kapell.v1 import task_pb2, template_pb2

from tests.rpc.rpc_cases import Case, page_tokens
from tests.rpc.scene import Ask, Scene

_NO_TEMPLATE = "nothing"


def spec(**fields: Any) -> template_pb2.TemplateSpec:
    """A template with one required parameter."""
    said: dict[str, Any] = {
        "agent_type": "nobody",
        "prompt": "Greet {name}",
        "parameters": [{"name": "name", "rules": {"type": template_pb2.PARAMETER_TYPE_STRING}, "required": True}],
    }
    return template_pb2.TemplateSpec(**{**said, **fields})


def template(scene: Scene, **fields: Any) -> str:
    """The id of a template that nobody else knows."""
    template_id = scene.name("template-")
    scene.ask("CreateTemplate", template_pb2.CreateTemplateRequest(template_id=template_id, spec=spec(**fields)))
    return template_id


def in_use(scene: Scene) -> str:
    """A template with a task that has not ended."""
    template_id = template(scene)
    scene.queued(agent_type="", prompt="", template=template_id, parameters={"name": "Ada"})
    return template_id


def with_alias(scene: Scene) -> str:
    """A template whose version 1 is `stable`."""
    template_id = template(scene)
    request = template_pb2.SetTemplateAliasRequest(template_id=template_id, alias="stable", version=1)
    scene.ask("SetTemplateAlias", request)
    return template_id


def _of_other_versions(scene: Scene) -> Ask:
    first = template(scene)
    changed = spec(prompt="Hello {name}")
    scene.ask("UpdateTemplate", template_pb2.UpdateTemplateRequest(template_id=first, spec=changed))
    page = scene.ask("ListTemplateVersions", template_pb2.ListTemplateVersionsRequest(template_id=first, page_size=1))
    assert page.next_page_token
    return Ask(template_pb2.ListTemplateVersionsRequest(template_id=template(scene), page_token=page.next_page_token))


def _task(scene: Scene, **fields: Any) -> Ask:
    return Ask(task_pb2.CreateTaskRequest(task=task_pb2.TaskSpec(**fields)))


OF_CREATE_TASK = {
    "TEMPLATE_NOT_FOUND": lambda scene: _task(scene, template=_NO_TEMPLATE),
    "TEMPLATE_PARAMETERS_INVALID": lambda scene: _task(scene, template=template(scene), parameters={"nam": "Ada"}),
    "REQUEST_INVALID: neither type nor template": lambda scene: _task(scene, prompt="do it"),
    "REQUEST_INVALID: a prompt besides the template": lambda scene: _task(
        scene, template=template(scene), prompt="do it"
    ),
}

TEMPLATES: dict[str, Case] = {
    "CreateTemplate": Case(
        works=lambda scene: Ask(template_pb2.CreateTemplateRequest(template_id=scene.name("template-"), spec=spec())),
        holds=lambda answer: answer.template.version == 1 and answer.template.revision == answer.revision,
        refused={
            "ID_TAKEN": lambda scene: Ask(template_pb2.CreateTemplateRequest(template_id=template(scene), spec=spec())),
            "REQUEST_INVALID: a tag that is no parameter": lambda scene: Ask(
                template_pb2.CreateTemplateRequest(template_id=scene.name("template-"), spec=spec(prompt="{nam}"))
            ),
        },
        malformed=({"templateId": "a", "spec": {"agentType": "No Spaces"}}, "spec.agent_type"),
    ),
    "GetTemplate": Case(
        works=lambda scene: Ask(template_pb2.GetTemplateRequest(template=with_alias(scene) + "@stable")),
        holds=lambda answer: answer.template.spec.prompt == "Greet {name}",
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(template_pb2.GetTemplateRequest(template=_NO_TEMPLATE)),
            "TEMPLATE_NOT_FOUND: no such version": lambda scene: Ask(
                template_pb2.GetTemplateRequest(template=template(scene) + "@2")
            ),
        },
        malformed=({"template": "No Spaces"}, "template"),
    ),
    "ListTemplates": Case(
        works=lambda scene: Ask(
            template_pb2.ListTemplatesRequest(filter=template_pb2.TemplateFilter(template_ids=[template(scene)]))
        ),
        holds=lambda answer: len(answer.templates) == 1 and not answer.templates[0].spec.prompt,
        refused=page_tokens(template_pb2.ListTemplatesRequest, "ListTemplates", {"agent_types": ["other"]}),
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "UpdateTemplate": Case(
        works=lambda scene: Ask(
            template_pb2.UpdateTemplateRequest(template_id=template(scene), spec=spec(prompt="Hello {name}"))
        ),
        holds=lambda answer: answer.template.latest_version == 2,
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(
                template_pb2.UpdateTemplateRequest(template_id=_NO_TEMPLATE, spec=spec())
            ),
            "TEMPLATE_BUILT_IN": lambda scene: Ask(
                template_pb2.UpdateTemplateRequest(template_id="code-review", spec=spec())
            ),
            "ETAG_MISMATCH": lambda scene: Ask(
                template_pb2.UpdateTemplateRequest(template_id=template(scene), spec=spec(), etag="other")
            ),
        },
        malformed=({"templateId": "a"}, "spec"),
    ),
    "DeleteTemplate": Case(
        works=lambda scene: Ask(template_pb2.DeleteTemplateRequest(template_id=in_use(scene), force=True)),
        holds=lambda answer: answer.revision > 0,
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(template_pb2.DeleteTemplateRequest(template_id=_NO_TEMPLATE)),
            "TEMPLATE_BUILT_IN": lambda scene: Ask(template_pb2.DeleteTemplateRequest(template_id="code-review")),
            "TEMPLATE_IN_USE": lambda scene: Ask(template_pb2.DeleteTemplateRequest(template_id=in_use(scene))),
        },
        malformed=({}, "template_id"),
    ),
    "ListTemplateVersions": Case(
        works=lambda scene: Ask(template_pb2.ListTemplateVersionsRequest(template_id=template(scene))),
        holds=lambda answer: [version.version for version in answer.versions] == [1],
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(template_pb2.ListTemplateVersionsRequest(template_id=_NO_TEMPLATE)),
            "PAGE_TOKEN_INVALID: of another template": _of_other_versions,
        },
        malformed=({"templateId": "a", "pageSize": -1}, "page_size"),
    ),
    "SetTemplateAlias": Case(
        works=lambda scene: Ask(
            template_pb2.SetTemplateAliasRequest(template_id=template(scene), alias="stable", version=1)
        ),
        holds=lambda answer: dict(answer.template.aliases) == {"stable": 1},
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(
                template_pb2.SetTemplateAliasRequest(template_id=template(scene), alias="stable", version=2)
            ),
        },
        malformed=({"templateId": "a", "alias": "latest", "version": 1}, "alias"),
    ),
    "DeleteTemplateAlias": Case(
        works=lambda scene: Ask(template_pb2.DeleteTemplateAliasRequest(template_id=with_alias(scene), alias="stable")),
        holds=lambda answer: not answer.template.aliases,
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(
                template_pb2.DeleteTemplateAliasRequest(template_id=_NO_TEMPLATE, alias="stable")
            ),
        },
        malformed=({"templateId": "a"}, "alias"),
    ),
    "ValidateTemplate": Case(
        works=lambda scene: Ask(template_pb2.ValidateTemplateRequest(spec=spec(), parameters={"name": "Ada"})),
        holds=lambda answer: not answer.problems and answer.prompt == "Greet Ada",
        malformed=({}, "spec"),
    ),
    "RenderTemplate": Case(
        works=lambda scene: Ask(
            template_pb2.RenderTemplateRequest(template=template(scene), parameters={"name": "Ada"})
        ),
        holds=lambda answer: answer.prompt == "Greet Ada" and len(answer.blockers) >= 1,
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(template_pb2.RenderTemplateRequest(template=_NO_TEMPLATE)),
            "TEMPLATE_PARAMETERS_INVALID": lambda scene: Ask(
                template_pb2.RenderTemplateRequest(template=template(scene), parameters={"name": 7})
            ),
        },
        malformed=({"template": "@"}, "template"),
    ),
    "CloneTemplate": Case(
        works=lambda scene: Ask(
            template_pb2.CloneTemplateRequest(
                template="code-review@1", template_id=scene.name("clone-"), defaults={"branch": "develop"}
            )
        ),
        holds=lambda answer: answer.template.cloned_from == "code-review@1" and not answer.template.built_in,
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(
                template_pb2.CloneTemplateRequest(template=_NO_TEMPLATE, template_id=scene.name("clone-"))
            ),
            "ID_TAKEN": lambda scene: Ask(
                template_pb2.CloneTemplateRequest(template="code-review", template_id=template(scene))
            ),
            "TEMPLATE_PARAMETERS_INVALID": lambda scene: Ask(
                template_pb2.CloneTemplateRequest(
                    template="code-review", template_id=scene.name("clone-"), defaults={"branch": 7}
                )
            ),
        },
        malformed=({"template": "code-review", "templateId": "No"}, "template_id"),
    ),
}
