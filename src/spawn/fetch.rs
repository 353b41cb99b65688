//! Reads the values of a plan, several at a time.

use std::thread;

use crate::client::{ClientError, VaultClient};
use crate::model::CredentialRef;

use super::environment::Delivered;
use super::selection::Plan;
use super::{Problem, RuntimeEnv, SpawnError};

/// Reads in flight at once, each on its own connection. A backend that asks another server
/// can answer reads that come together with one request.
const THREADS: usize = 4;

/// Another thread is worth its start for this many reads.
const PER_THREAD: usize = 8;

/// A variable's name, and its value or the reason why there is none.
type Answer = (String, Result<Delivered, Problem>);

/// Reads every value, or reports every problem.
pub(super) fn fetch(client: &VaultClient, plan: &Plan) -> Result<RuntimeEnv, SpawnError> {
    let (mut values, mut problems) = (Vec::new(), Vec::new());
    for (name, answer) in read_all(client, plan)? {
        match answer {
            Ok(delivered) => values.push((name, delivered)),
            Err(problem) => problems.push(problem),
        }
    }
    SpawnError::unless_none(problems).map(|()| RuntimeEnv::new(values.into_iter().collect()))
}

/// The answers in any order. Each thread stops at the first error that is not about one
/// credential alone.
fn read_all(client: &VaultClient, plan: &Plan) -> Result<Vec<Answer>, ClientError> {
    let threads = (plan.len() / PER_THREAD + 1).min(THREADS);
    let read_part = move |part: usize| -> Result<Vec<Answer>, ClientError> {
        let of_part = plan.iter().skip(part).step_by(threads);
        of_part.map(|(name, at)| Ok((name.clone(), read(client, at)?))).collect()
    };
    thread::scope(|scope| {
        let spawn = |part| thread::Builder::new().spawn_scoped(scope, move || read_part(part));
        let others: Vec<_> = (1..threads).map(|part| (part, spawn(part))).collect();
        let mut answers = read_part(0)?;
        for (part, thread) in others {
            answers.extend(match thread {
                Ok(thread) => thread.join().expect("reading does not panic")?,
                // The system allows no more threads.
                Err(_) => read_part(part)?,
            });
        }
        Ok(answers)
    })
}

fn read(
    client: &VaultClient,
    at: &CredentialRef,
) -> Result<Result<Delivered, Problem>, ClientError> {
    let at = at.clone();
    match client.get(&at) {
        Ok(Some(value)) => Ok(Ok(Delivered { at, value })),
        Ok(None) => Ok(Err(Problem::Missing { at })),
        // The service serves this user nothing at all.
        Err(error @ ClientError::Refused { status: 403, .. }) => Err(error),
        Err(error @ (ClientError::Refused { .. } | ClientError::Failed { .. })) => {
            Ok(Err(Problem::NotGiven { at, error }))
        }
        Err(error) => Err(error),
    }
}
