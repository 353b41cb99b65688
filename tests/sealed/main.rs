//! The backend `sealed`: the service at its socket, and the commands `seal`.
#![cfg(unix)]

#[path = "../support/contract.rs"]
mod contract;
#[path = "../support/terminal.rs"]
mod pty;
#[path = "../support/sequences.rs"]
mod sequences;
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod keys;
mod rows;
mod terminal;
mod tools;
