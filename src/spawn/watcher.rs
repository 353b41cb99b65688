//! [`Watcher`]: detects changes of a process's credentials.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::{ClientError, VaultClient};
use crate::model::CredentialRef;
use crate::time::Timestamp;

use super::fetch::fetch;
use super::selection::Plan;
use super::{RuntimeEnv, Selection, SpawnError};

/// The time of each credential's last store, by namespace and key.
type Listing = BTreeMap<(String, String), Timestamp>;

/// After a change, each look reads the values again for this long. The vault commits the
/// metadata of a store before its backend has the value, and waits up to 30 s for the slowest
/// one, a keyring that is being unlocked.
const SETTLING: Duration = Duration::from_secs(35);

/// Follows a [`Selection`]. It looks at the vault's listing, and reads values only after a
/// store of one of the selected credentials.
#[derive(Debug)]
pub struct Watcher {
    selection: Selection,
    /// All that the vault lists: while it stays the same, so does all else.
    listing: Listing,
    plan: Plan,
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
        // A store between the requests shows as a change at the next look.
        let listing = list(client)?;
        let plan = selection.plan(client)?;
        let current = Arc::new(fetch(client, &plan)?);
        Ok(Self { selection, listing, plan, unsettled_until: None, current })
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
        let listing = list(client)?;
        let is_settled = self.unsettled_until.is_none_or(|until| until < now);
        if listing == self.listing && is_settled {
            return Ok(None);
        }
        let plan = self.selection.plan(client)?;
        let key = |at: &CredentialRef| (at.namespace().as_str().to_owned(), at.key().to_owned());
        let is_stored = plan.values().map(key).any(|at| listing.get(&at) != self.listing.get(&at));
        let is_changed = is_stored || plan != self.plan;
        let mut fetched = None;
        if is_changed || !is_settled {
            fetched = Some(fetch(client, &plan)?).filter(|it| !it.is_same_as(&self.current));
        }
        if is_changed {
            self.unsettled_until = Some(now + SETTLING);
        }
        (self.listing, self.plan) = (listing, plan);
        let Some(fetched) = fetched else { return Ok(None) };
        self.current = Arc::new(fetched);
        Ok(Some(&self.current))
    }
}

fn list(client: &VaultClient) -> Result<Listing, ClientError> {
    let summaries = client.list_all()?.into_iter();
    Ok(summaries.map(|it| ((it.namespace, it.key), it.updated_at)).collect())
}
