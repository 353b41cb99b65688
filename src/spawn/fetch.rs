//! Reads the values of a plan, several at a time.

use std::collections::btree_map;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::client::{ClientError, VaultClient};
use crate::model::CredentialRef;
use crate::sync::lock;

use super::selection::Plan;
use super::{Problem, RuntimeEnv, SpawnError};

/// Reads in flight at once, each on its own connection. A backend that asks another server
/// can answer reads that come together with one request.
const THREADS: usize = 4;

/// Another thread is worth its start for this many reads.
const PER_THREAD: usize = 8;

#[derive(Default)]
struct Progress<'p> {
    to_read: btree_map::Iter<'p, String, CredentialRef>,
    read: RuntimeEnv,
    problems: Vec<Problem>,
    /// An error that is not about one credential alone. It ends the reading.
    error: Option<ClientError>,
}

/// Reads every value, or reports every problem.
pub(super) fn fetch(client: &VaultClient, plan: &Plan) -> Result<RuntimeEnv, SpawnError> {
    let progress = Mutex::new(Progress { to_read: plan.iter(), ..Progress::default() });
    let next = || lock(&progress).to_read.next();
    let read = || {
        while let Some((name, at)) = next() {
            let outcome = client.get(at);
            let mut progress = lock(&progress);
            match outcome {
                Ok(Some(value)) => drop(progress.read.0.insert(name.clone(), (at.clone(), value))),
                Ok(None) => progress.problems.push(Problem::Missing { at: at.clone() }),
                // Status 403: the service serves this user nothing at all.
                Err(
                    error @ (ClientError::Refused { status: ..=402 | 404.., .. }
                    | ClientError::Failed { .. }),
                ) => {
                    progress.problems.push(Problem::NotGiven { at: at.clone(), error });
                }
                Err(error) => {
                    progress.error = Some(error);
                    progress.to_read = btree_map::Iter::default();
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..(plan.len() / PER_THREAD + 1).min(THREADS) {
            // If the system allows no more threads, this one reads all.
            let _ = thread::Builder::new().spawn_scoped(scope, read);
        }
        read();
    });
    let Progress { read, problems, error, .. } =
        progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    match error {
        Some(error) => Err(error.into()),
        None => SpawnError::unless_none(problems).map(|()| read),
    }
}
