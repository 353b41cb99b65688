"""What `exec` costs: its start against that of a bare command, and what --mask lets through.

Used by ./run.
"""

import json
import os
import statistics
import subprocess
import time

MANY = 200
FEW = 20
STARTS = 40
TEXT_BYTES = 512 * 1024 * 1024
CHUNK = 256 * 1024


def seconds_of(command, environment):
    """From the start of a process to its end."""
    began = time.perf_counter()
    # Closing every descriptor it might have inherited would be part of the time.
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, env=environment, close_fds=False, check=False
    )
    taken = time.perf_counter() - began
    if done.returncode != 0:
        raise OSError(f"{command[0]} ended with {done.returncode}")
    return taken


def rate_of(command, environment):
    """How fast a command's output can be read, in MB/s."""
    buffer = bytearray(CHUNK)
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, bufsize=0) as process:
        total = 0
        while count := process.stdout.readinto(buffer):
            total += count
    taken = time.perf_counter() - began
    if process.returncode != 0 or total != TEXT_BYTES:
        raise OSError(f"{total} bytes came of {TEXT_BYTES}, and the exit code {process.returncode}")
    return total / taken / 1e6


def measure(bench):
    with bench.service("exec") as (vault, _):
        for namespace, number in (("few", FEW), ("rest", MANY - FEW)):
            bench.drive(
                vault,
                f"/v1/credentials/{namespace}/key{{n}}",
                16,
                method="PUT",
                body=json.dumps({
                    "value": "sk-proj-0123456789abcdefghij-{n}",
                    "delivery_mode": "runtime_env",
                    "env_name": f"{namespace.upper()}_{{n}}",
                }),
                keys=number,
                requests=number,
            )
        environment = {"PATH": os.environ["PATH"], "INTENTFRAME_VAULT_SOCKET": str(vault)}
        exec_ = [str(bench.vault), "exec"]
        starts(bench, exec_, environment)
        throughput(bench, exec_, environment)


def starts(bench, exec_, environment):
    choices = {0: ["--namespace", "none"], FEW: ["--namespace", "few"], MANY: []}
    bare, times = [], {count: [] for count in choices}
    for _ in range(STARTS):
        bare.append(seconds_of(["/bin/true"], environment) * 1e3)
        for count, options in choices.items():
            command = [*exec_, *options, "--", "/bin/true"]
            times[count].append(seconds_of(command, environment) * 1e3)
    for count, taken in times.items():
        ratios = [mine / other for mine, other in zip(taken, bare)]
        bench.row(
            f"exec, {count} credentials, start to end of `true`",
            f"{statistics.median(taken):.2f} ms",
            f"{statistics.median(bare):.2f} ms",
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})",
        )
    added = statistics.median(times[MANY]) - statistics.median(times[0])
    bench.row(
        f"exec, for {MANY} credentials more", f"{added:.2f} ms", target="< 20 ms", met=added < 20
    )
    bench.note("the reference of exec is the same command, started alone")


def throughput(bench, exec_, environment):
    file = bench.directory / "text"
    line = b"2026-11-24T07:00:00Z INFO  request 4711 of sk-user-17 served in 12 ms, HTTP 200\n"
    block = (line * (CHUNK // len(line) + 1))[:CHUNK]
    with open(file, "wb") as output:
        for _ in range(TEXT_BYTES // CHUNK):
            output.write(block)
    cat = ["cat", str(file)]
    for count, options in {FEW: ["--namespace", "few"], MANY: []}.items():
        ours, reference = [], []
        for _ in bench.rounds():
            ours.append(rate_of([*exec_, *options, "--mask", "--", *cat], environment))
            reference.append(rate_of(cat, environment))
        ratios = [mine / other for mine, other in zip(ours, reference)]
        rate = statistics.median(ours)
        bench.row(
            f"exec --mask, {count} credentials, a log of plain text",
            f"{rate:,.0f} MB/s",
            f"{statistics.median(reference):,.0f} MB/s",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            ">= 300 MB/s",
            rate >= 300,
        )
    bench.note("the reference of exec --mask is the same cat, read without it")
    file.unlink()
