//! The callers that this service is for: Python with httpx, over the Unix socket.
#![cfg(unix)]

mod support;

use std::process::Command;

use support::{Place, skip};

/// A Python that has httpx, if this machine has one: Debian's own has it from the package
/// python3-httpx, which another Python that comes first in PATH does not see.
fn python_with_httpx() -> Option<&'static str> {
    ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let probe = Command::new(python).args(["-c", "import httpx"]).output();
        probe.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn httpx_over_the_socket() {
    let Some(python) = python_with_httpx() else {
        skip("the Python client needs httpx: apt-get install python3-httpx");
        return;
    };
    let place = Place::new();
    let service = place.start();
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_client.py"))
        .arg(&service.socket)
        .output()
        .expect("it ran a moment ago");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}
