"""Starts the measured programs, waits for them, and ends them."""

import contextlib
import http.client
import os
import pathlib
import socket
import subprocess
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TARGET_DIR = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve()


class CannotRun(Exception):
    """A program is missing or failed; the message says what to do."""


@contextlib.contextmanager
def running(command, log, **options):
    """A process that ends with the block: by SIGTERM, then SIGKILL."""
    with open(log, "ab") as output:
        options = {"stdout": output, "stderr": output, **options}
        process = subprocess.Popen([str(part) for part in command], **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition, what, process, log, seconds=30):
    """Polls until the condition holds. Fails when the process or the time ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            said = pathlib.Path(log).read_text(errors="replace")[-2000:]
            raise CannotRun(f"{what} did not start:\n{said}")
        time.sleep(0.0005)


def output(command, **options):
    """The standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          check=False, **{"timeout": 300, **options})
    if done.returncode != 0:
        raise CannotRun(f"{command[0]}: {done.stderr.strip()[-1000:]}")
    return done.stdout


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket, or over TCP when the address is HOST:PORT."""

    def __init__(self, address):
        address = str(address)
        self.path = address if address.startswith("/") else None
        super().__init__("localhost" if self.path else address, timeout=60)

    def connect(self):
        if self.path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, target, body=None, headers=()):
        """The status and body of the answer."""
        headers = {"Content-Type": "application/json", **dict(headers)}
        self.request(method, target, body, headers)
        response = self.getresponse()
        return response.status, response.read()


def answers(address, target):
    """Whether the address answers 200."""
    connection = Connection(address)
    try:
        return connection.ask("GET", target)[0] == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def resident(process, field="VmRSS"):
    """Resident memory in MiB; VmHWM is its peak (proc_pid_status(5))."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def environment(**more):
    """This process's environment without settings of the service or of Vault."""
    ours = ("INTENTFRAME_", "IF_VAULT_", "VAULT_", "BAO_", "RUST_LOG")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | more
