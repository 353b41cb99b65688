//! Every row of the wire contract, checked by the script that operators can run too.
#![cfg(unix)]

mod support;

use std::process::Command;

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
