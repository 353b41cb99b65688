//! The values of a plan, read several at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::client::{ClientError, VaultClient};
use crate::model::CredentialRef;
use crate::secret::Secret;

use super::environment::Delivered;
use super::selection::Plan;
use super::{Problem, RuntimeEnv, SpawnError};

/// Reads that are under way at once, each on a connection of its own. A backend that has
/// to ask another server answers those that come together with one request.
const THREADS: usize = 4;

/// Fewer than this are not worth another thread.
const PER_THREAD: usize = 8;

type Answer = Result<Option<Secret>, ClientError>;

/// Reads every value, or names every one that cannot be had.
pub(super) fn fetch(client: &VaultClient, plan: &Plan) -> Result<RuntimeEnv, SpawnError> {
    let wanted: Vec<(&String, &CredentialRef)> = plan.iter().collect();
    let mut variables = BTreeMap::new();
    let mut problems = Vec::new();
    for (index, answer) in read_all(client, &wanted) {
        let (name, at) = (wanted[index].0.clone(), wanted[index].1.clone());
        match answer {
            Ok(Some(value)) => drop(variables.insert(name, Delivered { at, value })),
            Ok(None) => problems.push(Problem::Missing { at }),
            Err(error) if is_of_all(&error) => return Err(error.into()),
            Err(error) => problems.push(Problem::NotGiven { at, error }),
        }
    }
    problems.sort_by_cached_key(ToString::to_string);
    SpawnError::unless_none(problems).map(|()| RuntimeEnv::new(variables))
}

/// Whether an error says nothing about the one credential that it answers for.
fn is_of_all(error: &ClientError) -> bool {
    !matches!(error, ClientError::Failed { .. } | ClientError::Refused { .. })
        || matches!(error, ClientError::Refused { status: 403, .. })
}

/// The answers, in any order, with the index of what was asked for; no more than that one
/// after an error that would come for each.
fn read_all(client: &VaultClient, wanted: &[(&String, &CredentialRef)]) -> Vec<(usize, Answer)> {
    let next = AtomicUsize::new(0);
    let given_up = AtomicBool::new(false);
    let read_some = || {
        let mut answers = Vec::new();
        while !given_up.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, at)) = wanted.get(index) else { break };
            let answer = client.get(at);
            if answer.as_ref().is_err_and(is_of_all) {
                given_up.store(true, Ordering::Relaxed);
            }
            answers.push((index, answer));
        }
        answers
    };
    let others = (wanted.len() / PER_THREAD).min(THREADS - 1);
    thread::scope(|scope| {
        // Where no thread can be had, the first one does it all.
        let threads: Vec<_> = (0..others)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, read_some).ok())
            .collect();
        let mut answers = read_some();
        for thread in threads {
            answers.extend(thread.join().expect("reading does not panic"));
        }
        answers
    })
}
