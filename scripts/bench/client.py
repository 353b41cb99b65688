"""The Rust client: what it costs beside curl and beside a bare socket, and what it takes to
build it without the server."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time

TARGET = "/v1/credentials/bench/key0"
CREDENTIAL = "bench/key0"
# What the HTTP library has to keep of the throughput of a client without one.
LIBRARY_KEEPS = 0.8


def measure(bench):
    with bench.service("client") as (vault, _):
        bench.store(vault, 1)
        for threads in (1, 16):
            through = {"client": [], "by hand": [], "bare socket": [], "curl": []}
            for _ in bench.rounds():
                through["client"].append(drive(bench, vault, threads))
                through["by hand"].append(drive(bench, vault, threads, "--by-hand"))
                through["bare socket"].append(drive(bench, vault, threads, "--raw"))
                through["curl"].append(curl(bench, vault, threads))
            at = f"{threads} thread{'s' if threads > 1 else ''}"
            bench.compare(f"client get, {at}, to one by hand", through["client"],
                          through["by hand"], target=LIBRARY_KEEPS)
            bench.compare(f"client get, {at}, to a bare socket", through["client"],
                          through["bare socket"])
            bench.compare(f"client get, {at}, to one curl", through["client"], through["curl"])
        for threads in (1, 16):
            fresh, raw = [], []
            for _ in bench.rounds():
                fresh.append(drive(bench, vault, threads, "--fresh"))
                raw.append(drive(bench, vault, threads, "--fresh", "--raw"))
            bench.compare(f"a client and a connection per get, {threads} at once", fresh, raw)
    build(bench)


def drive(bench, socket, threads, *switches):
    command = [bench.built["bench-client"], "--socket", socket, "--threads", threads,
               "--seconds", bench.arguments.seconds, *switches, CREDENTIAL]
    return json.loads(output(command))["rate"]


def curl(bench, socket, threads):
    """One curl that makes many requests over as many kept connections. The service ignores
    a query, so that each has an address of its own."""
    if shutil.which("curl") is None:
        raise FileNotFoundError("curl is missing")
    number = int(4000 * bench.arguments.seconds)
    command = ["curl", "--silent", "--fail", "--unix-socket", socket, "--output", os.devnull]
    if threads > 1:
        command += ["--parallel", "--parallel-immediate", "--parallel-max", threads]
    command += [f"http://localhost{TARGET}?[1-{number}]", "--write-out", "%{http_code}\\n"]
    began = time.perf_counter()
    answered = output(command).split()
    seconds = time.perf_counter() - began
    if answered != ["200"] * number:
        raise ValueError(f"curl was not answered with 200 {number} times")
    return number / seconds


def build(bench):
    """From nothing, without the network: the client alone against the whole of it."""
    seconds, crates = {}, {}
    for what, features in (("client", ["--no-default-features", "--features", "client"]), ("all", [])):
        tree = output(["cargo", "tree", "--edges", "normal", "--prefix", "none", *features])
        names = {re.sub(r" \(.*", "", line) for line in tree.splitlines() if line}
        crates[what] = len(names) - 1
        with tempfile.TemporaryDirectory(dir=bench.directory) as directory:
            began = time.perf_counter()
            output(["cargo", "build", "--offline", "--lib", "--target-dir", directory, *features])
            seconds[what] = time.perf_counter() - began
    bench.row("dependencies of the client alone, and of all", f"{crates['client']}", f"{crates['all']}",
              f"{crates['client'] / crates['all']:.2f}")
    bench.row("a debug build from nothing, the same", f"{seconds['client']:.0f} s",
              f"{seconds['all']:.0f} s", f"{seconds['client'] / seconds['all']:.2f}")


def output(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          timeout=300, check=False, cwd=os.path.dirname(os.path.abspath(__file__)))
    if done.returncode != 0:
        raise OSError(f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout
