//! When values were last handed out, as long as that is not in the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::CredentialRef;
use crate::time::Timestamp;

use super::Filter;

/// Times by namespace and key. Two levels, so that looking up needs no allocation.
#[derive(Debug, Default, Clone)]
pub(super) struct Times(HashMap<Box<str>, HashMap<Box<str>, Timestamp>>);

impl Times {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str, Timestamp)> {
        self.0.iter().flat_map(|(namespace, keys)| {
            keys.iter().map(move |(key, &when)| (&**namespace, &**key, when))
        })
    }

    fn of(&self, at: &CredentialRef) -> Option<Timestamp> {
        self.0.get(at.namespace().as_str())?.get(at.key()).copied()
    }

    fn note(&mut self, at: &CredentialRef, when: Timestamp) {
        let namespace = at.namespace().as_str();
        if let Some(keys) = self.0.get_mut(namespace) {
            if let Some(noted) = keys.get_mut(at.key()) {
                *noted = when.max(*noted);
            } else {
                keys.insert(at.key().into(), when);
            }
        } else {
            self.0.insert(namespace.into(), HashMap::from([(at.key().into(), when)]));
        }
    }

    fn forget(&mut self, at: &CredentialRef) {
        let namespace = at.namespace().as_str();
        if let Some(keys) = self.0.get_mut(namespace) {
            keys.remove(at.key());
            if keys.is_empty() {
                self.0.remove(namespace);
            }
        }
    }

    /// Those that a listing with this filter may need.
    fn for_listing(&self, filter: Filter<'_>) -> Self {
        let Filter::Namespace(namespace) = filter else { return self.clone() };
        let keys = self.0.get_key_value(namespace.as_str());
        Self(keys.map(|(name, keys)| (name.clone(), keys.clone())).into_iter().collect())
    }
}

/// What waits to be written (`pending`), and what is being written (`in_flight`). The
/// latter stays until its commit, so that a reader who looks here first and at the rows
/// second misses nothing.
#[derive(Debug, Default)]
pub(super) struct Touches(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pending: Times,
    in_flight: Option<Arc<Times>>,
}

/// The touches of one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pending: Times,
    in_flight: Option<Arc<Times>>,
}

impl Snapshot {
    pub(super) fn of(&self, at: &CredentialRef) -> Option<Timestamp> {
        self.pending.of(at).max(self.in_flight.as_ref().and_then(|times| times.of(at)))
    }
}

impl Touches {
    /// Notes a touch, and says whether it is the first, of which the writer has to hear.
    pub(super) fn note(&self, at: &CredentialRef, when: Timestamp) -> bool {
        let mut state = self.lock();
        let first = state.pending.0.is_empty();
        state.pending.note(at, when);
        first
    }

    /// The last touch of one credential.
    pub(super) fn of(&self, at: &CredentialRef) -> Option<Timestamp> {
        let state = self.lock();
        state.pending.of(at).max(state.in_flight.as_ref().and_then(|times| times.of(at)))
    }

    /// All touches that a listing with this filter may need.
    pub(super) fn snapshot(&self, filter: Filter<'_>) -> Snapshot {
        let state = self.lock();
        Snapshot { pending: state.pending.for_listing(filter), in_flight: state.in_flight.clone() }
    }

    /// Forgets what was noted of a credential that is gone.
    pub(super) fn forget(&self, at: &CredentialRef) {
        let mut state = self.lock();
        state.pending.forget(at);
        if let Some(times) = &mut state.in_flight
            && times.of(at).is_some()
        {
            Arc::make_mut(times).forget(at);
        }
    }

    /// What to write now: what an earlier attempt failed to write, else what is pending.
    pub(super) fn take(&self) -> Arc<Times> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let taken =
            state.in_flight.get_or_insert_with(|| Arc::new(std::mem::take(&mut state.pending)));
        Arc::clone(taken)
    }

    /// What was taken is in the database now. Says whether more is pending.
    pub(super) fn written(&self) -> bool {
        let mut state = self.lock();
        state.in_flight = None;
        !state.pending.0.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is complete in one call, so a panic leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
