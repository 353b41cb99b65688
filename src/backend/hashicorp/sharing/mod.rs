//! Fewer requests than callers, without a cache.
//!
//! # Reads
//!
//! A read of a namespace that is under way began at some moment. Who arrives after that
//! moment must not be given its result: a store may have been acknowledged in between. But
//! all who arrive while it is under way may share the *next* read, which begins when this
//! one ends, after all of them have arrived. Each caller thus gets what the server said in
//! answer to a request that was sent after the caller's own; a read of its own could have
//! seen nothing newer than that in the worst case, and nobody can tell the two apart:
//!
//! ```text
//! caller A  |--- read 1 ---|
//! caller B     |...........|--- read 2 ---|      B and C arrive during read 1,
//! caller C          |......|--- read 2 ---|      and share read 2, which begins
//! caller D                      |.........|--    after both; D arrives during it,
//! ```                                            and waits for read 3
//!
//! Callers that were answered together tend to come back together, a moment later. So a
//! read after one that answered several is put off until as many wait for it again, or for
//! that moment. Otherwise they fall apart into groups that take turns, and each has its own
//! reads. It still begins after each of those whom it answers.
//!
//! A caller waits with its thread ([`Namespaces::read`]), or without one
//! ([`Namespaces::join`]): it leaves word how it is to be woken, or begins the read itself
//! and is woken by what tells of the answer. Only these put a read off.
//!
//! # Stores
//!
//! Stores to one namespace are made one after the other. Those that wait behind one under
//! way go together, as one merge of all their fields, and each is answered only after it.
//! When the server refuses the joint one, each is made alone, so that one caller's bad
//! luck is nobody else's. A delete is made alone always: what it does depends on whether
//! its field is the last, which no store of this process can change meanwhile.

mod changes;
mod reads;
mod shared;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::Namespace;
use crate::secret::Secret;
type Wake = std::sync::Arc<dyn Fn() + Send + Sync>;

use super::kv::{Kv, KvError};
use super::upstream::Unavailable;
use changes::Changes;
pub(super) use reads::Joined;
use reads::{ReadResult, Reads};

/// The namespaces that are being read or changed.
#[derive(Default)]
pub(super) struct Namespaces(Mutex<HashMap<Namespace, Arc<Lane>>>);

/// What goes on with one namespace.
#[derive(Default)]
struct Lane {
    reads: Mutex<Reads>,
    changes: Mutex<Changes>,
}

/// The failure of a thread that panicked in the others' place.
fn panicked() -> KvError {
    KvError::Unavailable(Unavailable::new("a request to Vault failed; see the service's log"))
}

impl Namespaces {
    /// The namespace's lane.
    fn lane<'a>(&'a self, namespace: &'a Namespace) -> InLane<'a> {
        let mut lanes = self.lanes();
        let lane = match lanes.get(namespace) {
            Some(lane) => Arc::clone(lane),
            None => Arc::clone(lanes.entry(namespace.clone()).or_default()),
        };
        InLane { namespaces: self, namespace, lane }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Namespace, Arc<Lane>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the namespace's secret is, as of a moment after this call.
    pub(super) fn read(&self, namespace: &Namespace, kv: &Kv) -> ReadResult {
        Lane::read(&self.lane(namespace).lane, &|| kv.read(namespace))
    }

    /// Joins those who wait for the next read, or is to begin it. `wake` is called when it is
    /// worth to [advance](Joined::advance), unless the joined read's source tells.
    pub(super) fn join(&self, namespace: &Namespace, wake: Wake) -> Joined {
        Lane::join(&self.lane(namespace).lane, wake)
    }

    /// The result of a read that was joined. Waits for it, or makes it, unless
    /// [`Joined::is_done`].
    pub(super) fn finish(&self, joined: Joined, namespace: &Namespace, kv: &Kv) -> ReadResult {
        let _in_lane = InLane { namespaces: self, namespace, lane: Arc::clone(joined.lane()) };
        joined.finish(namespace, kv)
    }

    /// Stores a value.
    pub(super) fn store(
        &self,
        namespace: &Namespace,
        key: &str,
        value: &Secret,
        kv: &Kv,
    ) -> Result<(), KvError> {
        let lane = self.lane(namespace);
        lane.lane.change(key, Some(value.duplicate()), namespace, kv).map(|_| ())
    }

    /// Deletes a value, and says whether there was one.
    pub(super) fn delete(
        &self,
        namespace: &Namespace,
        key: &str,
        kv: &Kv,
    ) -> Result<bool, KvError> {
        self.lane(namespace).lane.change(key, None, namespace, kv)
    }
}

/// Of so many lanes it is remembered that several callers share their reads.
const MOST_REMEMBERED: usize = 256;

/// A lane in use. It is kept only as long as somebody uses it, or something worth keeping
/// was learnt of it.
struct InLane<'a> {
    namespaces: &'a Namespaces,
    namespace: &'a Namespace,
    lane: Arc<Lane>,
}

impl Drop for InLane<'_> {
    fn drop(&mut self) {
        let mut lanes = self.namespaces.lanes();
        // The table's and this one: nobody else has it, or can get it meanwhile.
        let is_unused = Arc::strong_count(&self.lane) == 2;
        let is_shared = self.lane.reads().are_several() && lanes.len() <= MOST_REMEMBERED;
        if is_unused && !is_shared && self.lane.changes().habits.are_usual() {
            lanes.remove(self.namespace);
        }
    }
}
