"""The rpc table's part about dependencies and children."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from kapell.v1 import task_pb2, worker_pb2
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_SUCCEEDED, TaskSpec

from tests.rpc.rpc_cases import NOTHING, Case, Make, of_lease, of_task
from tests.rpc.scene import Ask, Running, Scene

_CHILD = TaskSpec(agent_type="nobody")


def _create(**fields: object) -> Make:
    return lambda scene: Ask(task_pb2.CreateTaskRequest(task=scene.spec(**fields)))


def _batch_in_a_circle(scene: Scene) -> Ask:
    request = task_pb2.BatchCreateTasksRequest()
    for key, other in (("a", "b"), ("b", "a")):
        request.tasks.add(agent_type="nobody", client_key=key).dependencies.add(client_key=other)
    return Ask(request)


def _too_deep(scene: Scene) -> Ask:
    task = scene.queued()
    for _ in range(8):
        task = scene.queued(parent_task_id=task.task_id)
    return Ask(task_pb2.CreateTaskRequest(task=scene.spec(parent_task_id=task.task_id)))


def _retry_of_a_child_of_a_cancelled_one(scene: Scene) -> Ask:
    task = scene.queued(dependencies=[TaskDependency(task_id=scene.cancelled().task_id)])
    return Ask(task_pb2.RetryTaskRequest(task_id=task.task_id))


def _tree(scene: Scene) -> Ask:
    root = scene.queued()
    child = scene.queued(parent_task_id=root.task_id)
    scene.queued(parent_task_id=root.task_id)
    scene.queued(parent_task_id=child.task_id)
    return Ask(task_pb2.GetTaskTreeRequest(task_id=root.task_id))


def _with_children(scene: Scene) -> Running:
    running = scene.running()
    request = worker_pb2.CreateChildTasksRequest(lease_token=running.lease_token)
    request.tasks.add(agent_type=running.worker.agent_type)
    scene.call("CreateChildTasks", Ask(request, running.worker.token))
    return running


def _wait_for_a_done_child(scene: Scene) -> Ask:
    running = _with_children(scene)
    lease = worker_pb2.LeaseTasksRequest(agent_id=running.worker.agent_id, wait=Duration(seconds=10))
    [offer] = scene.call("LeaseTasks", Ask(lease, running.worker.token)).offers
    done = worker_pb2.CompleteTaskRequest(lease_token=offer.lease_token)
    done.result.string_value = "done"
    scene.call("CompleteTask", Ask(done, running.worker.token))
    return Ask(worker_pb2.WaitChildTasksRequest(lease_token=running.lease_token), running.worker.token)


def _wait(scene: Scene) -> Ask:
    running = _with_children(scene)
    request = worker_pb2.WaitChildTasksRequest(lease_token=running.lease_token, wait=Duration(seconds=60))
    return Ask(request, running.worker.token)


OF_CREATE_TASK: dict[str, Make] = {
    "TASK_NOT_FOUND: a dependency": _create(dependencies=[TaskDependency(task_id=NOTHING)]),
    "TASK_NOT_FOUND: the parent": _create(parent_task_id=NOTHING),
    "REQUEST_INVALID: no such client_key": _create(dependencies=[TaskDependency(client_key="nothing")]),
    "DEPENDENCY_CYCLE: itself": _create(client_key="a", dependencies=[TaskDependency(client_key="a")]),
    "TASK_STATE_CONFLICT: the parent has ended": lambda scene: _create(parent_task_id=scene.cancelled().task_id)(scene),
    "CHILD_LIMIT: too deep": _too_deep,
}
OF_BATCH: dict[str, Make] = {"DEPENDENCY_CYCLE": _batch_in_a_circle}
OF_RETRY: dict[str, Make] = {"DEPENDENCY_FAILED": _retry_of_a_child_of_a_cancelled_one}

TREE = Case(
    works=_tree,
    holds=lambda answer: [node.depth for node in answer.nodes] == [0, 1, 2, 1] and answer.revision > 0,
    refused=of_task(task_pb2.GetTaskTreeRequest),
    malformed=({}, "task_id"),
)
CREATE_CHILDREN = Case(
    # By the owner, whose changes are counted; agents do it in tests/clients.
    works=lambda scene: Ask(
        worker_pb2.CreateChildTasksRequest(lease_token=scene.running().lease_token, tasks=[_CHILD, _CHILD])
    ),
    holds=lambda answer: (
        [(task.state, task.depth) for task in answer.tasks] == [(TASK_STATE_QUEUED, 1)] * 2
        and answer.tasks[1].revision == answer.revision
    ),
    refused=of_lease(worker_pb2.CreateChildTasksRequest, tasks=[_CHILD]),
    malformed=({"leaseToken": "t", "tasks": [{"agentType": "a", "parentTaskId": "task_1"}]}, "tasks"),
)
WAIT_CHILDREN = Case(
    works=_wait_for_a_done_child,
    holds=lambda answer: (
        answer.ended
        and [(task.state, task.result.string_value) for task in answer.tasks] == [(TASK_STATE_SUCCEEDED, "done")]
        and answer.directive == worker_pb2.LEASE_DIRECTIVE_CONTINUE
    ),
    refused=of_lease(worker_pb2.WaitChildTasksRequest),
    malformed=({"leaseToken": "t", "wait": "61s"}, "wait"),
    lasts=_wait,
)
