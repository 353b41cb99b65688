//! The service's main callers, in Python, over the Unix socket; and every row of the wire contract.
#![cfg(unix)]

mod support;

use std::process::Command;

use support::{Place, skip};

/// Returns a Python that has httpx, if there is one. Debian's own Python gets it from the package
/// python3-httpx, which another Python earlier in PATH does not see.
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
    for (backend, name) in [("env", "EnvVault"), ("sealed", "SealedVault")] {
        let place = Place::new();
        let service = place.setup_with(backend).start();
        let output = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_client.py"))
            .arg(&service.socket)
            .arg(name)
            .output()
            .expect("it ran a moment ago");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{backend}: {stderr}");
    }
}

/// By the script that operators can run too.
#[test]
fn every_row_of_the_wire_contract() {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/wire-contract"))
        .env("CREDENTIAL_VAULT_BIN", env!("CARGO_BIN_EXE_credential-vault"))
        .output()
        .expect("the script is executable, and python3 installed");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<&str> = stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}\n{stdout}", failed.join("\n"));
}
