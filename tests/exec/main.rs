//! `credential-vault exec`, and the library beneath it, against a real service.
#![cfg(unix)]

#[allow(dead_code, reason = "its other parts are for other test programs")]
#[path = "../support/fake.rs"]
mod fake;
#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod files;
mod library;
mod masking;
mod replaced;
mod selection;
mod supervisor;
mod terminal;
mod tools;
mod watch;
