//! The test server against a real Vault: each assertion is written once, runs on the test
//! server always, and on a real server whenever `VAULT_ADDR` and `VAULT_TOKEN` (a root
//! token) name one. What is asserted is what `OpenBao` 2.6.2 does, to the letter where a
//! client may look at the letter; another release, or Vault itself, may word errors
//! differently.

mod approle;
mod faults;
mod kv;
mod mounts;
mod policy;
mod target;
mod token;
#[path = "../support/vault_server/mod.rs"]
mod vault_server;
mod wire;
mod wrapping;
