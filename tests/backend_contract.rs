//! The contract of `CredentialVault` on the `env` backend. The other backends need a store, and
//! check the contract in their own tests.

#[path = "support/contract.rs"]
mod contract;

use contract::contract;
use intentframe_credentials::{BackendOptions, Environment, create_vault};

#[test]
fn env() {
    let options = BackendOptions::new(Environment::default());
    let vault = create_vault("env", &options).expect("registered");
    contract(&*vault, "contract-");
}
