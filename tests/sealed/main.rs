//! The backend `sealed`: the service at its socket, and the commands `seal`.
#![cfg(unix)]

#[path = "../support/contract.rs"]
mod contract;
#[allow(dead_code, reason = "other test programs use its other parts")]
#[path = "../support/terminal.rs"]
mod pty;
#[allow(dead_code, reason = "each test program uses its own part of this")]
#[path = "../support/sequences.rs"]
mod sequences;
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod keys;
mod rows;
mod terminal;
mod tools;
