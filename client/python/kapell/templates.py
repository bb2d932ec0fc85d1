"""The face for templates: write, read, try out. Thin; the server decides everything.

Where a verb takes a `template`, it may be "code-review" (the latest version), "code-review@3" (a
version) or "code-review@stable" (an alias). A task is made by `client.tasks.create(template=…)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from google.protobuf.struct_pb2 import Struct

from kapell.connection import Connection
from kapell.errors import FieldViolation, InvalidRequest, NotFound
from kapell.filters import TemplateQuery, template_filter
from kapell.messages import new_request_id, struct
from kapell.rules import parameters as rules
from kapell.v1 import template_pb2 as pb
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder
from kapell.v1.template_pb2_grpc import TemplateServiceStub

if TYPE_CHECKING:
    from kapell.v1.template_pb2_grpc import TemplateServiceAsyncStub


def check_parameters(template: pb.Template, parameters: Mapping[str, Any] | Struct | None, path: str = "") -> None:
    """Refuses parameters that the template does not take, before anything is sent; `path` is where they stand.

    Raises InvalidRequest with reason TEMPLATE_PARAMETERS_INVALID and every violation.
    """
    given = struct(parameters)
    values = rules.plain_struct(given) if given is not None else {}
    _, problems = rules.resolve(template.spec.parameters, values, path or "parameters")
    if problems:
        raise InvalidRequest(
            rules.refusal_text(template.template_id, problems),
            reason="TEMPLATE_PARAMETERS_INVALID",
            metadata={"template_id": template.template_id},
            violations=tuple(FieldViolation(field, what) for field, what in problems),
        )


class CloneFields(TypedDict, total=False):
    """What a clone may have of its own."""

    defaults: Mapping[str, Any] | Struct
    """New defaults by parameter; None removes one."""
    display_name: str
    description: str
    agent_type: str


class Templates:
    """`client.templates`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> TemplateServiceAsyncStub:
        return self._connection.stub(TemplateServiceStub)

    async def create(self, template_id: str, spec: pb.TemplateSpec, *, request_id: str = "") -> pb.Template:
        """Creates a template with its version 1; the answer is without the prompt."""
        request = pb.CreateTemplateRequest(
            template_id=template_id, spec=spec, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.CreateTemplate, request)).template

    async def update(
        self, template_id: str, spec: pb.TemplateSpec, *, etag: str = "", request_id: str = ""
    ) -> pb.Template:
        """Adds a version, which is the latest from then on; a spec equal to the latest changes nothing."""
        request = pb.UpdateTemplateRequest(
            template_id=template_id, spec=spec, etag=etag, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.UpdateTemplate, request)).template

    async def apply(self, template_id: str, spec: pb.TemplateSpec) -> pb.Template:
        """Creates the template or, where it is there, updates it: afterwards its latest version is `spec`."""
        try:
            current = await self.get(template_id)
        except NotFound:
            return await self.create(template_id, spec)
        return await self.update(template_id, spec, etag=current.etag)

    async def get(self, template: str) -> pb.Template:
        """Reads a template as of one version, with its prompt."""
        request = pb.GetTemplateRequest(template=template)
        return (await self._connection.call(self._stub.GetTemplate, request)).template

    async def list(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        **query: Unpack[TemplateQuery],
    ) -> pb.ListTemplatesResponse:
        """One page of templates without prompts, newest first; those that came with Kapell are the last, by name."""
        request = pb.ListTemplatesRequest(
            filter=template_filter(**query), order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListTemplates, request)

    async def iterate(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 200,
        **query: Unpack[TemplateQuery],
    ) -> AsyncIterator[pb.Template]:
        """All templates that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(order=order, page_size=page_size, page_token=page_token, **query)
            for template in page.templates:
                yield template
            page_token = page.next_page_token
            if not page_token:
                return

    async def versions(
        self, template_id: str, *, page_size: int = 0, page_token: str = ""
    ) -> pb.ListTemplateVersionsResponse:
        """One page of the versions of a template, the latest first, without prompts."""
        request = pb.ListTemplateVersionsRequest(template_id=template_id, page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListTemplateVersions, request)

    async def delete(self, template_id: str, *, force: bool = False, request_id: str = "") -> pb.DeleteTemplateResponse:
        """Deletes a template with all versions; with `force` although tasks made from it have not ended."""
        request = pb.DeleteTemplateRequest(
            template_id=template_id, force=force, request_id=request_id or new_request_id()
        )
        return await self._connection.call(self._stub.DeleteTemplate, request)

    async def set_alias(self, template_id: str, alias: str, version: int, *, request_id: str = "") -> pb.Template:
        """Lets an alias name a version; moves it where it is there already."""
        request = pb.SetTemplateAliasRequest(
            template_id=template_id, alias=alias, version=version, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.SetTemplateAlias, request)).template

    async def delete_alias(self, template_id: str, alias: str, *, request_id: str = "") -> pb.Template:
        """Removes an alias; one that is not there is no error."""
        request = pb.DeleteTemplateAliasRequest(
            template_id=template_id, alias=alias, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.DeleteTemplateAlias, request)).template

    async def validate(
        self, spec: pb.TemplateSpec, parameters: Mapping[str, Any] | Struct | None = None
    ) -> pb.ValidateTemplateResponse:
        """All that is wrong with a spec; with `parameters` also its prompt. What is wrong is the answer, no error."""
        request = pb.ValidateTemplateRequest(spec=spec, parameters=struct(parameters))
        return await self._connection.call(self._stub.ValidateTemplate, request)

    async def check(self, template: str, parameters: Mapping[str, Any] | Struct | None = None) -> pb.Template:
        """The template, where it takes these parameters: judged here, by the rules and in the words of the server.

        Raises InvalidRequest with reason TEMPLATE_PARAMETERS_INVALID and every violation.
        """
        found = await self.get(template)
        check_parameters(found, parameters)
        return found

    async def render(
        self, template: str, parameters: Mapping[str, Any] | Struct | None = None, *, agent_type: str = ""
    ) -> pb.RenderTemplateResponse:
        """Dry run: what a task would be, how long such tasks took, and what would keep it from starting now."""
        request = pb.RenderTemplateRequest(template=template, parameters=struct(parameters), agent_type=agent_type)
        return await self._connection.call(self._stub.RenderTemplate, request)

    async def clone(
        self, template: str, template_id: str, *, request_id: str = "", **fields: Unpack[CloneFields]
    ) -> pb.Template:
        """Creates a template from a version of another one, with defaults of its own."""
        request = pb.CloneTemplateRequest(
            template=template,
            template_id=template_id,
            defaults=struct(fields.get("defaults")),
            display_name=fields.get("display_name", ""),
            description=fields.get("description", ""),
            agent_type=fields.get("agent_type", ""),
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.CloneTemplate, request)).template
