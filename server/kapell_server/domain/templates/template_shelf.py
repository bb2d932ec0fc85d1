"""The templates that decisions look at and write to: the part of State that is about them.

Undone with the rest of State, through its journal. Versions never change, so that once parsed
they are kept until their template is deleted or the shelf is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.template_pb2 import Template
from kapell.v1.watch_pb2 import EventKind

from kapell_server.domain.templates.template_version import Compiled, compile_version, template_not_found

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_MOST = 500


class TemplateShelf:
    """Templates and versions in memory, loaded as they are asked for."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._templates: dict[str, Template | None] = {}
        self._versions: dict[tuple[str, int], Compiled] = {}

    def trim(self) -> None:
        """Forgets what is beyond the cap, the oldest first; between batches only."""
        while len(self._templates) > _MOST:
            del self._templates[next(iter(self._templates))]
        while len(self._versions) > _MOST:
            del self._versions[next(iter(self._versions))]

    def find(self, template_id: str) -> Template | None:
        """The template as of its latest version, without its prompt; or None. Not to be altered."""
        if template_id not in self._templates:
            self._templates[template_id] = self._state.loader.load_template(template_id)
        return self._templates[template_id]

    def get(self, template_id: str) -> Template:
        """The template; TEMPLATE_NOT_FOUND where there is none."""
        template = self.find(template_id)
        if template is None:
            raise template_not_found(template_id)
        return template

    def version(self, template_id: str, version: int) -> Compiled:
        """A version that the template has, ready to be rendered."""
        key = (template_id, version)
        if key not in self._versions:
            loaded = self._state.loader.load_template_version(template_id, version)
            assert loaded is not None, f"{template_id} has no version {version}"
            self._versions[key] = compile_version(loaded)
        return self._versions[key]

    def put(
        self,
        template: Template,
        kind: EventKind.ValueType,
        changed: tuple[str, ...],
        *,
        created: bool = False,
        deleted: bool = False,
    ) -> Template:
        """Records `template` as the new form, with one event. Takes ownership of the message."""
        state = self._state
        template_id = template.template_id
        previous = None if created else self._templates.get(template_id)
        since = previous.revision if previous is not None else 0
        state.record(template, kind, since, changed, created=created, deleted=deleted)
        state.assign(self._templates, template_id, None if deleted else template)
        if deleted:
            for version in range(1, template.latest_version + 1):
                state.remove(self._versions, (template_id, version))
                state.remove(state.pending.template_versions, (template_id, version))
        return template

    def put_version(self, compiled: Compiled) -> None:
        """Records a new version."""
        version = compiled.version
        key = (version.template_id, version.version)
        self._state.assign(self._state.pending.template_versions, key, version)
        self._state.assign(self._versions, key, compiled)
