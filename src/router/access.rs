//! Access: the one place that decides by the peer whether a request may be carried out, and
//! that puts the decision on record.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::audit::{AuditLog, Entry};
use crate::caller::{Caller, Peer, Supervisor};
use crate::model::Namespace;
use crate::peer::{Process, is_unmapped};
use crate::policy::{Grant, Operation, Policy, PolicyError, Refusal};
use crate::secret::Secret;
use crate::time::Timestamp;

use super::{About, Answer, RequestHead};

/// The access rules.
///
/// Over the Unix socket, the service's own user and root are admitted, and with a policy the
/// consumers that it names. Over TCP, which is for development, a request needs the bearer token,
/// if there is one, and the client must have meant this machine: a request whose `Host` is not
/// localhost or a loopback address, or that a web page has sent, is refused.
#[derive(Debug)]
pub struct Access {
    owner_uid: u32,
    /// The file of the policy, and the policy in force.
    policy: Option<(PathBuf, RwLock<Arc<Policy>>)>,
    audit: Option<AuditLog>,
    supervisor: Option<Supervisor>,
    bearer: Option<Secret>,
}

const ROOT: u32 = 0;

impl Access {
    /// The rules for a service that runs as `owner_uid`, without a policy.
    #[must_use]
    pub fn of_owner(owner_uid: u32) -> Self {
        Self { owner_uid, policy: None, audit: None, supervisor: None, bearer: None }
    }

    /// The same with the policy in a file.
    ///
    /// # Errors
    ///
    /// [`PolicyError`].
    pub fn with_policy(self, path: &Path) -> Result<Self, PolicyError> {
        let current = RwLock::new(Arc::new(Policy::load(path, self.owner_uid)?));
        let policy = Some((path.to_owned(), current));
        Ok(Self { policy, supervisor: Supervisor::of_this_process(), ..self })
    }

    /// The same with a file that every decision about a value is recorded in.
    ///
    /// # Errors
    ///
    /// The error of [`AuditLog::open`].
    pub fn with_audit_log(self, path: &Path) -> io::Result<Self> {
        Ok(Self { audit: Some(AuditLog::open(path)?), ..self })
    }

    /// The same with a token (RFC 6750) that every request over TCP must have.
    #[must_use]
    pub fn with_bearer(self, token: Option<Secret>) -> Self {
        Self { bearer: token, ..self }
    }

    /// Reads the policy again, and opens the audit log again if it was rotated. If the policy
    /// has an error, the old one stays; the log of the service has the error.
    pub fn reload(&self) {
        if let Some((path, current)) = &self.policy {
            match Policy::load(path, self.owner_uid) {
                Ok(policy) => {
                    log::info!("the policy was read again: {policy}");
                    *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
                }
                Err(error) => log::error!("the old policy stays in force: {error}"),
            }
        }
        if let Some(audit) = &self.audit
            && let Err(error) = audit.reopen()
        {
            log::error!("the audit log cannot be opened again, the old file is used: {error}");
        }
    }

    /// The facts about the process at the other end that the policy and the audit log need.
    pub(crate) fn identify(&self, stream: &impl AsFd) -> io::Result<Peer> {
        let caller = if self.policy.is_some() || self.audit.is_some() {
            Caller::across(stream, self.supervisor.as_ref())
        } else {
            Process::across(stream).map(Caller::from)
        };
        caller.map(Peer::Process)
    }

    /// Whether the peer of a new connection may ask for anything.
    pub(crate) fn admit(&self, peer: &Peer) -> Result<(), Answer> {
        let Peer::Process(caller) = peer else { return Ok(()) };
        let uid = caller.process.uid;
        let refusal = if is_unmapped(uid) {
            "the service cannot tell your user from others: the user namespace does not map it"
        } else if let Some(policy) = self.rights(peer).policy {
            if policy.admits(caller) {
                return Ok(());
            }
            "the policy of this vault has no consumer that matches this process"
        } else if self.is_owner(peer) {
            return Ok(());
        } else {
            "this vault answers only its own user and root; run as that user"
        };
        log::warn!("refused a connection of {peer}: {refusal}");
        Err(Answer::error(403, refusal))
    }

    /// Whether the peer is the service's own user or root.
    pub(crate) fn is_owner(&self, peer: &Peer) -> bool {
        let Peer::Process(Caller { process, .. }) = peer else { return false };
        [self.owner_uid, ROOT].contains(&process.uid) && !is_unmapped(process.uid)
    }

    /// Whether the peer may ask on behalf of a systemd unit.
    pub(super) fn check_delegate(&self, peer: &Peer) -> Result<(), Answer> {
        let detail = if !self.is_owner(peer) {
            "only the user of this vault and root may ask on behalf of a unit"
        } else if self.policy.is_none() {
            "a unit gets what the policy gives it, and this vault has none; give it --policy FILE"
        } else {
            return Ok(());
        };
        Err(Answer::error(403, detail))
    }

    /// Whether a request may come from where it comes from.
    pub(super) fn check(&self, head: &RequestHead<'_>) -> Result<(), Answer> {
        let Peer::Tcp(_) = head.peer else { return Ok(()) };
        if head.is_of_web_page {
            return Err(Answer::error(403, "requests from web pages are refused"));
        }
        if !head.host.is_some_and(is_loopback) {
            return Err(Answer::error(403, "the Host must be localhost or a loopback address"));
        }
        match &self.bearer {
            Some(token) if !head.bearer.is_some_and(|given| is_same(given, token.expose())) => {
                let detail = "the header `Authorization: Bearer TOKEN` is missing or wrong; \
                              the service printed the token when it started";
                Err(Answer::error(401, detail).with_header("WWW-Authenticate", "Bearer"))
            }
            _ => Ok(()),
        }
    }

    /// The rights of the peer of a request, by the present policy.
    pub(super) fn rights<'a>(&'a self, peer: &'a Peer) -> Rights<'a> {
        let caller = match peer {
            Peer::Process(caller) => Some(caller),
            Peer::Tcp(_) => None,
        };
        let policy = self.policy.as_ref().map(|(_, current)| {
            Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner))
        });
        Rights { access: self, caller, policy }
    }
}

/// The rights of one caller.
pub(super) struct Rights<'a> {
    access: &'a Access,
    caller: Option<&'a Caller>,
    policy: Option<Arc<Policy>>,
}

impl Rights<'_> {
    /// Whether the operation is allowed in the namespace, or, without one, in any; with the
    /// `allowed_consumers` of a credential, on that credential.
    pub(super) fn decide(
        &self,
        operation: Operation,
        namespace: Option<&str>,
        allowed_consumers: &[String],
    ) -> Result<Grant<'_>, Refusal> {
        match (&self.policy, self.caller) {
            (Some(policy), Some(caller)) => {
                policy.decide(caller, operation, namespace, allowed_consumers)
            }
            _ => Ok(Grant { consumer: None, rule: None }),
        }
    }

    /// The same for a request; a refusal is put on record, and answered.
    pub(super) fn permit(
        &self,
        operation: Operation,
        about: About<'_>,
    ) -> Result<Grant<'_>, Answer> {
        self.decide(operation, about.namespace.map(Namespace::as_str), &[])
            .map_err(|refusal| self.refuse(operation, about, &refusal))
    }

    /// Whether a listing shows the namespace.
    pub(super) fn may_list(&self, namespace: &str) -> bool {
        self.decide(Operation::List, Some(namespace), &[]).is_ok()
    }

    /// Whether the caller may read a credential that names these consumers.
    pub(super) fn may_read(&self, namespace: &str, allowed_consumers: &[String]) -> bool {
        self.decide(Operation::Read, Some(namespace), allowed_consumers).is_ok()
    }

    /// Whether the caller needs a rule for what it does.
    pub(super) fn are_restricted(&self) -> bool {
        match (&self.policy, self.caller) {
            (Some(policy), Some(caller)) => !policy.is_owner(caller),
            _ => false,
        }
    }

    /// The refusal of a credential that may or may not exist.
    pub(super) fn not_for_this(&self) -> Refusal {
        Refusal::NotForThis { consumers: self.consumers().unwrap_or_default() }
    }

    /// The answer to a refused operation, which is put on record.
    pub(super) fn refuse(
        &self,
        operation: Operation,
        about: About<'_>,
        refusal: &Refusal,
    ) -> Answer {
        let consumers = self.consumers();
        let reason = Grant { consumer: consumers.as_deref(), rule: None };
        match self.record(operation, "refused", about, reason) {
            Ok(()) => Answer::error(403, &refusal.to_string()),
            Err(answer) => answer,
        }
    }

    /// Puts an outcome on record. If that fails, the caller must get the answer that this returns
    /// and nothing else.
    pub(super) fn record(
        &self,
        operation: Operation,
        outcome: &'static str,
        About { namespace, key }: About<'_>,
        reason: Grant<'_>,
    ) -> Result<(), Answer> {
        let Some(audit) = &self.access.audit else { return Ok(()) };
        let process = self.caller.map(|caller| caller.process);
        let exe = self.caller.and_then(|caller| caller.exe.as_ref());
        let entry = Entry {
            ts: Timestamp::now(),
            op: match operation {
                Operation::Write => "store".into(),
                other => other.to_string().into(),
            },
            outcome: outcome.into(),
            namespace: namespace.map(|namespace| namespace.as_str().into()),
            key: key.map(Into::into),
            consumer: reason.consumer.map(Into::into),
            uid: self.caller.and_then(Caller::uid),
            pid: process.and_then(|process| process.pid),
            exe: exe.map(|exe| exe.to_string_lossy()),
            unit: self.caller.and_then(|caller| caller.unit.as_deref()).map(Into::into),
            rule: reason.rule,
            prev: "".into(),
        };
        audit.record(entry).map_err(|error| {
            log::error!("the audit log cannot be written, so nothing is given out: {error}");
            Answer::error(503, "the audit log cannot be written; the log of the service says why")
                .with_header("Retry-After", "1")
        })
    }

    /// The names of all consumers that the caller is.
    fn consumers(&self) -> Option<String> {
        let (policy, caller) = (self.policy.as_ref()?, self.caller?);
        let names: Vec<_> = policy.consumers_of(caller).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// Compares without telling by the time it takes how much is the same.
fn is_same(given: &str, token: &str) -> bool {
    let pairs = given.bytes().zip(token.bytes());
    given.len() == token.len() && pairs.fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Whether a `Host` (RFC 9110, 7.2), with or without a port, names this machine.
fn is_loopback(host: &str) -> bool {
    let (name, port) = if let Some(bracketed) = host.strip_prefix('[') {
        let Some((address, port)) = bracketed.split_once(']') else { return false };
        (address, port.strip_prefix(':').or(port.is_empty().then_some("")))
    } else {
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        (name, Some(port))
    };
    if !port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in
            ["localhost", "LOCALHOST:8765", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8765"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "10.0.0.1",
            "::1.evil",
            "[::1",
            "[::1]evil",
            "[fe80::1]",
            "localhost@evil.example",
            "localhost:evil",
            "127.0.0.1:80:80",
            "[::1]:evil",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
