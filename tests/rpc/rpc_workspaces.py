"""The table of test_every_rpc for what tasks do in repositories."""

from __future__ import annotations

from typing import Any

from kapell.v1.task_pb2 import RecordTaskMergeRequest
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_CONTINUE, CompleteTaskRequest, ReportWorkspacesRequest
from kapell.v1.workspace_pb2 import MERGE_OUTCOME_MERGED, TaskWorkspace, WorkspaceMerge

from tests.rpc.rpc_cases import Case, of_lease, of_lease_worker, of_task
from tests.rpc.scene import Ask, Scene

SHOP = TaskWorkspace(name="shop", branch="kapell/task_1", head_commit="abc")
MERGED = WorkspaceMerge(outcome=MERGE_OUTCOME_MERGED, commit="def")


def _left(scene: Scene, *, succeeds: bool = True) -> str:
    """A task whose attempt has left something in its workspace."""
    running = scene.running()
    told = ReportWorkspacesRequest(lease_token=running.lease_token, workspaces=[SHOP])
    scene.call("ReportWorkspaces", Ask(told, running.worker.token))
    if succeeds:
        done = CompleteTaskRequest(lease_token=running.lease_token)
        scene.call("CompleteTask", Ask(done, running.worker.token))
    return running.task_id


def _merge(task_id: str, name: str = "shop", head_commit: str = "abc") -> Ask:
    return Ask(RecordTaskMergeRequest(task_id=task_id, name=name, head_commit=head_commit, merge=MERGED))


REPORT_WORKSPACES = Case(
    works=of_lease_worker(ReportWorkspacesRequest, workspaces=[SHOP]),
    holds=lambda answer: answer.directive == LEASE_DIRECTIVE_CONTINUE and answer.revision > 0,
    refused=of_lease(ReportWorkspacesRequest, workspaces=[SHOP]),
    malformed=({"leaseToken": "t"}, "workspaces"),
)
RECORD_TASK_MERGE = Case(
    works=lambda scene: _merge(_left(scene)),
    holds=lambda answer: answer.task.workspaces[0].merge.commit == "def",
    refused={
        **of_task(RecordTaskMergeRequest, name="shop", head_commit="abc", merge=MERGED),
        "WORKSPACE_NOT_FOUND": lambda scene: _merge(_left(scene), name="till"),
        "WORKSPACE_CHANGED": lambda scene: _merge(_left(scene), head_commit="old"),
        "TASK_STATE_CONFLICT": lambda scene: _merge(_left(scene, succeeds=False)),
    },
    malformed=({"taskId": "task_1", "name": "shop", "headCommit": "a"}, "merge"),
)
VALID_OF_WORKSPACES: dict[str, dict[str, Any]] = {
    "ReportWorkspaces": {"leaseToken": "t", "workspaces": [{"name": "shop"}]},
    "RecordTaskMerge": {
        "taskId": "task_1",
        "name": "shop",
        "headCommit": "a",
        "merge": {"outcome": "MERGE_OUTCOME_MERGED"},
    },
}
"""Requests that pass validation, of the methods that require something."""
