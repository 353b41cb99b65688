//! The router turns a request into a call of the service, and the outcome into an answer. It
//! knows nothing of sockets.

mod access;
mod answer;
mod body;
mod path;

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use tiny_http::Method;
use zeroize::Zeroizing;

use crate::backend::{BackendStatus, RenewalStatus};
use crate::caller::Peer;
use crate::error::VaultError;
use crate::metadata::Filter;
use crate::model::{CredentialRef, Namespace, RecordSummary, RuntimeEnvEntry};
use crate::policy::Operation;
use crate::service::VaultService;

pub use access::Access;
use access::Rights;
use answer::JsonPage;
pub use answer::{Answer, Header};
pub use body::MAX_VALUE_BYTES;

/// The part of a request that the router needs before the body has arrived.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: Method,
    /// The request target in origin form, percent-encoded, with its query.
    pub target: &'a str,
    /// The `Content-Type` header.
    pub content_type: Option<&'a str>,
    /// The `Host` header.
    pub host: Option<&'a str>,
    /// Whether a web page has sent it, by the `Origin` and `Sec-Fetch-Site` headers of browsers.
    pub is_of_web_page: bool,
    /// The token of an `Authorization: Bearer` header (RFC 6750).
    pub bearer: Option<&'a str>,
    /// The process or address that sent it.
    pub peer: &'a Peer,
}

/// A request that is valid, as far as its head tells, and allowed.
#[derive(Debug)]
pub enum Call {
    /// The state of the service.
    Health,
    /// A listing, with all metadata if the flag is set, from this credential on.
    List(Filter, bool, Option<CredentialRef>),
    /// The value of a credential; with a peer, for the unit that this one stands for.
    Get(CredentialRef, Option<Box<Peer>>),
    /// Whether there is a credential.
    Head(CredentialRef),
    /// Stores what the body says.
    Put(CredentialRef),
    /// Notes the result of a validator, which the body has.
    Validate(CredentialRef),
    /// Deletes a credential.
    Delete(CredentialRef),
}

/// The subject of a request.
#[derive(Debug, Clone, Copy)]
struct About<'a> {
    namespace: Option<&'a Namespace>,
    key: Option<&'a str>,
}

impl<'a> From<&'a CredentialRef> for About<'a> {
    fn from(at: &'a CredentialRef) -> Self {
        Self { namespace: Some(at.namespace()), key: Some(at.key()) }
    }
}

impl Call {
    /// The right that it takes, and on what. `None` if everyone who may connect has it.
    fn needs(&self) -> Option<(Operation, About<'_>)> {
        let nothing = About { namespace: None, key: None };
        Some(match self {
            Self::Health => return None,
            Self::List(Filter::All, ..) => (Operation::List, nothing),
            Self::List(Filter::Namespace(namespace), ..) => {
                (Operation::List, About { namespace: Some(namespace), key: None })
            }
            Self::List(Filter::RuntimeEnv, ..) => (Operation::Read, nothing),
            Self::Get(at, _) => (Operation::Read, at.into()),
            Self::Head(at) => (Operation::List, at.into()),
            Self::Put(at) | Self::Validate(at) => (Operation::Write, at.into()),
            Self::Delete(at) => (Operation::Delete, at.into()),
        })
    }

    /// The one whose rights count, if `peer` has sent the request.
    fn on_behalf_of<'a>(&'a self, peer: &'a Peer) -> &'a Peer {
        match self {
            Self::Get(_, Some(unit)) => unit,
            _ => peer,
        }
    }
}

/// Answers requests from one [`VaultService`].
#[derive(Debug)]
pub struct Router {
    service: Arc<VaultService>,
    access: Access,
}

impl Router {
    /// A router to `service`, for the peers that `access` allows.
    #[must_use]
    pub fn new(service: Arc<VaultService>, access: Access) -> Self {
        Self { service, access }
    }

    /// The rules for those who connect.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Turns the head of a request into the call that it asks for.
    ///
    /// # Errors
    ///
    /// The answer, if the head alone decides it: mostly an error, but also the description of the
    /// interface, and the empty list of a namespace that cannot exist. With status 401 or 403, the body must not be read.
    pub fn resolve(&self, head: &RequestHead<'_>) -> Result<Call, Answer> {
        self.access.check(head)?;
        let call = path::call(head)?;
        if let Call::Get(_, Some(_)) = call {
            self.access.check_delegate(head.peer)?;
        }
        if let Some((operation, about)) = call.needs() {
            self.access.rights(call.on_behalf_of(head.peer)).permit(operation, about)?;
        }
        Ok(call)
    }

    /// Whether the call may wait for a disk, a network, or another process.
    #[must_use]
    pub fn may_block(&self, call: &Call) -> bool {
        match call {
            Call::Put(_) | Call::Validate(_) | Call::Delete(_) => true,
            Call::Get(..) | Call::Head(_) => self.service.reads_may_block(),
            Call::Health => self.service.metadata().is_none() && self.service.reads_may_block(),
            Call::List(..) => self.service.listings_may_block(),
        }
    }

    /// Carries the call out. `body` is the body of the request; only a PUT has one.
    #[must_use]
    pub fn answer(&self, call: &Call, body: &[u8], peer: &Peer) -> Answer {
        let answer = self.carry_out(call, body, &self.access.rights(call.on_behalf_of(peer)));
        answer.unwrap_or_else(|error| match call {
            Call::Head(_) => Answer { body: Zeroizing::default(), ..error },
            _ => error,
        })
    }

    fn carry_out(&self, call: &Call, body: &[u8], rights: &Rights<'_>) -> Result<Answer, Answer> {
        Ok(match call {
            Call::Health => self.health(rights)?,
            Call::List(filter, is_whole, from) => {
                self.list(filter, *is_whole, from.as_ref(), rights)?
            }
            Call::Get(at, _) => self.get(at, rights)?,
            Call::Head(at) => Answer::empty(if self.service.has(at)? { 200 } else { 404 }),
            Call::Put(at) => match body::parse(body) {
                Ok(request) => {
                    change(call, rights, || self.service.store(at, &request))?;
                    done("stored")
                }
                Err(problems) => Answer::error(422, &problems),
            },
            Call::Validate(at) => match body::parse_validity(body) {
                Ok(result) => {
                    let mut is_same = true;
                    change(call, rights, || {
                        is_same = self.service.note_validity(at, result)?;
                        Ok(())
                    })?;
                    let stored_again = || Answer::error(409, "the credential was stored again");
                    if is_same { done("noted") } else { stored_again() }
                }
                Err(problem) => Answer::error(422, &[problem]),
            },
            Call::Delete(at) => {
                change(call, rights, || self.service.delete(at).map(drop))?;
                done("deleted")
            }
        })
    }

    /// The value of a credential, if its `allowed_consumers` permit it. Someone who may not list
    /// the namespace does not learn whether there is a credential.
    fn get(&self, at: &CredentialRef, rights: &Rights<'_>) -> Result<Answer, Answer> {
        let (about, namespace) = (About::from(at), at.namespace().as_str());
        let mut reason = rights.permit(Operation::Read, about)?;
        let value = if reason.consumer.is_none() {
            self.service.get(at)
        } else {
            let mut decided = Ok(());
            let value = self.service.get_if(at, |allowed_consumers| {
                let decision = rights.decide(Operation::Read, Some(namespace), allowed_consumers);
                decided = decision.map(|it| reason = it);
                decided.is_ok()
            });
            decided.map_err(|refusal| rights.refuse(Operation::Read, about, &refusal))?;
            value
        };
        let outcome = match &value {
            Ok(_) => "allowed",
            Err(VaultError::NotFound(_)) => "missing",
            Err(_) => "failed",
        };
        rights.record(Operation::Read, outcome, about, reason)?;
        match value {
            Err(VaultError::NotFound(_)) if !rights.may_list(namespace) => {
                Err(Answer::error(403, &rights.not_for_this().to_string()))
            }
            value => Ok(Answer::value(&value?)),
        }
    }

    /// A page of a listing. Another service's listing arrives whole, so it is one page.
    /// It shows the namespaces that the caller may list; for environment variables, those whose
    /// values it may read. With `is_whole`, it shows all metadata. The first page makes the copy of
    /// shared metadata fresh; if that fails, `Age` (RFC 9111, 5.1) has the age of what is listed.
    fn list(
        &self,
        filter: &Filter,
        is_whole: bool,
        from: Option<&CredentialRef>,
        rights: &Rights<'_>,
    ) -> Result<Answer, VaultError> {
        let namespace = match filter {
            Filter::Namespace(name) => Some(name),
            Filter::All | Filter::RuntimeEnv => None,
        };
        let age = if from.is_none() { self.service.refresh(namespace)? } else { None };
        let mut page = JsonPage::new(from.is_none());
        let mut rest = None;
        match (self.service.metadata(), filter) {
            (Some(metadata), _) => metadata.page(filter, from, &mut |record| {
                if page.is_full() {
                    let from = Some(record.at);
                    rest = Some(Box::new(Call::List(filter.clone(), is_whole, from)));
                    return ControlFlow::Break(());
                }
                let namespace = record.at.namespace().as_str();
                let consumers = &record.allowed_consumers;
                match filter {
                    Filter::RuntimeEnv if rights.may_read(namespace, consumers) => {
                        page.push(&RuntimeEnvEntry::from(record));
                    }
                    Filter::All | Filter::Namespace(_) if rights.may_list(namespace) => {
                        let mut record = RecordSummary::from(record);
                        record.summary = self.service.summary(record.summary);
                        if is_whole { page.push(&record) } else { page.push(&record.summary) }
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            })?,
            (None, Filter::RuntimeEnv) => self.service.runtime_env(&mut |it| page.push(&it))?,
            (None, _) if is_whole => {
                self.service.keeper().records()?.iter().for_each(|it| page.push(it));
            }
            (None, Filter::All | Filter::Namespace(_)) => {
                self.service.summaries(namespace, &mut |it| page.push(&it))?;
            }
        }
        let answer = page.into_answer(rest);
        Ok(age.into_iter().fold(answer, |it, age| it.with_header("Age", age.to_string())))
    }

    /// The number of the credentials that the caller may list.
    fn count(&self, rights: &Rights<'_>) -> Result<Option<u64>, VaultError> {
        let Some(metadata) = self.service.metadata().filter(|_| rights.are_restricted()) else {
            return self.service.count();
        };
        let mut count = 0;
        metadata.for_each(&Filter::All, &mut |record| {
            count += u64::from(rights.may_list(record.at.namespace().as_str()));
        })?;
        Ok(Some(count))
    }

    fn health(&self, rights: &Rights<'_>) -> Result<Answer, VaultError> {
        #[derive(Serialize)]
        struct Health<'a> {
            status: &'a str,
            backend: &'a str,
            credential_count: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            upstream: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            renewal: Option<RenewalStatus>,
            #[serde(skip_serializing_if = "Option::is_none")]
            node: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            metadata_age: Option<u64>,
        }
        let BackendStatus { works, renewal, upstream, credential_count } =
            self.service.backend_status();
        let shared = self.service.shared();
        let health = Health {
            status: if works { "ok" } else { "degraded" },
            backend: self.service.backend(),
            credential_count: self.count(rights)?.or(credential_count).unwrap_or(0),
            upstream: upstream.map(|socket| socket.display().to_string()),
            renewal,
            node: shared.map(|it| it.backend().node()),
            metadata_age: shared.and_then(|it| it.age()),
        };
        Ok(Answer::json_of(200, &health))
    }
}

/// Makes a change that is put on record before, so that none can be missing there.
fn change(
    call: &Call,
    rights: &Rights<'_>,
    carry_out: impl FnOnce() -> Result<(), VaultError>,
) -> Result<(), Answer> {
    let (operation, about) = call.needs().expect("a change needs a right");
    let reason = rights.permit(operation, about)?;
    rights.record(operation, "allowed", about, reason)?;
    Ok(carry_out().inspect_err(|_| {
        // The caller is told of the failure, whether or not that can be recorded.
        let _ = rights.record(operation, "failed", about, reason);
    })?)
}

/// `{"status": ...}`, the answer to a change.
fn done(status: &str) -> Answer {
    Answer::json_of(200, &json!({ "status": status }))
}
