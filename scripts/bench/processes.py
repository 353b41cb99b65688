"""Programs that are measured, or measured against: started, waited for, and ended."""

import contextlib
import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import time


class CannotRun(Exception):
    """Something that a measurement needs is missing or failed; says what to do."""


@contextlib.contextmanager
def running(command, log, **options):
    """A process that ends with the block: SIGTERM, then SIGKILL."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, **options
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition, what, process, log, seconds=20):
    """Polls until the condition holds; an end of the process or of the time is an error."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            said = pathlib.Path(log).read_text(errors="replace")[-2000:]
            raise CannotRun(f"{what} did not come up:\n{said}")
        time.sleep(0.001)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, for what is not measured by its rate."""

    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def fetch(path, target):
    connection = UnixConnection(path)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def answers(path, target):
    """Whether the socket answers 200. An attempt costs little: this polls a start."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            stream.connect(str(path))
            stream.sendall(
                f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            return stream.recv(4096).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def nginx():
    """The program, and the line of its configuration that says as whom it runs."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    # Workers give up root for a user that could not open the directory.
    return program, "user root;" if os.geteuid() == 0 else ""
