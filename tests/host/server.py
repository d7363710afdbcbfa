# SPDX-License-Identifier: Apache-2.0
"""Starts a real ComfyUI server with the pack in custom_nodes; drives it over HTTP and websocket.

with ComfyServer(folder) as server:
    entry = server.run(prompt)
    picture = server.view(server.images(entry)[0])
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from tests.host.inprocess import ROOT, comfy_path, make_folders

PACK_FOLDER = "graft-finetune"
NOT_SHIPPED = shutil.ignore_patterns(
    ".*", "__pycache__", "out", "build", "*.egg-info", "tests", "benchmarks", "tools"
)


class ServerError(RuntimeError):
    """The server did not start, died, or answered with an HTTP error."""


class PromptRejected(ServerError):
    """The prompt did not validate; `node_errors` is the server's own report."""

    def __init__(self, message: str, node_errors: dict[str, Any]):
        super().__init__(message)
        self.node_errors = node_errors


class ExecutionError(ServerError):
    """A node raised; `entry` is the history entry, `details` the message of the failed node."""

    def __init__(self, message: str, entry: dict[str, Any], details: dict[str, Any]):
        super().__init__(message)
        self.entry = entry
        self.details = details


class Interrupted(ExecutionError):
    """The prompt was interrupted."""


def free_port() -> int:
    """Return a TCP port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def install_pack(custom_nodes: Path, copy: bool = False, pack: Path = ROOT) -> Path:
    """Put the pack into ``custom_nodes``: a link, or a copy of what ships; return where it is."""
    target = custom_nodes / PACK_FOLDER
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    if not copy:
        try:
            target.symlink_to(pack, target_is_directory=True)
            return target
        except OSError:
            pass  # Windows without the right to make links
    shutil.copytree(pack, target, ignore=NOT_SHIPPED)
    return target


def known_flags(host: Path) -> set[str]:
    """Return the command-line flags that this ComfyUI knows."""
    text = (host / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    return set(re.findall(r'add_argument\("(--[a-z0-9-]+)"', text))


class ComfyServer:
    """A ComfyUI server process with its own base directory.

    Args:
        base: base directory (input/, output/, ... are made in it); a temporary one by default.
        port: TCP port; a free one by default.
        device: "cpu", or "auto" for the GPU where there is one.
        copy_pack: copy what ships instead of linking the repository.
        plugins: further folders or modules to link into custom_nodes.
        arguments: further arguments of main.py.
        environment: further environment variables.
        timeout_s: how long the start may take.
    """

    def __init__(
        self,
        base: str | Path | None = None,
        *,
        port: int | None = None,
        device: str = "cpu",
        copy_pack: bool = False,
        plugins: tuple[Path, ...] = (),
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        timeout_s: float = 240.0,
    ):
        self._temporary = base is None
        self.base = Path(base or tempfile.mkdtemp(prefix="graft-server-")).resolve()
        self.port = port
        self.device = device
        self.copy_pack = copy_pack
        self.plugins = plugins
        self.arguments = arguments
        self.environment = environment or {}
        self.timeout_s = timeout_s
        self.client_id = uuid.uuid4().hex
        self.process: subprocess.Popen | None = None
        self.log_path = self.base / "server.log"
        self._listener: _Listener | None = None
        self._fixed_port = port is not None

    # Life cycle

    def __enter__(self) -> "ComfyServer":
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> "ComfyServer":
        """Start the server and wait until it answers."""
        make_folders(self.base)
        install_pack(self.base / "custom_nodes", self.copy_pack)
        for plugin in self.plugins:
            self._link_plugin(Path(plugin))
        for attempt in range(3):
            self._launch()
            try:
                self._wait_until_ready()
                break
            except ServerError:
                taken = "address already in use" in self.log().lower()
                if self._fixed_port or not taken or attempt == 2:
                    raise
        self._listener = _Listener(self)
        self._listener.start()
        return self

    def stop(self) -> None:
        """Stop the server; never raises. A temporary base directory is removed."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=15)
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def restart(self) -> "ComfyServer":
        """Stop and start again with the same base directory, as a user would."""
        keep, self._temporary = self._temporary, False
        self.stop()
        self._temporary = keep
        return self.start()

    def _link_plugin(self, plugin: Path) -> None:
        target = self.base / "custom_nodes" / plugin.name
        if target.exists() or target.is_symlink():
            return
        try:
            target.symlink_to(plugin.resolve(), target_is_directory=plugin.is_dir())
        except OSError:
            (shutil.copytree if plugin.is_dir() else shutil.copy)(plugin, target)

    def command(self) -> list[str]:
        """Return the command line of the server."""
        host = comfy_path()
        flags = known_flags(host)
        options: list[tuple[str, ...]] = [
            ("--listen", "127.0.0.1"),
            ("--port", str(self.port)),
            ("--base-directory", str(self.base)),
            ("--database-url", "sqlite:///:memory:"),
            ("--disable-api-nodes",),
            ("--disable-auto-launch",),
        ]
        if self.device == "cpu" or not _has_cuda():
            options.append(("--cpu",))
        known = [part for option in options if option[0] in flags for part in option]
        return [sys.executable, "-u", str(host / "main.py"), *known, *self.arguments]

    def _launch(self) -> None:
        if not self._fixed_port:
            self.port = free_port()
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "NO_PROXY": "127.0.0.1"}
        environment.pop("PYTHONPATH", None)
        environment.update(self.environment)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=comfy_path(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.timeout_s
        while True:
            if not self.is_alive():
                raise ServerError(f"the server stopped while starting:\n{self.log_tail()}")
            with contextlib.suppress(OSError, ValueError):
                self.get("/system_stats", timeout_s=5)
                return
            if time.monotonic() > deadline:
                raise ServerError(f"no answer after {self.timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(0.2)

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self.process is not None and self.process.poll() is None

    # Folders, log, HTTP

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def input(self) -> Path:
        """The server's input folder."""
        return self.base / "input"

    @property
    def output(self) -> Path:
        """The server's output folder."""
        return self.base / "output"

    def log(self) -> str:
        """Return all that the server printed so far."""
        if not self.log_path.is_file():
            return ""
        return self.log_path.read_bytes().decode("utf-8", "replace")

    def log_tail(self, lines: int = 60) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log().splitlines()[-lines:])

    def request(
        self, path: str, body: Any = None, *, method: str | None = None, timeout_s: float = 60
    ) -> tuple[int, bytes]:
        """Send one request (``body`` as JSON); return the status and the body of any answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get_bytes(self, path: str, timeout_s: float = 60) -> bytes:
        """GET ``path``; raises ServerError unless the answer is 2xx."""
        status, body = self.request(path, timeout_s=timeout_s)
        if status >= 300:
            raise ServerError(f"GET {path}: HTTP {status}: {body[:500]!r}")
        return body

    def get(self, path: str, timeout_s: float = 60) -> Any:
        """GET ``path`` and return its JSON."""
        return json.loads(self.get_bytes(path, timeout_s))

    def post(self, path: str, body: Any = None) -> Any:
        """POST ``body`` as JSON; return the JSON of the answer, None when it is empty."""
        status, answer = self.request(path, {} if body is None else body, method="POST")
        if status >= 300:
            raise ServerError(f"POST {path}: HTTP {status}: {answer[:500]!r}")
        return json.loads(answer) if answer.strip() else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Return the schemas of all nodes by id, or of one."""
        if node is None:
            return self.get("/object_info", timeout_s=180)
        return self.get(f"/object_info/{node}")[node]

    def put_input(self, source: str | Path, name: str | None = None) -> Path:
        """Copy a file or a folder into the input folder; return its path there."""
        source = Path(source)
        target = self.input / (name or source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
        return target

    # Prompts

    def queue(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None) -> str:
        """Queue an API prompt; return its id. ``workflow`` is what the host embeds in files."""
        body: dict[str, Any] = {"prompt": prompt, "client_id": self.client_id}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        status, raw = self.request("/prompt", body)
        answer = json.loads(raw) if raw.strip() else {}
        if status >= 300:
            raise PromptRejected(_rejection(answer, status), answer.get("node_errors") or {})
        if answer.get("node_errors"):  # some outputs are valid, others are dropped silently
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            raise PromptRejected(_rejection(answer, status), answer["node_errors"])
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout_s: float = 240, check: bool = True) -> dict[str, Any]:
        """Wait for a prompt's end; return its history entry.

        Raises:
            Interrupted: it was interrupted (unless ``check`` is false).
            ExecutionError: a node raised (unless ``check`` is false).
            ServerError: the server died, or it takes longer than ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if not self.is_alive():
                raise ServerError(f"the server died:\n{self.log_tail()}")
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                break
            if time.monotonic() > deadline:
                raise ServerError(f"not done after {timeout_s:g} s:\n{self.log_tail(30)}")
            time.sleep(0.05)
        self._settle(prompt_id)
        if check:
            _raise_for(entry)
        return entry

    def _settle(self, prompt_id: str, timeout_s: float = 5) -> None:
        """Wait for the last message of a prompt: the history can be ahead of the websocket."""
        ends = ("execution_success", "execution_error", "execution_interrupted")
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if any(event["type"] in ends for event in self.events_of(prompt_id)):
                return
            time.sleep(0.02)

    def run(
        self,
        prompt: dict[str, Any],
        timeout_s: float = 240,
        workflow: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Queue a prompt and wait for it."""
        return self.wait(self.queue(prompt, workflow), timeout_s)

    def interrupt(self) -> None:
        """Interrupt the prompt that runs, as the button in the browser does."""
        self.post("/interrupt")

    @staticmethod
    def images(entry: dict[str, Any], node: str | None = None) -> list[dict[str, str]]:
        """Return the references of all images of a history entry, of one node if given."""
        outputs = entry["outputs"]
        chosen = outputs.values() if node is None else [outputs.get(str(node), {})]
        return [image for output in chosen for image in output.get("images", [])]

    def view(self, reference: dict[str, str]) -> bytes:
        """Return the bytes of an image reference ({filename, subfolder, type})."""
        keys = ("filename", "subfolder", "type")
        query = {key: reference[key] for key in keys if key in reference}
        return self.get_bytes("/view?" + urllib.parse.urlencode(query))

    # Events

    @property
    def events(self) -> list[dict[str, Any]]:
        """All websocket messages so far: {"time", "type", "data"}; the type may be "binary"."""
        return list(self._listener.messages) if self._listener else []

    def events_of(self, prompt_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the messages of one prompt, of one type if given."""
        return [
            event
            for event in self.events
            if kind in (None, event["type"])
            and isinstance(event["data"], dict)
            and event["data"].get("prompt_id") == prompt_id
        ]

    def wait_event(self, matches: Any, timeout_s: float = 120) -> dict[str, Any]:
        """Wait for the first message, past ones included, for which ``matches(event)`` is true."""
        deadline, seen = time.monotonic() + timeout_s, 0
        while True:
            events = self.events
            for event in events[seen:]:
                if matches(event):
                    return event
            seen = len(events)
            if not self.is_alive():
                raise ServerError(f"the server died:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"no such event in {timeout_s:g} s:\n{self.log_tail(30)}")
            time.sleep(0.02)


class _Listener(threading.Thread):
    """Collects the websocket messages of one server in the background; reconnects."""

    def __init__(self, server: ComfyServer):
        super().__init__(name="comfy-events", daemon=True)
        self.server = server
        self.messages: list[dict[str, Any]] = []
        self.connected = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        super().start()
        if not self.connected.wait(30):
            raise ServerError("the websocket does not open")

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=5)

    def run(self) -> None:
        asyncio.run(self._listen())

    async def _listen(self) -> None:
        import aiohttp  # the host's own requirement

        url = f"{self.server.url.replace('http', 'ws', 1)}/ws?clientId={self.server.client_id}"
        async with aiohttp.ClientSession() as session:
            while not self._stopped.is_set():
                try:
                    async with session.ws_connect(url, max_msg_size=0) as socket_:
                        self.connected.set()
                        await self._receive(socket_)
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(0.2)

    async def _receive(self, socket_: Any) -> None:
        import aiohttp

        while not self._stopped.is_set():
            try:
                message = await socket_.receive(timeout=0.25)
            except (asyncio.TimeoutError, TimeoutError):  # noqa: UP041 (two classes on Python 3.10)
                continue
            if message.type == aiohttp.WSMsgType.TEXT:
                self.messages.append({"time": time.time(), **json.loads(message.data)})
            elif message.type == aiohttp.WSMsgType.BINARY:
                data = {"event": int.from_bytes(message.data[:4], "big"), "bytes": message.data[4:]}
                self.messages.append({"time": time.time(), "type": "binary", "data": data})
            else:
                return


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _rejection(answer: dict[str, Any], status: int) -> str:
    error = answer.get("error") or {}
    head = error.get("message", f"HTTP {status}") if isinstance(error, dict) else str(error)
    lines = [f"the prompt was rejected: {head} {_details(error)}".rstrip()]
    for node, report in (answer.get("node_errors") or {}).items():
        for problem in report["errors"]:
            text = f"{problem['message']}: {problem['details']}"
            lines.append(f"  node {node} ({report['class_type']}): {text}")
    return "\n".join(lines)


def _details(error: Any) -> str:
    return str(error.get("details", "")) if isinstance(error, dict) else ""


def _raise_for(entry: dict[str, Any]) -> None:
    status = entry.get("status") or {}
    for kind, details in status.get("messages", []):
        if kind == "execution_interrupted":
            raise Interrupted("the prompt was interrupted", entry, details)
        if kind == "execution_error":
            where = f"{details.get('node_type')} (node {details.get('node_id')})"
            what = f"{details.get('exception_type')}: {details.get('exception_message')}".rstrip()
            trace = "".join(details.get("traceback") or [])
            raise ExecutionError(f"{where}: {what}\n{trace}", entry, details)
    if status.get("status_str", "success") != "success":
        raise ExecutionError(f"the prompt failed: {status}", entry, {})


def serve(port: int, base: Path, device: str) -> int:
    """Run a server for a person until Ctrl-C, with the example pictures in its input folder."""
    server = ComfyServer(base, port=port, device=device)
    make_folders(server.base)
    for number in (signal.SIGINT, signal.SIGTERM):  # a killed `make serve` leaves no server behind
        signal.signal(number, signal.default_int_handler)
    for source in sorted((ROOT / "assets").glob("*/")):
        server.put_input(source)
    print("starting ComfyUI (a minute at most) ...", flush=True)
    try:
        with server:
            print(f"ComfyUI with Graft: {server.url}", flush=True)
            print(f"files: {server.base}   log: {server.log_path}", flush=True)
            print("templates: Workflow > Browse Templates > graft-finetune", flush=True)
            print("Ctrl-C stops it", flush=True)
            server.process.wait()  # type: ignore[union-attr]
            print(server.log_tail())
    except KeyboardInterrupt:
        print("stopped")
        return 0
    except ServerError as error:
        print(error)
    return 1


def main() -> int:
    """Command line of `make serve`."""
    parser = argparse.ArgumentParser(description=serve.__doc__)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--base", type=Path, default=ROOT / "out" / "serve")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    options = parser.parse_args()
    return serve(options.port, options.base, options.device)


if __name__ == "__main__":
    sys.exit(main())
