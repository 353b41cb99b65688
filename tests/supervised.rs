//! The service under a service manager: readiness, watchdog, and an inherited socket.
#![cfg(unix)]

mod support;

use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use support::{DEADLINE, Place, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_credential-vault");

#[test]
fn a_line_on_the_descriptor_means_that_requests_are_served() {
    let place = Place::new();
    let ready = place.root().join("ready");
    let service = place
        .setup()
        .option("--ready-fd", "7")
        .after(&format!("exec 7>'{}'", ready.display()))
        .spawn();
    wait_until("the line arrives", || {
        std::fs::read_to_string(&ready).is_ok_and(|said| said == "ready\n")
    });
    // Without waiting: the line means that requests are served.
    service.assert_healthy();
    service.stop();
}

/// A reader may wait for the end of the file instead of the line.
#[test]
fn the_descriptor_is_closed_after_the_line() {
    for through in ["pipe", "socket"] {
        let place = Place::new();
        let socket = place.socket();
        let mut starter = Command::new("python3")
            .args(["-c", READER, through, PROGRAM])
            .args(["serve", "--backend", "env", "--ready-fd", "50"])
            .arg("--socket")
            .arg(&socket)
            .arg("--data-dir")
            .arg(place.data_dir())
            .env("HOME", place.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut said = [0; 32];
        let count = starter.stdout.as_mut().expect("piped").read(&mut said).expect("reads");
        assert_eq!(&said[..count], b"b'ready\\n' alive", "{through}");
        drop(starter.stdin.take());
        assert!(starter.wait().expect("ends").success());
    }
}

/// Starts a program with descriptor 50 as the descriptor to write to. Prints what was written
/// there, and whether the program still runs. Ends it when standard input ends.
const READER: &str = r"
import os, signal, socket, subprocess, sys
if sys.argv[1] == 'pipe':
    reader, writer = os.pipe()
else:
    ours, theirs = socket.socketpair()
    reader, writer = ours.detach(), theirs.detach()
os.dup2(writer, 50, inheritable=True)
child = subprocess.Popen(sys.argv[2:], close_fds=True, pass_fds=[50], stderr=subprocess.DEVNULL)
try:
    os.close(writer)
    os.close(50)
    said = b''
    while more := os.read(reader, 100):
        said += more
    sys.stdout.write(f'{said!r} ' + ('alive' if child.poll() is None else 'dead'))
    sys.stdout.flush()
    sys.stdin.read()
    child.send_signal(signal.SIGTERM)
    sys.exit(child.wait())
finally:
    child.kill()
";

#[test]
fn an_invalid_descriptor_is_a_usage_error() {
    for number in ["9", "1", "-1"] {
        let place = Place::new();
        let mut service = place.setup().option("--ready-fd", number).spawn();
        assert_eq!(service.wait().code(), Some(2), "{number}: {}", service.log());
        assert!(service.log().contains("--ready-fd"), "{}", service.log());
        assert!(!place.socket().exists(), "nothing was started");
    }
}

/// A service manager that receives notifications.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(place: &Place) -> Self {
        let path = place.root().join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("binds");
        socket.set_read_timeout(Some(DEADLINE)).expect("sets a timeout");
        Self { socket, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    #[track_caller]
    fn wait_for(&self, line: &str) {
        loop {
            let mut message = [0; 1024];
            let count = self.socket.recv(&mut message).expect("a notification in time");
            let message = std::str::from_utf8(&message[..count]).expect("UTF-8");
            if message.lines().any(|it| it == line) {
                return;
            }
        }
    }
}

#[test]
fn the_service_manager_is_notified_of_start_and_stop() {
    let place = Place::new();
    let manager = Manager::new(&place);
    let mut service = place.setup().env("NOTIFY_SOCKET", manager.path()).spawn();
    manager.wait_for("READY=1");
    service.assert_healthy();
    service.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    assert!(service.wait().success());
}

#[test]
fn the_watchdog_is_notified_while_the_service_answers() {
    let place = Place::new();
    let manager = Manager::new(&place);
    let setup = place.setup().env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "300000");
    let service = setup.spawn();
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1");
    }
    drop(service);

    // A watchdog of another process is ignored.
    let other = Place::new();
    let manager = Manager::new(&other);
    let setup = other
        .setup()
        .env("NOTIFY_SOCKET", manager.path())
        .env("WATCHDOG_USEC", "1000")
        .env("WATCHDOG_PID", "1");
    let mut service = setup.spawn();
    manager.wait_for("READY=1");
    service.signal(Signal::TERM);
    let mut message = [0; 1024];
    loop {
        let count = manager.socket.recv(&mut message).expect("a notification");
        let message = String::from_utf8_lossy(&message[..count]).into_owned();
        assert!(!message.contains("WATCHDOG=1"), "{message}");
        if message.contains("STOPPING=1") {
            break;
        }
    }
    assert!(service.wait().success());
}

/// Acts as the manager of a socket: starts the service on it twice in a row.
const ACTIVATION: &str = r"
import fcntl, json, os, signal, socket, stat, sys
path, log, program, arguments = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[3:]

listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chmod(path, 0o600)
listener.listen(16)
before = os.stat(path)
# Above the numbers under which it is passed.
passed = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 100)

def start(count=1, pid=None):
    child = os.fork()
    if child == 0:
        error = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(error, 2)
        for number in range(3, 3 + count):
            os.dup2(passed, number, inheritable=True)
        os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=pid or str(os.getpid()))
        os.execv(program, arguments)
    return child

def connect():
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(path)
    client.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
    return client

def answered(client):
    answer = b''
    while more := client.recv(4096):
        answer += more
    assert answer.startswith(b'HTTP/1.1 200 '), answer
    return json.loads(answer.partition(b'\r\n\r\n')[2])

def stop(child):
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

# A connection from before the service is served.
early = connect()
first = start()
assert answered(early)['backend'] == 'EnvVault'
assert answered(connect())['status'] == 'ok'
assert stop(first) == 0
after = os.stat(path)
assert (before.st_ino, stat.S_IMODE(after.st_mode)) == (after.st_ino, 0o600), 'the socket was touched'

# A connection from between two services is served by the second.
between = connect()
second = start()
assert answered(between)['status'] == 'ok'
assert stop(second) == 0

# One that other users can connect to is served only with a policy.
os.chmod(path, 0o666)
shared = start()
assert os.waitstatus_to_exitcode(os.waitpid(shared, 0)[1]) == 2
os.environ['IF_VAULT_POLICY'] = path + '.policy'
with open(path + '.policy', 'w') as policy:
    policy.write('[consumer.a]\nuid = 1\n')
os.chmod(path + '.policy', 0o600)
shared = start()
assert answered(connect())['status'] == 'ok'
assert stop(shared) == 0
os.chmod(path, 0o600)

# Several sockets are an error.
two = start(count=2)
assert os.waitstatus_to_exitcode(os.waitpid(two, 0)[1]) == 2
print('done')
";

#[test]
fn an_inherited_socket_is_served_and_left_unchanged() {
    let place = Place::new();
    let (socket, log) = (place.root().join("passed.sock"), place.root().join("log"));
    let output = Command::new("python3")
        .args(["-c", ACTIVATION])
        .args([&socket, &log])
        .arg(PROGRAM)
        .args(["serve", "--backend", "env", "--data-dir"])
        .arg(place.data_dir())
        .env("HOME", place.root())
        .output()
        .expect("python3 is installed");
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{stderr}\n{log}");
    assert!(log.contains("LISTEN_FDS passes 2 sockets"), "{log}");
    assert!(log.contains("give --policy FILE") && log.contains("the policy decides"), "{log}");
    assert!(!place.root().join(".intentframe").exists(), "the default socket was not created");
}

#[test]
fn a_socket_for_another_process_is_ignored() {
    let place = Place::new();
    let service = place.setup().env("LISTEN_FDS", "1").env("LISTEN_PID", "1").start();
    service.assert_healthy();
    assert!(place.socket().exists());
}

/// Serves on a socket that it passes on.
const PASSED: &str = r"
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o600)
listener.listen(16)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
";

/// A service manager need not set HOME.
#[test]
fn a_home_directory_is_needed_only_for_a_default() {
    let place = Place::new();
    let socket = place.root().join("passed.sock");
    let mut passed = Command::new("python3")
        .args(["-c", PASSED])
        .arg(&socket)
        .arg(PROGRAM)
        .args(["serve", "--backend", "env", "--data-dir"])
        .arg(place.data_dir())
        .env_remove("HOME")
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 is installed");
    // Connecting before the service serves waits for it.
    wait_until("the socket is there", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    assert_eq!(support::Connection::open(&socket).exchange(&support::get("/health")).status, 200);

    // A forwarding service has no data.
    let forwarding = Place::new();
    let setup = forwarding.bare_setup().env("IF_VAULT_UPSTREAM_SOCKET", &socket);
    let path = forwarding.socket();
    let setup = setup.option("--backend", "service").argument("--socket");
    let mut service = setup.argument(&path).after("unset HOME").spawn();
    service.wait_until_ready();

    let no_home = Place::new();
    let mut refused = no_home.bare_setup().after("unset HOME").spawn();
    assert_eq!(refused.wait().code(), Some(2), "{}", refused.log());
    assert!(refused.log().contains("HOME is not set"), "{}", refused.log());
    passed.kill().expect("it runs");
    passed.wait().expect("a child");
}

/// Checks what plutil(1) and launchd.plist(5) ask for: an XML property list, and the type of each
/// key.
const LAUNCHD: &str = r"
import plistlib, sys
job = plistlib.loads(sys.stdin.buffer.read(), fmt=plistlib.FMT_XML)
TYPES = {'Label': str, 'ProgramArguments': list, 'RunAtLoad': bool, 'KeepAlive': dict,
         'ProcessType': str, 'ExitTimeOut': int, 'Umask': int, 'HardResourceLimits': dict,
         'SoftResourceLimits': dict}
for key, value in job.items():
    assert type(value) is TYPES[key], key
assert plistlib.loads(plistlib.dumps(job)) == job
assert all(type(it) is str for it in job['ProgramArguments'])
assert job['ProgramArguments'][0].startswith('/')
assert job['ProcessType'] in ('Background', 'Standard', 'Adaptive', 'Interactive')
assert job['KeepAlive'] == {'SuccessfulExit': False} and job['Umask'] == 0o077
assert all(type(it) is int for limits in ('HardResourceLimits', 'SoftResourceLimits') for it in job[limits].values())
print(job['Label'])
";

#[test]
fn the_job_for_launchd_is_a_property_list() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/scripts/launchd/ai.intentframe.credential-vault.plist"
    );
    let output = Command::new("python3")
        .args(["-c", LAUNCHD])
        .stdin(std::fs::File::open(file).expect("it is there"))
        .output()
        .expect("python3 is installed");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"ai.intentframe.credential-vault\n", "{problem}");
}
