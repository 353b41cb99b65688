//! [`Watcher`]: whether the credentials of a process have changed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::VaultClient;
use crate::model::{CredentialRef, MaskedSummary};
use crate::time::Timestamp;

use super::fetch::fetch;
use super::selection::Plan;
use super::{RuntimeEnv, Selection, SpawnError};

/// For how long after a change the values are read again at each look. The vault commits
/// what it knows of a credential before its backend has the value, and gives the slowest
/// of them, a keyring that is being unlocked, 30 s.
const SETTLING: Duration = Duration::from_secs(35);

/// Follows a [`Selection`]: looks at what the vault lists, and reads values only when
/// something of it was stored anew.
#[derive(Debug)]
pub struct Watcher {
    selection: Selection,
    /// Of the whole listing that was last looked at: as long as it is the same, so is all
    /// else.
    listing: u64,
    versions: Versions,
    unsettled_until: Option<Instant>,
    current: Arc<RuntimeEnv>,
}

/// What goes into which variable, and when each was last stored.
type Versions = BTreeMap<String, (CredentialRef, Option<Timestamp>)>;

impl Watcher {
    /// Reads the values for the first time.
    ///
    /// # Errors
    ///
    /// As [`Selection::fetch`].
    pub fn start(client: &VaultClient, selection: Selection) -> Result<Self, SpawnError> {
        // What is stored between the two requests is seen as a change at the next look.
        let summaries = client.list_all()?;
        let plan = selection.plan(client)?;
        let current = Arc::new(fetch(client, &plan)?);
        Ok(Self {
            selection,
            listing: digest(&summaries),
            versions: versions(plan, &summaries),
            unsettled_until: None,
            current,
        })
    }

    /// What the process should have now.
    #[must_use]
    pub fn current(&self) -> &Arc<RuntimeEnv> {
        &self.current
    }

    /// Looks once. Gives the new variables when a process would see a difference.
    ///
    /// # Errors
    ///
    /// As [`Selection::fetch`]. Nothing has changed then, and the next look finds the same
    /// difference again.
    pub fn look(&mut self, client: &VaultClient) -> Result<Option<&Arc<RuntimeEnv>>, SpawnError> {
        let now = Instant::now();
        let summaries = client.list_all()?;
        let listing = digest(&summaries);
        let is_settled = self.unsettled_until.is_none_or(|until| until < now);
        if listing == self.listing && is_settled {
            return Ok(None);
        }
        let plan = self.selection.plan(client)?;
        let versions = versions(plan.clone(), &summaries);
        if versions == self.versions && is_settled {
            self.listing = listing;
            return Ok(None);
        }
        let fetched = fetch(client, &plan)?;
        if versions != self.versions {
            self.unsettled_until = Some(now + SETTLING);
        }
        (self.listing, self.versions) = (listing, versions);
        if fetched.is_same_as(&self.current) {
            return Ok(None);
        }
        self.current = Arc::new(fetched);
        Ok(Some(&self.current))
    }
}

fn versions(plan: Plan, summaries: &[MaskedSummary]) -> Versions {
    let stored: BTreeMap<(&str, &str), Timestamp> = summaries
        .iter()
        .map(|summary| ((&*summary.namespace, &*summary.key), summary.updated_at))
        .collect();
    plan.into_iter()
        .map(|(name, at)| {
            let time = stored.get(&(at.namespace().as_str(), at.key())).copied();
            (name, (at, time))
        })
        .collect()
}

fn digest(summaries: &[MaskedSummary]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for summary in summaries {
        (&summary.namespace, &summary.key, summary.updated_at).hash(&mut hasher);
    }
    hasher.finish()
}
