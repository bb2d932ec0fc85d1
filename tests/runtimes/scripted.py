"""A program that plays a script, as a plain program or as an agent of the Agent Client Protocol.

Run as: scripted.py FACE SCRIPT, with FACE "plain" or "acp" and SCRIPT a JSON file:

    {"steps": [["say", "hello"], ...], "then": [...], "turn": {...}, "initialize": {...}, "new": {...}}

`initialize` and `new` take the place of what an ACP agent answers to these calls; a string is a fault of
that kind. `then` is played for further prompts, `turn` is told at the end of each. It speaks the protocol by
hand, not by the library that it is to test, and knows nothing of Kapell.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any


class Plain:
    """Says what it has to say on its standard streams."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def progress(self, percent: int, text: str) -> None:
        print(f"::progress {percent}% {text}", flush=True)

    def usage(self, dollars: float) -> None:
        with open(os.environ["KAPELL_RESULT_FILE"], "w") as file:  # noqa: PTH123
            json.dump({"kapell_usage": [{"cost": dollars, "record_id": "one"}]}, file)

    def flood(self, size: int) -> None:
        line = b"x" * 1023 + b"\n"
        for _ in range(size // len(line)):
            sys.stdout.buffer.write(line)
        sys.stdout.flush()

    def fail(self) -> None:
        print("it went wrong", file=sys.stderr, flush=True)
        sys.exit(3)

    def play(self, script: dict[str, Any]) -> None:
        for name, *arguments in script["steps"]:
            step(self, name, arguments)


class Acp:
    """Speaks the protocol, version 1."""

    def __init__(self) -> None:
        self._next_id = 0
        self._session = ""
        self._cancelled = False
        self._prompts = 0

    # -- what a script may do --------------------------------------------------------------

    def say(self, text: str) -> None:
        self.update({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text + "\n"}})

    def chunk(self, text: str) -> None:
        self.update({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}})

    def think(self, text: str) -> None:
        self.update({"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": text}})

    def progress(self, percent: int, text: str) -> None:
        done = percent // 10
        states = ["completed"] * done + ["in_progress"] + ["pending"] * (9 - done)
        entries = [
            {"content": text if state == "in_progress" else f"step {n}", "priority": "medium", "status": state}
            for n, state in enumerate(states)
        ]
        self.update({"sessionUpdate": "plan", "entries": entries})

    def usage(self, dollars: float) -> None:
        cost = {"amount": dollars, "currency": "USD"}
        self.update({"sessionUpdate": "usage_update", "used": 10, "size": 100, "cost": cost})

    def flood(self, size: int) -> None:
        text = ("x" * 1023 + "\n") * 8
        for _ in range(size // len(text)):
            self.chunk(text)

    def fail(self) -> None:
        print("it went wrong", file=sys.stderr, flush=True)
        sys.exit(3)

    def update(self, update: dict[str, Any]) -> None:
        self.send({"method": "session/update", "params": {"sessionId": self._session, "update": update}})

    def call(self, method: str, params: dict[str, Any]) -> None:
        """Asks for something, and says what the answer was."""
        self.say(json.dumps(self.ask(method, params), sort_keys=True))

    def call_quietly(self, method: str, params: dict[str, Any]) -> None:
        """Asks for something, and does not wait for the answer."""
        self._next_id += 1
        self.send({"id": f"q{self._next_id}", "method": method, "params": {"sessionId": self._session, **params}})

    def await_cancel(self) -> None:
        """Works until it is cancelled."""
        while not self._cancelled:
            self.receive()

    def answer(self, answer: dict[str, Any]) -> None:
        """Ends the turn: {"result": ...} or {"error": ...}."""
        self.send({"id": self._prompt_id, **answer})
        self._prompt_id = None

    # -- the protocol ----------------------------------------------------------------------

    def play(self, script: dict[str, Any]) -> None:
        self._script = script
        self._prompt_id: Any = None
        while True:
            self.receive()

    def send(self, message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        self._next_id += 1
        mine = self._next_id
        self.send({"id": mine, "method": method, "params": {"sessionId": self._session, **params}})
        while True:
            message = self.receive()
            if message is not None and message.get("id") == mine:
                return message.get("result", message.get("error"))

    def receive(self) -> dict[str, Any] | None:
        """Takes one message; gives back an answer."""
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        message: dict[str, Any] = json.loads(line)
        match message.get("method"):
            case None:
                return message
            case "session/cancel":
                self._cancelled = True
            case "session/prompt":
                self.prompt(message)
            case method:
                self.reply(message, method)
        return None

    def prompt(self, message: dict[str, Any]) -> None:
        self._prompt_id = message["id"]
        self._prompt = message["params"]["prompt"][0]["text"]
        steps = self._script["steps"] if not self._prompts else self._script.get("then", [])
        self._prompts += 1
        for name, *arguments in steps:
            step(self, name, arguments)
        if self._prompt_id is not None:
            stopped = {"stopReason": "cancelled" if self._cancelled else "end_turn"}
            self.answer({"result": {**stopped, **self._script.get("turn", {})}})

    def reply(self, message: dict[str, Any], method: str) -> None:
        params = message["params"]
        known = {
            "initialize": {"protocolVersion": 1, "agentInfo": {"name": "scripted", "version": "1"}},
            "session/new": {"sessionId": f"session-{os.getpid()}"},
            "session/load": {},
            "session/resume": {},
            "session/set_mode": {},
            "session/set_config_option": {"configOptions": []},
            "authenticate": {},
        }
        said = self._script.get(method, known.get(method))
        if said == "silence":
            return
        if said == "exit":
            sys.exit(5)
        if method == "session/new" and "after authenticate" in self._script and not self._script.get("signed in"):
            said = {"error": {"code": -32000, "message": "Authentication required"}}
        if method == "authenticate":
            self._script["signed in"] = True
        note(self._script, f"{method} {json.dumps(params, sort_keys=True)}")
        if isinstance(said, dict) and "error" in said:
            self.send({"id": message["id"], **said})
            return
        assert isinstance(said, dict), method
        self._session = said.get("sessionId") or params.get("sessionId") or self._session
        for update in self._script.get("history", []) if method == "session/load" else []:
            self.update(update)
        self.send({"id": message["id"], "result": said})

    def said_prompt(self) -> None:
        """Says what it was asked."""
        self.say(self._prompt)


def note(script: dict[str, Any], text: str) -> None:
    """Writes a line for the test to read."""
    if "notes" in script:
        with open(script["notes"], "a") as file:  # noqa: PTH123
            file.write(text + "\n")


def step(face: Any, name: str, arguments: list[Any]) -> None:
    """What every face can do; the rest is its own."""
    match name, arguments:
        case "environment", [variable]:
            face.say(os.environ.get(variable, "(not set)"))
        case "process_id", []:
            face.say(str(os.getpid()))
        case "stderr", [text]:
            print(text, file=sys.stderr, flush=True)
        case "raw", [text]:
            sys.stdout.write(text)
            sys.stdout.flush()
        case "raw_flood", [size]:
            chunk = "y" * 65536
            for _ in range(size // len(chunk)):
                sys.stdout.write(chunk)
            sys.stdout.flush()
        case "read_pipe", [file]:
            with open(file) as opened:  # noqa: PTH123
                opened.read()
        case "crash", []:
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit", [code]:
            sys.exit(code)
        case "hang", []:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            face.say("up")
            while True:
                signal.pause()
        case "leave", []:
            # One child in the program's session, one in a session of its own.
            for apart in (False, True):
                child = subprocess.Popen(["sleep", "300"], start_new_session=apart, stdin=subprocess.DEVNULL)
                face.say(str(child.pid))
        case "artifact", [file, text]:
            with open(os.path.join(os.environ["KAPELL_ARTIFACTS_DIR"], file), "w") as opened:  # noqa: PTH118, PTH123
                opened.write(text)
        case _:
            getattr(face, name)(*arguments)


if __name__ == "__main__":
    with open(sys.argv[2]) as file:  # noqa: PTH123
        told = json.load(file)
    {"plain": Plain, "acp": Acp}[sys.argv[1]]().play(told)  # type: ignore[abstract]
