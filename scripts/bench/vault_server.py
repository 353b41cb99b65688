"""A real OpenBao or Vault server, and its own proxy, for the hashicorp section."""

import contextlib
import json
import pathlib
import shutil
import socket

import processes
from processes import CannotRun, Connection, answers, running, wait_for

SECRET = "/v1/secret/data/intentframe"


def program():
    """`bao` or `vault` on the PATH, or the one that scripts/install-test-deps installed."""
    tools = processes.TARGET_DIR / "test-tools"
    found = shutil.which("bao") or shutil.which("vault") or shutil.which("bao", path=tools)
    if found is None:
        raise CannotRun("no bao or vault: run scripts/install-test-deps")
    return found


class Server:
    """A running server and its root token."""

    def __init__(self, port):
        self.netloc, self.token = f"127.0.0.1:{port}", None
        self.address = f"http://{self.netloc}"

    def ask(self, method, path, body=None):
        connection = Connection(self.netloc)
        headers = {"X-Vault-Token": self.token} if self.token else {}
        with contextlib.closing(connection):
            status, text = connection.ask(method, f"/v1/{path}", body and json.dumps(body), headers)
        if status >= 400:
            raise CannotRun(f"{method} {path}: {status} {text[:300]}")
        return json.loads(text) if text else {}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(directory):
    """Raft storage on disk and an audit file, as in production; KV version 2 at secret/."""
    (directory / "raft").mkdir(mode=0o700, parents=True)
    port, audit = free_port(), directory / "audit.log"
    # OpenBao takes its audit file from the configuration, Vault through the API.
    is_bao = pathlib.Path(program()).name == "bao"
    device = f'audit "file" "file" {{ options {{ file_path = "{audit}" }} }}' if is_bao else ""
    (directory / "config.hcl").write_text(f"""
storage "raft" {{
  path    = "{directory}/raft"
  node_id = "bench"
}}
listener "tcp" {{
  address     = "127.0.0.1:{port}"
  tls_disable = true
}}
api_addr      = "http://127.0.0.1:{port}"
cluster_addr  = "http://127.0.0.1:{free_port()}"
ui            = false
disable_mlock = true
log_level     = "warn"
{device}
""")
    log = directory / "server.log"
    command = [program(), "server", f"-config={directory}/config.hcl"]
    with running(command, log, env=processes.environment(HOME=str(directory))) as process:
        vault = Server(port)

        def responds(path):
            try:
                return bool(vault.ask("GET", path))
            except (CannotRun, OSError):
                return False

        wait_for(lambda: responds("sys/seal-status"), "the Vault server", process, log)
        keys = vault.ask("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        vault.ask("PUT", "sys/unseal", {"key": keys["keys_base64"][0]})
        vault.token = keys["root_token"]
        wait_for(lambda: responds("sys/health"), "the unsealed Vault server", process, log)
        if not is_bao:
            vault.ask("PUT", "sys/audit/file",
                      {"type": "file", "options": {"file_path": str(audit)}})
        vault.ask("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        wait_for(lambda: responds("secret/config"), "the KV engine", process, log)
        yield vault


@contextlib.contextmanager
def proxy(directory, upstream):
    """`bao proxy` or `vault proxy` on a Unix socket. It adds the token to each request."""
    directory.mkdir(mode=0o700)
    path, token, log = directory / "proxy.sock", directory / "token", directory / "proxy.log"
    token.touch(mode=0o600)
    token.write_text(upstream.token)
    (directory / "config.hcl").write_text(f"""
log_level = "warn"
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
    command = [program(), "proxy", f"-config={directory}/config.hcl"]
    with running(command, log, env=processes.environment(HOME=str(directory))) as process:
        wait_for(lambda: answers(path, f"{SECRET}/bench0"), "the proxy", process, log)
        yield path
