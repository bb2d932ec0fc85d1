"""Agents of a profile that is given another directory: who may do that, and where to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kapell.v1 import agent_pb2
from kapell.v1.common_pb2 import SCOPE_SPAWN, SCOPE_SPAWN_INLINE

from tests.rpc.scene import Ask, Scene
from tests.rpc.test_access import token
from tests.support.server_process import ServerProcess

CONFIG = """
[profiles.open]
directories = ["{place}/allowed"]
command = {{ argv = ["true"], env = {{ KEY = "value" }} }}

[profiles.settled]
directories = ["{place}"]
workspace = {{ directory = "{place}" }}
command = {{ argv = ["true"] }}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that may be chosen, another, and a link from the one into the other."""
    place = tmp_path_factory.mktemp("place")
    (place / "allowed" / "shop").mkdir(parents=True)
    (place / "allowed-not").mkdir()
    (place / "allowed" / "way-out").symlink_to(place / "allowed-not")
    (place / "way-in").symlink_to(place / "allowed")
    return place


@pytest.fixture(scope="module")
def scene(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    config = place / "kapell.toml"
    config.write_text(CONFIG.format(place=place))
    data = tmp_path_factory.mktemp("elsewhere") / "data"
    with ServerProcess(data, arguments=("--config", str(config))) as server:
        scene = Scene(server)
        yield scene
        scene.close()


def spawn(profile: str, directory: Path | str) -> agent_pb2.SpawnAgentRequest:
    return agent_pb2.SpawnAgentRequest(profile=profile, working_directory=str(directory))


@pytest.mark.parametrize("chosen", ["allowed", "allowed/shop", "way-in/shop", "allowed-not/../allowed"])
def test_below_the_directories_of_a_profile_spawn_is_enough(scene: Scene, place: Path, chosen: str) -> None:
    caller = token(scene, SCOPE_SPAWN).secret

    agent = scene.call("SpawnAgent", Ask(spawn("open", place / chosen), caller)).agent

    assert agent.spec.command.working_directory == str((place / chosen).resolve())
    assert (agent.profile, agent.spec.command.env["KEY"]) == ("open", "[hidden]")


@pytest.mark.parametrize(
    ("profile", "chosen"),
    [("open", "allowed-not"), ("open", "allowed/../allowed-not"), ("open", "allowed/way-out"), ("shell", "allowed")],
)
def test_elsewhere_takes_spawn_inline(scene: Scene, place: Path, profile: str, chosen: str) -> None:
    request = spawn(profile, place / chosen)

    found = scene.refusal("SpawnAgent", Ask(request, token(scene, SCOPE_SPAWN).secret))
    both = token(scene, SCOPE_SPAWN, SCOPE_SPAWN_INLINE).secret
    agent = scene.call("SpawnAgent", Ask(request, both)).agent

    assert found.reasons == ("SCOPE_MISSING",)
    assert found.metadata == {"scope": "spawn_inline", "profile": profile}
    assert agent.spec.command.working_directory == str((place / chosen).resolve())


def test_what_has_no_directory_to_change_is_refused(scene: Scene, place: Path) -> None:
    own = agent_pb2.AgentSpec(agent_types=["a"], command=agent_pb2.CommandRuntime(argv=["true"]))
    refused = {
        "workspace": spawn("settled", place / "allowed"),
        "goes with a profile": agent_pb2.SpawnAgentRequest(spec=own, working_directory=str(place)),
        "working_directory": spawn("open", "relative"),
    }

    for words, request in refused.items():
        found = scene.refusal("SpawnAgent", Ask(request))
        assert found.reasons == ("REQUEST_INVALID",)
        assert words in str(found)
