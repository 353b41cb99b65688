"""A Debian in a folder, unpacked by debootstrap and booted by systemd-nspawn.

It takes root, and cgroups and namespaces that can be made: `requirements` says what is missing.
"""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
SUITE = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,procps"
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux"}
LIMIT = 60
VAULT_SOCKET = "run/credential-vault/credential-vault.sock"


def cannot(reason):
    print(f"nothing is tested: {reason}", file=sys.stderr)
    sys.exit(0)


def install_tools():
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-q", "update"], env=environment, check=False)
        install = ["apt-get", "-q", "install", "-y", "--no-install-recommends", *missing]
        subprocess.run(install, env=environment, check=False)
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing and os.environ.get("CI"):
        sys.exit(f"under CI nothing is skipped: {', '.join(missing)} cannot be installed")
    if missing:
        cannot(f"install {', '.join(missing)}")


def cgroup_mounts():
    """Where systemd keeps its units: the hierarchy of its own, and cgroup 2."""
    lines = (line.split() for line in pathlib.Path("/proc/self/mounts").read_text().splitlines())
    return [pathlib.Path(at) for _, at, kind, options, *_ in lines
            if kind == "cgroup2" or kind == "cgroup" and "name=systemd" in options.split(",")]


def debian():
    """An unpacked Debian that nothing is changed in."""
    pristine = TARGET / "test-systemd" / f"{SUITE}-{PACKAGES.replace(',', '+')}"
    if not pristine.exists():
        pristine.parent.mkdir(parents=True, exist_ok=True)
        unpacked = pathlib.Path(tempfile.mkdtemp(dir=pristine.parent))
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, unpacked]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            shutil.rmtree(unpacked)
            cannot(f"no Debian can be unpacked here:\n{done.stdout[-2000:]}")
        unpacked.chmod(0o755)
        unpacked.rename(pristine)
    return pristine


def eventually(what, attempt, limit=LIMIT):
    end = time.monotonic() + limit
    while True:
        answer = attempt()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(0.05)


class Container:
    """A booted system. Its disk is a folder."""

    def __init__(self, root):
        self.root = root
        self.console = open(root.parent / "console", "w+b")
        self.cgroups = [mount / f"credential-vault-test-{os.getpid()}" for mount in cgroup_mounts()]
        self.leader = None
        self.nspawn = None

    def write(self, path, text, mode=0o644):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def boot(self):
        for cgroup in self.cgroups:
            cgroup.mkdir(exist_ok=True)

        def join():
            for cgroup in self.cgroups:
                (cgroup / "cgroup.procs").write_text("0")

        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--boot", "-D", self.root, "--register=no", "--keep-unit",
             "--private-network", "--console=pipe", "--link-journal=no", "--hostname=vault-test"],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console, preexec_fn=join,
            start_new_session=True)
        self.wait_for_boot()

    def wait_for_boot(self):
        def leader():
            assert self.nspawn.poll() is None, f"systemd-nspawn ended:\n{self.said()}"
            children = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children")
            for pid in children.read_text().split():
                if pathlib.Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return pid

        self.leader = eventually("systemd starts", leader)
        eventually("the system is up", lambda: self.run(
            "systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"))

    def reboot(self):
        self.run("systemctl", "reboot", check=False)
        # EXIT_FORCE_RESTART: with --keep-unit, the one who started it is to do it again.
        assert self.nspawn.wait(LIMIT) == 133, self.said()
        self.boot()

    def stop(self):
        if self.nspawn and self.nspawn.poll() is None:
            self.nspawn.terminate()
            try:
                self.nspawn.wait(LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(self.nspawn.pid, signal.SIGKILL)
                self.nspawn.wait()
        # From the innermost: the container leaves its own behind.
        for cgroup in self.cgroups:
            for path in sorted(cgroup.rglob("*/"), reverse=True) if cgroup.exists() else []:
                path.rmdir()
            if cgroup.exists():
                cgroup.rmdir()

    def said(self):
        return pathlib.Path(self.console.name).read_text(errors="replace")[-3000:]

    def run(self, *command, check=True, stdin="", user=None):
        inside = ["nsenter", "--target", self.leader, "--all", "--wd=/"]
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        if user:
            inside += [f"--setuid={user}", f"--setgid={user}"]
            variables |= {"HOME": f"/home/{user}", "XDG_RUNTIME_DIR": f"/run/user/{user}"}
        done = subprocess.run([*inside, "--", *command], input=stdin, text=True, env=variables,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def show(self, unit, name):
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def vault(self, *arguments, stdin="", check=True):
        return self.run("credential-vault", "--socket", f"/{VAULT_SOCKET}", "--server-uid",
                        self.uid(), *arguments, stdin=stdin, check=check)

    def uid(self):
        return self.run("id", "-u", "credential-vault").stdout.strip()

    def get(self, name):
        return self.vault("get", name).stdout

    def store(self, name, value):
        self.vault("store", name, stdin=value)


def requirements():
    """Installs what is missing. Ends the program if nothing can be tested here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        cannot("it takes root on Linux")
    mounts = cgroup_mounts()
    if not mounts or any(os.statvfs(mount).f_flag & os.ST_RDONLY for mount in mounts):
        cannot("the cgroups cannot be changed")
    namespaces = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork"]
    mounting = subprocess.run([*namespaces, "mount", "-t", "proc", "proc", "/proc"],
                              stderr=subprocess.DEVNULL)
    if mounting.returncode != 0:
        cannot("no namespaces, or no mounts in them, may be made")
    install_tools()


def run_checks(checks, prepare, pristine=None, keep=False):
    """Copies a Debian, prepares the copy, boots it, and runs the checks in it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="credential-vault-debian-"))
    container = Container(folder / "root")
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", pristine or debian(), container.root], check=True)
        prepare(container)
        started = time.monotonic()
        try:
            container.boot()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            cannot(f"no system boots in a container here: {error}")
        print(f"booted: {time.monotonic() - started:.1f} s")
        for check in checks:
            started = time.monotonic()
            check(container)
            name = check.__name__.removeprefix("check_").replace("_", " ")
            print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
    except BaseException:
        print(container.said(), file=sys.stderr)
        if container.leader:
            log = container.run("journalctl", "--no-pager", "-n", "60", check=False)
            print(log.stdout, file=sys.stderr)
        raise
    finally:
        container.stop()
        if keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
