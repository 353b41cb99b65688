//! `credential-vault exec`, and the library below it, against a real service.
#![cfg(unix)]

#[path = "../support/fake.rs"]
mod fake;
#[path = "../support/terminal.rs"]
mod pty;
#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod files;
mod git;
mod library;
mod masking;
mod replaced;
mod selection;
mod supervisor;
mod terminal;
mod tools;
mod watch;
