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

use crate::backend::{BackendStatus, RenewalStatus};
use crate::error::VaultError;
use crate::metadata::Filter;
use crate::model::{CredentialRef, Namespace, RuntimeEnvEntry};
use crate::peer::Peer;
use crate::service::VaultService;

pub use access::Access;
use answer::JsonPage;
pub use answer::{Answer, Header};
pub use body::MAX_VALUE_BYTES;
use path::Resource;

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
    /// Whether there is an `Origin` header. Only browsers send it.
    pub has_origin: bool,
    /// The process or address that sent it.
    pub peer: Peer,
}

/// A request that is valid, as far as its head tells, and allowed.
#[derive(Debug)]
pub enum Call {
    /// The state of the service.
    Health,
    /// A listing, from this credential on.
    List(Filter, Option<CredentialRef>),
    /// The value of a credential.
    Get(CredentialRef),
    /// Whether there is a credential.
    Head(CredentialRef),
    /// Stores what the body says.
    Put(CredentialRef),
    /// Deletes a credential.
    Delete(CredentialRef),
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

    /// Checks whether the peer of a new connection may ask for anything.
    ///
    /// # Errors
    ///
    /// The answer for that peer.
    pub fn admit(&self, peer: Peer) -> Result<(), Answer> {
        self.access.admit(peer)
    }

    /// Turns the head of a request into the call that it asks for.
    ///
    /// # Errors
    ///
    /// The answer, if the head alone decides it: mostly an error, but also the empty list of a
    /// namespace that cannot exist.
    pub fn resolve(&self, head: &RequestHead<'_>) -> Result<Call, Answer> {
        access::check(head)?;
        match (Resource::parse(head.target)?, &head.method) {
            (Resource::Credential { namespace, key }, method) => {
                let at = Namespace::new(namespace).and_then(|name| CredentialRef::new(name, key));
                credential_call(method, at, head.content_type)
            }
            (Resource::Health, Method::Get) => Ok(Call::Health),
            (Resource::Credentials, Method::Get) => Ok(Call::List(Filter::All, None)),
            (Resource::RuntimeEnv, Method::Get) => Ok(Call::List(Filter::RuntimeEnv, None)),
            (Resource::Namespace(name), Method::Get) => match Namespace::new(name) {
                Ok(namespace) => Ok(Call::List(Filter::Namespace(namespace), None)),
                Err(_) => Err(JsonPage::new(true).into_answer(None)),
            },
            _ => Err(Answer::method_not_allowed("GET")),
        }
    }

    /// Whether the call may wait for a disk, a network, or another process.
    #[must_use]
    pub fn may_block(&self, call: &Call) -> bool {
        match call {
            Call::Put(_) | Call::Delete(_) => true,
            Call::Get(_) | Call::Head(_) => self.service.reads_may_block(),
            Call::Health | Call::List(..) => self.service.listings_may_block(),
        }
    }

    /// Carries the call out. `body` is the body of the request; only a PUT has one.
    #[must_use]
    pub fn answer(&self, call: &Call, body: &[u8]) -> Answer {
        self.carry_out(call, body).unwrap_or_else(|error| match call {
            Call::Head(_) => Answer::from(&error).without_body(),
            _ => Answer::from(&error),
        })
    }

    fn carry_out(&self, call: &Call, body: &[u8]) -> Result<Answer, VaultError> {
        Ok(match call {
            Call::Health => self.health()?,
            Call::List(filter, from) => self.list(filter, from.as_ref())?,
            Call::Get(at) => Answer::value(&self.service.get(at)?),
            Call::Head(at) => Answer::empty(if self.service.has(at)? { 200 } else { 404 }),
            Call::Put(at) => match body::parse(body) {
                Ok(request) => {
                    self.service.store(at, &request)?;
                    done("stored")
                }
                Err(problems) => Answer::unprocessable(&problems),
            },
            Call::Delete(at) => {
                self.service.delete(at)?;
                done("deleted")
            }
        })
    }

    /// A page of a listing. Another service's listing arrives whole, so it is one page.
    fn list(&self, filter: &Filter, from: Option<&CredentialRef>) -> Result<Answer, VaultError> {
        let mut page = JsonPage::new(from.is_none());
        let mut rest = None;
        match (&self.service.metadata, filter) {
            (Some(metadata), _) => metadata.page(filter, from, &mut |record| {
                if page.is_full() {
                    rest = Some(Box::new(Call::List(filter.clone(), Some(record.at))));
                    return ControlFlow::Break(());
                }
                match filter {
                    Filter::RuntimeEnv => page.push(&RuntimeEnvEntry::from(record)),
                    Filter::All | Filter::Namespace(_) => page.push(&self.service.summary(record)),
                }
                ControlFlow::Continue(())
            })?,
            (None, Filter::RuntimeEnv) => self.service.runtime_env(&mut |it| page.push(&it))?,
            (None, Filter::All) => self.service.summaries(None, &mut |it| page.push(&it))?,
            (None, Filter::Namespace(name)) => {
                self.service.summaries(Some(name), &mut |it| page.push(&it))?;
            }
        }
        Ok(page.into_answer(rest))
    }

    fn health(&self) -> Result<Answer, VaultError> {
        #[derive(Serialize)]
        struct Health<'a> {
            status: &'a str,
            backend: &'a str,
            credential_count: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            upstream: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            renewal: Option<RenewalStatus>,
        }
        let BackendStatus { works, renewal, upstream, credential_count } =
            self.service.backend_status();
        let health = Health {
            status: if works { "ok" } else { "degraded" },
            backend: self.service.backend(),
            credential_count: self.service.count()?.or(credential_count).unwrap_or(0),
            upstream: upstream.map(|socket| socket.display().to_string()),
            renewal,
        };
        Ok(Answer::json_of(200, &health))
    }
}

/// The call of `method` on a credential, whose name may be invalid.
fn credential_call(
    method: &Method,
    at: Result<CredentialRef, VaultError>,
    content_type: Option<&str>,
) -> Result<Call, Answer> {
    match (method, at) {
        (Method::Get, Ok(at)) => Ok(Call::Get(at)),
        (Method::Get, Err(_)) => Err(Answer::credential_not_found()),
        (Method::Head, Ok(at)) => Ok(Call::Head(at)),
        (Method::Head, Err(_)) => Err(Answer::empty(404)),
        (Method::Put, Ok(at)) => body::check_content_type(content_type).map(|()| Call::Put(at)),
        (Method::Put, Err(error)) => Err(Answer::from(&error)),
        (Method::Delete, Ok(at)) => Ok(Call::Delete(at)),
        // A credential of an invalid name cannot exist: there is nothing to delete.
        (Method::Delete, Err(_)) => Err(done("deleted")),
        _ => Err(Answer::method_not_allowed("GET, HEAD, PUT, DELETE")),
    }
}

/// `{"status": ...}`, the answer to a change.
fn done(status: &str) -> Answer {
    Answer::json_of(200, &json!({ "status": status }))
}
