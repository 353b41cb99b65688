"""The hashicorp section: the same values, asked for straight from the server, through
OpenBao's or Vault's own proxy, through nginx, and through the service."""

import contextlib
import functools
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import urllib.parse

import processes
from processes import answers, running, wait_for

KEY = "key"
VALUE = "sk-proj-0123456789abcdefghij"
NAMESPACES = 16
SECRET = "/v1/secret/data/intentframe/bench{n}"


class Server:
    """A Vault or OpenBao, and a token that may do all."""

    def __init__(self, address, token, name):
        self.address, self.token, self.name = address, token, name
        self.netloc = urllib.parse.urlsplit(address).netloc

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        try:
            headers = {"X-Vault-Request": "true"}
            if self.token:
                headers["X-Vault-Token"] = self.token
            connection.request(method, f"/v1/{path}", body and json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            if response.status >= 400:
                raise OSError(f"{method} {path}: {response.status}")
            return json.loads(text) if text else {}
        finally:
            connection.close()

    def headers(self):
        return {"BENCH_LOAD_HEADERS": f"X-Vault-Request: true\nX-Vault-Token: {self.token}"}


def program():
    return shutil.which("bao") or shutil.which("vault")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(directory, cores):
    """The one that VAULT_ADDR names, or one of our own with file storage and an audit file."""
    if os.environ.get("VAULT_ADDR", "").startswith("http://") and os.environ.get("VAULT_TOKEN"):
        named = Server(os.environ["VAULT_ADDR"], os.environ["VAULT_TOKEN"], "")
        named.name = f"the server at VAULT_ADDR, version {named.ask('GET', 'sys/health')['version']}"
        yield named
        return
    directory.mkdir(mode=0o700)
    port, cluster = free_port(), free_port()
    # As in production, each request is written to an audit file. OpenBao takes that from its
    # configuration, Vault through its API.
    audit_file = directory / "audit.log"
    is_bao = pathlib.Path(program()).name == "bao"
    audit = f'''audit "file" "file" {{
  options {{ file_path = "{audit_file}" }}
}}''' if is_bao else ""
    (directory / "config.hcl").write_text(f"""
storage "file" {{ path = "{directory}/storage" }}
listener "tcp" {{
  address     = "127.0.0.1:{port}"
  tls_disable = true
}}
api_addr      = "http://127.0.0.1:{port}"
cluster_addr  = "http://127.0.0.1:{cluster}"
ui            = false
disable_mlock = true
log_level     = "warn"
{audit}
""")
    log = directory / "server.log"
    command = [program(), "server", f"-config={directory}/config.hcl"]
    environment = dict(os.environ, HOME=str(directory))
    confined = functools.partial(os.sched_setaffinity, 0, cores)
    with running(command, log, env=environment, preexec_fn=confined) as process:
        ours = Server(f"http://127.0.0.1:{port}", None, "")

        def is_well(path):
            try:
                ours.ask("GET", path)
                return True
            except (OSError, http.client.HTTPException):
                return False

        wait_for(lambda: is_well("sys/seal-status"), "the Vault server", process, log)
        keys = ours.ask("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        ours.ask("PUT", "sys/unseal", {"key": keys["keys_base64"][0]})
        ours.token = keys["root_token"]
        wait_for(lambda: is_well("sys/health"), "the unsealed Vault server", process, log)
        if not is_bao:
            ours.ask("PUT", "sys/audit/file",
                     {"type": "file", "options": {"file_path": str(audit_file)}})
        ours.ask("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        wait_for(lambda: is_well("secret/config"), "the KV engine", process, log)
        version = subprocess.run([program(), "version"], capture_output=True, text=True, check=True)
        ours.name = f"{version.stdout.split(',')[0].strip()}, file storage, audit file"
        yield ours


@contextlib.contextmanager
def proxy(directory, upstream):
    """`bao proxy` or `vault proxy` on a Unix socket, adding the token; None without one."""
    if program() is None:
        yield None
        return
    directory.mkdir(mode=0o700)
    path = directory / "proxy.sock"
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(upstream.token)
    (directory / "config.hcl").write_text(f"""
vault {{ address = "{upstream.address}" }}
auto_auth {{
  method "token_file" {{ config = {{ token_file_path = "{token}" }} }}
}}
api_proxy {{ use_auto_auth_token = true }}
listener "unix" {{
  address     = "{path}"
  tls_disable = true
}}
""")
    log = directory / "proxy.log"
    command = [program(), "proxy", f"-config={directory}/config.hcl"]
    environment = dict(os.environ, HOME=str(directory))
    for variable in [name for name in environment if name.startswith(("VAULT_", "BAO_"))]:
        del environment[variable]
    with running(command, log, env=environment) as process:
        wait_for(lambda: answers(path, SECRET.format(n=0)), "the proxy", process, log)
        yield path


@contextlib.contextmanager
def relay(directory, upstream):
    """nginx on a Unix socket, adding the token: the least that a process between the load and
    the server costs, for it passes on what it gets and knows nothing of it. None without one."""
    nginx, user = processes.nginx()
    if nginx is None:
        yield None
        return
    directory.mkdir(mode=0o700)
    path = directory / "relay.sock"
    kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    places = "".join(f"    {kind}_temp_path {directory}/{kind};\n" for kind in kinds)
    configuration = directory / "nginx.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(f"""
{user}
worker_processes auto;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
{places}
    upstream server {{
        server {upstream.netloc};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen unix:{path};
        location / {{
            proxy_pass http://server;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Vault-Request true;
            proxy_set_header X-Vault-Token {upstream.token};
        }}
    }}
}}
""")
    log = directory / "nginx.log"
    command = [nginx, "-p", directory, "-c", configuration]
    with running(command, log) as process:
        wait_for(lambda: answers(path, SECRET.format(n=0)), "nginx", process, log)
        yield path


def arrangements():
    """Which cores the server has, and which are left to all others; how that is called.

    A server is mostly on a host of its own. On cores of its own it is nearly so: what the
    service and the load take is not taken from it. Where all share all cores, a process in
    between is paid for by the server as well."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1 and not os.environ.get("VAULT_ADDR"):
        half = len(cores) // 2
        yield set(cores[half:]), set(cores[:half]), "the server on cores of its own"
    yield set(cores), set(cores), "all on the same cores"


def measure(bench):
    if program() is None and not os.environ.get("VAULT_ADDR"):
        bench.note("SKIPPED hashicorp: no bao or vault on the PATH, and no VAULT_ADDR")
        return
    cores = os.sched_getaffinity(0)
    for servers, others, name in arrangements():
        try:
            os.sched_setaffinity(0, others)
            measure_on(bench, servers, name)
        finally:
            os.sched_setaffinity(0, cores)


def measure_on(bench, cores, name):
    directory = bench.directory / f"vault-{name.split()[0]}"
    directory.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        vault = stack.enter_context(server(directory / "server", cores))
        environment = dict(os.environ, VAULT_ADDR=vault.address, VAULT_TOKEN=vault.token)
        service, _ = stack.enter_context(
            bench.service(f"hashicorp-{name.split()[0]}", "hashicorp", environment))
        for number in range(NAMESPACES):
            bench.drive(service, f"/v1/credentials/bench{number}/{KEY}", method="PUT",
                        body=json.dumps({"value": VALUE}), requests=1)
        broker = stack.enter_context(proxy(directory / "proxy", vault))
        between = stack.enter_context(relay(directory / "relay", vault))
        bench.note(f"hashicorp: measured on {vault.name}")
        others = {"its proxy": broker, "nginx in between": between}
        measure_get(bench, vault, others, service, name)
        measure_put(bench, vault, service, name)
        for number in range(NAMESPACES):
            vault.ask("DELETE", f"secret/metadata/intentframe/bench{number}")


def measure_get(bench, vault, others, service, arrangement):
    # How many connections, over how many namespaces, and how many times the direct rate.
    kinds = [(1, 1, 0.8), (16, 1, 4), (64, 1, 4), (16, NAMESPACES, 0.9)]
    for connections, namespaces, target in kinds:
        options = {"connections": connections, "keys": namespaces}
        ours, direct = [], []
        others_rates = {name: [] for name, path in others.items() if path}
        for _ in bench.rounds():
            ours.append(bench.drive(service, f"/v1/credentials/bench{{n}}/{KEY}", **options)["rate"])
            direct.append(bench.drive(vault.netloc, SECRET, tcp=True,
                                      environment=vault.headers(), **options)["rate"])
            for name, rates in others_rates.items():
                rates.append(bench.drive(others[name], SECRET, **options)["rate"])
        spread = f" over {namespaces} namespaces" if namespaces > 1 else ""
        plural = "s" if connections > 1 else ""
        name = f"Vault GET, {arrangement}, {connections} connection{plural}{spread}"
        bench.compare(f"{name}, against straight", ours, direct, target=target)
        for other, rates in others_rates.items():
            bench.compare(f"{name}, against {other}", ours, rates)


def measure_put(bench, vault, service, arrangement):
    ours, direct = [], []
    for _ in bench.rounds():
        ours.append(bench.drive(service, "/v1/credentials/bench0/put{n}", 16, method="PUT",
                                body=json.dumps({"value": VALUE}), keys=16)["rate"])
        body = json.dumps({"data": {"put{n}": VALUE}})
        direct.append(bench.drive(vault.netloc, "/v1/secret/data/intentframe/bench0", 16, tcp=True,
                                  environment=vault.headers(), method="PATCH", body=body, keys=16,
                                  content_type="application/merge-patch+json")["rate"])
    name = f"Vault PUT, {arrangement}, 16 connections, against straight PATCHes"
    bench.compare(name, ours, direct, target=3)
