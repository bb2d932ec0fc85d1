"""Configuration: where values come from, and what is said of those that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.rules.programs import install_hint
from kapell.v1.agent_pb2 import (
    ACP_PERMISSIONS_ALLOW_READS,
    ACP_SESSION_PER_AGENT,
    PROGRAM_OUTPUT_CLAUDE,
    RESTART_MODE_ALWAYS,
    RESTART_MODE_ON_FAILURE,
    RESULT_FORMAT_JSON,
    AgentLimits,
    AgentPool,
    RestartPolicy,
)
from kapell_server.config import SETTINGS, Config, ConfigError, load
from kapell_server.rpc.validation import invalid


def loaded(directory: Path, toml: str = "", env: dict[str, str] | None = None, **flags: Any) -> Config:
    (directory / "kapell.toml").write_text(toml)
    return load(flags=flags, env=env or {}, directory=directory)


def refusal(directory: Path, toml: str = "", env: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(directory, toml, env, **flags)
    return str(caught.value)


def test_defaults_listen_on_the_loopback_with_authentication(tmp_path: Path) -> None:
    config = load(flags={}, env={"XDG_DATA_HOME": str(tmp_path)}, directory=tmp_path)

    assert config.grpc_address == "127.0.0.1:50051"
    assert config.data_dir == tmp_path / "kapell"
    assert not config.no_auth
    assert set(config.origins.values()) == {"default"}


def test_flag_beats_variable_beats_file_beats_default_and_each_origin_is_known(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        '[server]\nmax_agents = 7\nmax_watches = 7\nlog_format = "json"\n',
        {"KAPELL_MAX_WATCHES": "8", "KAPELL_LOG_FORMAT": "json"},
        log_format="console",
    )

    assert (config.max_agents, config.max_watches, config.log_format) == (7, 8, "console")
    assert config.origins["max_agents"] == str(tmp_path / "kapell.toml")
    assert config.origins["max_watches"] == "KAPELL_MAX_WATCHES"
    assert config.origins["log_format"] == "--log-format"
    assert config.origins["grpc_address"] == "default"


def test_every_setting_can_be_given_by_file_variable_and_flag(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data_dir": "/srv/kapell",
        "grpc_address": "127.0.0.1:1",
        "http_address": "127.0.0.1:3",
        "otlp_usage": "metrics",
        "database_url": "postgresql://db/kapell",
        "tls_cert": "/srv/cert.pem",
        "tls_key": "/srv/key.pem",
        "tls_client_ca": "/srv/ca.pem",
        "local_address": "127.0.0.1:2",
        "no_auth": True,
        "insecure_bind": True,
        "no_templates": True,
        "log_format": "json",
        "max_watches": 5,
        "max_watches_of_one": 5,
        "max_polls_of_one": 5,
        "max_calls_at_once": 5,
        "max_calls_a_second": 5,
        "max_calls_of_connection": 5,
        "max_failed_logins": 5,
        "max_agents": 5,
        "lease_duration": 20.0,
        "heartbeat_interval": 2.0,
        "max_artifact_mib": 5,
        "max_task_artifacts_mib": 6,
        "max_artifacts_mib": 7,
        "max_artifact_age": 86400.0,
        "keep_tasks_for": 86_400.0,
        "keep_tasks": 0,
        "keep_events_for": 0.0,
        "keep_events": 5,
    }
    assert set(values) == {setting.key for setting in SETTINGS}
    paths = ("data_dir", "tls_cert", "tls_key", "tls_client_ca")
    wanted = {**values, **{key: Path(values[key]) for key in paths}}
    toml = "".join(
        f"[{table}]\n" + "".join(f"{s.key} = {as_toml(values[s.key])}\n" for s in SETTINGS if s.table == table)
        for table in ("server", "retention")
    )
    env = {setting.variable: str(values[setting.key]) for setting in SETTINGS}

    for config in (loaded(tmp_path, toml), loaded(tmp_path, "", env), loaded(tmp_path, **values)):
        assert {key: getattr(config, key) for key in values} == wanted


def as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def test_a_misspelt_key_is_refused_with_the_close_spelling(tmp_path: Path) -> None:
    assert "`grpc_adress`; did you mean `grpc_address`?" in refusal(tmp_path, '[server]\ngrpc_adress = "127.0.0.1:1"')
    assert "`sever`; did you mean `server`?" in refusal(tmp_path, "[sever]\n")
    assert "`argvs`; did you mean `argv`?" in refusal(tmp_path, '[profiles.x]\ncommand = { argvs = ["true"] }')


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[server]\nmax_agents = "many"', "server.max_agents must be a whole number, not text ('many')"),
        ("[server]\nmax_agents = 0", "server.max_agents must be from 1 to 1,000,000, not 0"),
        ("[server]\nno_auth = 1", "server.no_auth must be true or false, not a whole number (1)"),
        ('[server]\ngrpc_address = "here"', 'server.grpc_address must read "host:port"'),
        ('[server]\nlog_format = "xml"', "server.log_format must be `console` or `json`, not 'xml'"),
        ('[server]\ndatabase_url = "mysql://db"', "must begin with postgresql://"),
        ('[server]\nlease_duration = "soon"', "server.lease_duration must be a number of seconds"),
        ("[server]\nlease_duration = 5", "must be at least twice heartbeat_interval"),
        ("[retention]\nkeep_tasks = -1", "retention.keep_tasks must be from 0, which keeps all,"),
        ('[retention]\nkeep_events_for = "a while"', "retention.keep_events_for must be a number of seconds"),
        ("[retention]\nkeep_events_for = 0.5", "must be 0, which keeps for ever, or from 1 s"),
        ("[retention]\nmax_agents = 5", "retention: there is no key `max_agents`"),
        ("server = 3", "server must be a table, not a whole number (3)"),
        ("[server", "is not valid TOML"),
        ('[profiles.x]\ncommand = "ls"', "profiles.x.command must be a table, not text ('ls')"),
        ("[profiles.x]\ncommand = { argv = [] }", "profiles.x.command.argv: must contain at least 1"),
        ("[profiles.x]\ncommand = { argv = [1] }", "profiles.x.command.argv[0] must be text"),
        (
            '[profiles.x]\nslots = 300\ncommand = { argv = ["true"] }',
            "profiles.x.slots: must be greater than or equal to 0 and less than or equal to 256",
        ),
        (
            '[profiles.x]\ncommand = { argv = ["true"], result_format = "yaml" }',
            "profiles.x.command.result_format must be one of text, json, file",
        ),
        (
            '[profiles.x]\ncommand = { argv = ["true"], working_directory = "here" }',
            "profiles.x.command.working_directory",
        ),
        ('[profiles.x]\nacp = { argv = ["true"], stdin = "x" }', "there is no key `stdin`"),
        ('[profiles.x]\nacp = { argv = ["true"], session = "day" }', "session must be one of task, agent, not 'day'"),
        ('[profiles.x]\nacp = { argv = ["true"], permissions = "yes" }', "must be one of ask, allow-reads, deny"),
        ('[profiles.x]\nacp = { argv = ["true"], kill_grace = "2m" }', "profiles.x.acp.kill_grace"),
        ('[profiles.x]\nacp = { argv = ["{task}"] }', "take the placeholders"),
        ('[profiles.x]\nslots = 2\nacp = { argv = ["true"], session = "agent" }', "needs slots = 1"),
        (
            '[profiles.x]\nworkspace = "here"\ncommand = { argv = ["true"] }',
            'profiles.x.workspace must be "none" or a table such as { directory = "/srv/shop" }',
        ),
        (
            '[profiles.x]\nworkspace = { directory = "here" }\ncommand = { argv = ["true"] }',
            "profiles.x.workspace.directory: ",
        ),
        ('[profiles."a b"]\ncommand = { argv = ["true"] }', "a profile's name has 1 to 64"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path: Path, toml: str, said: str) -> None:
    text = refusal(tmp_path, toml)

    assert said in text
    assert str(tmp_path / "kapell.toml") in text or "heartbeat_interval" in text


def test_a_variable_with_a_wrong_value_is_named(tmp_path: Path) -> None:
    assert "KAPELL_NO_AUTH must be true or false" in refusal(tmp_path, env={"KAPELL_NO_AUTH": "maybe"})
    assert "KAPELL_MAX_AGENTS must be a whole number" in refusal(tmp_path, env={"KAPELL_MAX_AGENTS": "x"})


def test_other_variables_of_the_name_are_left_alone(tmp_path: Path) -> None:
    loaded(tmp_path, env={"KAPELL_ADDRESS": "127.0.0.1:1", "KAPELL_TOKEN": "t"})


def test_a_named_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*absent\.toml"):
        load(flags={}, env={"KAPELL_CONFIG": str(tmp_path / "absent.toml")}, directory=tmp_path)


def test_the_file_in_the_data_directory_is_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "kapell.toml").write_text("[server]\nmax_agents = 3\n")

    config = load(flags={"data_dir": data}, env={}, directory=tmp_path)

    assert config.max_agents == 3


def test_a_profile_becomes_a_spec(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        [profiles.lister]
        description = "Lists."
        agent_types = ["lister", "ls"]
        slots = 2
        command = { argv = ["ls", "{prompt}"], env = { A = "b" }, result_format = "json", kill_grace = "2s" }
        """,
    )

    profile = config.profiles["lister"]
    assert profile.description == "Lists."
    assert list(profile.spec.agent_types) == ["lister", "ls"]
    assert profile.spec.slots == 2
    assert list(profile.spec.command.argv) == ["ls", "{prompt}"]
    assert dict(profile.spec.command.env) == {"A": "b"}
    assert profile.spec.command.result_format == RESULT_FORMAT_JSON
    assert profile.spec.command.kill_grace.seconds == 2


def test_a_profile_may_be_of_an_acp_agent(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        [profiles.gemini.acp]
        argv = ["gemini", "--acp"]
        env_from_secret = { GEMINI_API_KEY = "gemini" }
        working_directory = "/srv"
        session = "agent"
        permissions = "allow-reads"
        mode = "plan"
        model = "pro"
        auth_method = "gemini-api-key"
        kill_grace = "2s"
        start_timeout = "3m"
        hide_thoughts = true
        """,
    )

    acp = config.profiles["gemini"].spec.acp
    assert (list(acp.argv), acp.working_directory) == (["gemini", "--acp"], "/srv")
    assert dict(acp.env_from_secret) == {"GEMINI_API_KEY": "gemini"}
    assert (acp.session, acp.permissions) == (ACP_SESSION_PER_AGENT, ACP_PERMISSIONS_ALLOW_READS)
    assert (acp.mode, acp.model, acp.auth_method) == ("plan", "pro", "gemini-api-key")
    assert (acp.kill_grace.seconds, acp.start_timeout.seconds, acp.hide_thoughts) == (2, 180, True)


def test_a_profile_names_a_workspace(tmp_path: Path) -> None:
    command = 'command = { argv = ["true"] }'
    text = f'[profiles.a]\nworkspace = "none"\n{command}\n[profiles.b]\nworkspace = {{ directory = "/srv" }}\n{command}'

    profiles = loaded(tmp_path, text).profiles

    assert not profiles["a"].spec.HasField("workspace")
    assert profiles["b"].spec.workspace.directory == "/srv"


def test_a_profile_asks_for_worktrees(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        [profiles.coder]
        command = { argv = ["true"] }
        [profiles.coder.workspace.git_worktree]
        repositories = [{ path = "/srv/shop.git", base_ref = "main" }, { name = "d", path = "/srv/docs" }]
        branch = "work/{task_id}"
        setup = { argv = ["npm", "ci"], inputs = ["package-lock.json"], timeout = "5m" }
        restart_on_retry = true
        merge = { check = ["make", "test"], check_timeout = "20m", rebase = true, on_success = true }
        """,
    )

    spec = config.profiles["coder"].spec.workspace.git_worktree
    assert [(r.name, r.path, r.base_ref) for r in spec.repositories] == [
        ("shop", "/srv/shop.git", "main"),
        ("d", "/srv/docs", ""),
    ]
    assert (spec.branch, spec.setup.timeout.seconds, list(spec.setup.inputs)) == (
        "work/{task_id}",
        300,
        ["package-lock.json"],
    )
    assert (list(spec.merge.check), spec.merge.check_timeout.seconds, spec.merge.rebase) == (
        ["make", "test"],
        1200,
        True,
    )
    assert (spec.restart_on_retry, spec.keep_uncommitted, spec.merge.on_success) == (True, False, True)


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("repositorys = []", "there is no key `repositorys`; did you mean `repositories`?"),
        ("repositories = []", "workspace.git_worktree.repositories: must contain at least 1"),
        ('repositories = [{ path = "shop" }]', "repositories[0].path"),
        ('repositories = [{ path = "/a/x" }, { path = "/b/x" }]', "each repository must have a name of its own"),
        ('repositories = [{ path = "/x", base_ref = "-f" }]', "repositories[0].base_ref"),
        ('repositories = [{ path = "/x" }]\nbranch = "mine"', "branch must have {task_id} in it"),
        ('repositories = [{ path = "/x" }]\nbranch = "{task_id}/{who}"', "branch must have {task_id} in it"),
        ('repositories = [{ path = "/x" }]\nsetup = { argv = ["true"], inputs = ["/etc/x"] }', "setup.inputs[0]"),
    ],
)
def test_a_worktree_that_cannot_be_is_named(tmp_path: Path, inside: str, said: str) -> None:
    table = f'[profiles.x]\ncommand = {{ argv = ["true"] }}\n[profiles.x.workspace.git_worktree]\n{inside}'

    assert said in refusal(tmp_path, table)


def test_a_profile_says_when_its_agents_are_started_again(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        [profiles.short]
        command = { argv = ["true"] }
        restart = "always"

        [profiles.long.command]
        argv = ["true"]

        [profiles.long.restart]
        first_pause = "500ms"
        max_restarts = 3
        """,
    )

    assert config.profiles["short"].spec.restart == RestartPolicy(mode=RESTART_MODE_ALWAYS)
    long = config.profiles["long"].spec.restart
    assert (long.mode, long.first_pause.nanos, long.max_restarts) == (RESTART_MODE_ON_FAILURE, 500_000_000, 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('restart = "sometimes"', "must be one of never, on-failure, always"),
        ("restart = { max_restart = 3 }", "did you mean `max_restarts`"),
        ('restart = { first_pause = "1ms" }', "first_pause"),
    ],
)
def test_a_restart_that_cannot_be_is_refused(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        loaded(tmp_path, f'[profiles.bad]\ncommand = {{ argv = ["true"] }}\n{line}')


def test_a_profile_may_limit_what_its_attempts_use(tmp_path: Path) -> None:
    table = (
        '{ memory = "512MiB", cpu_time = "10m", wall_time = 3600, open_files = 256, processes = 64, output = "1GB" }'
    )
    config = loaded(tmp_path, f'[profiles.small]\ncommand = {{ argv = ["true"] }}\nlimits = {table}')

    assert config.profiles["small"].spec.limits == AgentLimits(
        memory_bytes=512 << 20,
        cpu_time=Duration(seconds=600),
        wall_time=Duration(seconds=3600),
        open_files=256,
        processes=64,
        output_bytes=10**9,
    )
    with pytest.raises(ConfigError, match="memory must be a number of bytes or a text like"):
        loaded(tmp_path, '[profiles.bad]\ncommand = { argv = ["true"] }\nlimits = { memory = "much" }')


def test_a_profile_may_be_a_pool(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        [profiles.short]
        command = { argv = ["true"] }
        pool = 4

        [profiles.long]
        command = { argv = ["true"] }
        pool = { min = 1, max = 2, idle_stop = "30s" }
        """,
    )

    assert config.profiles["short"].pool == AgentPool(max_agents=4)
    assert config.profiles["long"].pool == AgentPool(min_agents=1, max_agents=2, idle_stop=Duration(seconds=30))
    with pytest.raises(ConfigError, match="min_agents must not be greater than max_agents"):
        loaded(tmp_path, '[profiles.bad]\ncommand = { argv = ["true"] }\npool = { min = 2, max = 1 }')


def test_the_shell_profile_is_built_in_and_may_be_replaced(tmp_path: Path) -> None:
    built_in = loaded(tmp_path).profiles["shell"].spec
    replaced = loaded(tmp_path, '[profiles.shell]\ncommand = { argv = ["bash"] }').profiles["shell"].spec

    assert (list(built_in.agent_types), built_in.slots) == (["shell"], 4)
    assert list(built_in.command.argv) == ["sh", "-c", "{prompt}"]
    assert list(replaced.command.argv) == ["bash"]


@pytest.mark.parametrize("name", ["claude", "codex", "gemini", "opencode"])
def test_profiles_of_coding_agents_lift_no_bound_and_take_the_prompt_by_standard_input(
    tmp_path: Path, name: str
) -> None:
    spec = loaded(tmp_path).profiles[name].spec

    assert not invalid(spec)
    assert (list(spec.agent_types), spec.command.argv[0], spec.command.stdin) == ([name], name, "{prompt}")
    assert install_hint(name)
    words = " ".join([*spec.command.argv, *spec.command.resume_argv])
    assert not [bound for bound in ("dangerous", "bypass", "yolo", "full-access", "--auto ") if bound in words]


def test_a_profile_says_how_output_is_read_and_sessions_are_continued(tmp_path: Path) -> None:
    table = '[profiles.c.command]\nargv = ["claude"]\noutput = "claude"\nresume_argv = ["claude", "{session}"]'

    command = loaded(tmp_path, table).profiles["c"].spec.command

    assert command.output == PROGRAM_OUTPUT_CLAUDE
    assert list(command.resume_argv) == ["claude", "{session}"]
    assert "plain, claude, codex" in refusal(tmp_path, table.replace('output = "claude"', 'output = "cloud"'))
    assert "{session}" in refusal(tmp_path, table.replace("{session}", "{seance}"))
    assert "argv" in refusal(tmp_path, table.replace('argv = ["claude"]', 'argv = ["{session}"]', 1))


LLM = """
[profiles.triage]
slots = 8
[profiles.triage.llm]
base_url = "https://example.com/v1"
model = "small"
api_key_secret = "model-key"
system_prompt = "Sort."
max_tokens = 200
temperature = 0.5
timeout = "2m"
schema_retries = 0
output_schema = { type = "object", required = ["n"] }
"""


def test_a_profile_asks_a_model(tmp_path: Path) -> None:
    llm = loaded(tmp_path, LLM).profiles["triage"].spec.llm

    assert (llm.base_url, llm.model, llm.api_key_secret) == ("https://example.com/v1", "small", "model-key")
    assert (llm.system_prompt, llm.max_tokens, llm.temperature, llm.timeout.seconds) == ("Sort.", 200, 0.5, 120)
    assert (llm.HasField("schema_retries"), llm.schema_retries) == (True, 0)
    assert llm.output_schema["required"][0] == "n"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v1",
        "http://" + "localhost.example.com/v1",
        "http://127.0.0.1@example.com/v1",
        "https://" + "user:password@example.com/v1",
        "https://example.com/v1?key=1",
        "ftp://example.com",
        "",
    ],
)
def test_a_key_goes_to_https_or_loopback_only(tmp_path: Path, url: str) -> None:
    assert "base_url must be https" in refusal(tmp_path, LLM.replace("https://example.com/v1", url))


def test_a_profile_runs_handlers_in_python(tmp_path: Path) -> None:
    table = '[profiles.w.python]\napp = "a.b:worker"\npath = "/srv"\nsecrets = { key = "s" }'

    python = loaded(tmp_path, table).profiles["w"].spec.python

    assert (python.app, python.path, dict(python.secrets)) == ("a.b:worker", "/srv", {"key": "s"})
    assert "app" in refusal(tmp_path, table.replace("a.b:worker", "a.b"))


def test_a_profile_has_one_runtime(tmp_path: Path) -> None:
    assert "has no command, acp, llm, python" in refusal(tmp_path, "[profiles.x]\nslots = 1")
    both = LLM + '[profiles.triage.python]\napp = "a:b"'
    assert "has llm and python" in refusal(tmp_path, both)


def test_an_age_may_be_given_in_days(tmp_path: Path) -> None:
    assert loaded(tmp_path, '[server]\nmax_artifact_age = "30d"').max_artifact_age == 30 * 86_400
    assert loaded(tmp_path, env={"KAPELL_MAX_ARTIFACT_AGE": "12h"}).max_artifact_age == 12 * 3_600
    assert "36500 days" in refusal(tmp_path, "[server]\nmax_artifact_age = -1")
    assert "max_artifact_age" in refusal(tmp_path, '[server]\nmax_artifact_age = "long"')
