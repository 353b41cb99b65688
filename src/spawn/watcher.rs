//! [`Watcher`]: detects changes of a process's credentials.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::VaultClient;
use crate::model::MaskedSummary;

use super::fetch::fetch;
use super::selection::Plan;
use super::{RuntimeEnv, Selection, SpawnError};

/// After a change, each look reads the values again for this long. The vault commits the
/// metadata of a store before its backend has the value, and waits up to 30 s for the slowest
/// one, a keyring that is being unlocked.
const SETTLING: Duration = Duration::from_secs(35);

/// Follows a [`Selection`]. It looks at the vault's listing, and reads values only after a
/// store of one of the selected credentials.
#[derive(Debug)]
pub struct Watcher {
    selection: Selection,
    /// The digest of the vault's whole listing: while it stays the same, so does all else.
    listing: u64,
    /// The digest of the plan, and of the listing of what is in it.
    planned: u64,
    unsettled_until: Option<Instant>,
    current: Arc<RuntimeEnv>,
}

impl Watcher {
    /// Reads the values for the first time.
    ///
    /// # Errors
    ///
    /// As [`Selection::fetch`].
    pub fn start(client: &VaultClient, selection: Selection) -> Result<Self, SpawnError> {
        // A store between the two requests shows as a change at the next look.
        let summaries = client.list_all()?;
        let plan = selection.plan(client)?;
        let current = Arc::new(fetch(client, &plan)?);
        let (listing, planned) = (digest(&summaries), digest_of_plan(&plan, &summaries));
        Ok(Self { selection, listing, planned, unsettled_until: None, current })
    }

    /// The variables as of the last look.
    #[must_use]
    pub fn current(&self) -> &Arc<RuntimeEnv> {
        &self.current
    }

    /// Looks once. Returns the new variables if a process would see a difference.
    ///
    /// # Errors
    ///
    /// As [`Selection::fetch`]. Then nothing has changed, and the next look finds the same
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
        let planned = digest_of_plan(&plan, &summaries);
        if planned == self.planned && is_settled {
            self.listing = listing;
            return Ok(None);
        }
        let fetched = fetch(client, &plan)?;
        if planned != self.planned {
            self.unsettled_until = Some(now + SETTLING);
        }
        (self.listing, self.planned) = (listing, planned);
        if fetched.is_same_as(&self.current) {
            return Ok(None);
        }
        self.current = Arc::new(fetched);
        Ok(Some(&self.current))
    }
}

fn digest<'a>(summaries: impl IntoIterator<Item = &'a MaskedSummary>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for summary in summaries {
        (&summary.namespace, &summary.key, summary.updated_at).hash(&mut hasher);
    }
    hasher.finish()
}

fn digest_of_plan(plan: &Plan, summaries: &[MaskedSummary]) -> u64 {
    let planned: HashSet<_> = plan.values().map(|at| (at.namespace().as_str(), at.key())).collect();
    let of_plan = summaries.iter().filter(|it| planned.contains(&(&*it.namespace, &*it.key)));
    let mut hasher = DefaultHasher::new();
    (plan, digest(of_plan)).hash(&mut hasher);
    hasher.finish()
}
