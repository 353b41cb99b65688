//! The router: a request's method and path to a call of the service, and the outcome to
//! an answer. It knows nothing of sockets.

mod access;
mod answer;
mod path;
mod store_body;

use std::sync::Arc;

use tiny_http::Method;

use crate::backend::{BackendStatus, RenewalStatus};
use crate::error::VaultError;
use crate::model::{CredentialRef, Namespace};
use crate::peer::Peer;
use crate::service::VaultService;

pub use access::Access;
pub use answer::{Answer, Body};
use path::{Path, Resource};
pub use store_body::MAX_VALUE_BYTES;

/// What the router needs to know of a request before its body has come.
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
    /// Whether there is an `Origin` header, as only browsers send it.
    pub has_origin: bool,
    /// Who sent it.
    pub peer: Peer,
}

/// A request that has been understood and allowed, and waits to be carried out.
#[derive(Debug)]
pub struct Call(CallKind);

#[derive(Debug)]
enum CallKind {
    Health,
    List(Option<Namespace>),
    /// A listing of a namespace that cannot exist, so that nothing is in it.
    ListNothing,
    RuntimeEnv,
    Get(CredentialRef),
    Head(CredentialRef),
    Put(CredentialRef),
    Delete(CredentialRef),
    /// A delete of a name that cannot exist: there is nothing to delete.
    DeleteNothing,
}

/// Answers requests from one [`VaultService`].
#[derive(Debug)]
pub struct Router {
    service: Arc<VaultService>,
    access: Access,
}

impl Router {
    /// Routes to `service` what `access` allows.
    #[must_use]
    pub fn new(service: Arc<VaultService>, access: Access) -> Self {
        Self { service, access }
    }

    /// Whether the peer of a new connection may ask for anything.
    ///
    /// # Errors
    ///
    /// The answer that tells it so.
    pub fn admit(&self, peer: crate::peer::Peer) -> Result<(), Answer> {
        self.access.admit(peer)
    }

    /// Understands a request, from its head alone.
    ///
    /// # Errors
    ///
    /// The answer, when the request cannot be carried out whatever its body says.
    pub fn resolve(&self, head: &RequestHead<'_>) -> Result<Call, Answer> {
        self.access.check(head)?;
        match Path::parse(head.target)? {
            Path::Resource(resource) => resource_call(resource, head).map(Call),
            Path::RedirectTo(location) => Err(Answer::redirect(&location)),
        }
    }

    /// Whether carrying out the call may wait for a disk, a network, or another process.
    #[must_use]
    pub fn may_block(&self, call: &Call) -> bool {
        match call.0 {
            CallKind::Put(_) | CallKind::Delete(_) => true,
            CallKind::Get(_) | CallKind::Head(_) => self.service.reads_may_block(),
            CallKind::Health | CallKind::List(_) | CallKind::RuntimeEnv => {
                self.service.listings_may_block()
            }
            CallKind::ListNothing | CallKind::DeleteNothing => false,
        }
    }

    /// Carries the call out.
    #[must_use]
    pub fn answer(&self, call: &Call, body: &[u8]) -> Answer {
        self.carry_out(&call.0, body).unwrap_or_else(|error| match call.0 {
            CallKind::Head(_) => Answer::from(&error).without_body(),
            _ => Answer::from(&error),
        })
    }

    fn carry_out(&self, call: &CallKind, body: &[u8]) -> Result<Answer, VaultError> {
        Ok(match call {
            CallKind::Health => self.health()?,
            CallKind::List(namespace) => self.list(namespace.as_ref())?,
            CallKind::ListNothing => Answer::json(200, b"[]".to_vec()),
            CallKind::RuntimeEnv => self.runtime_env()?,
            CallKind::Get(at) => answer::value(&self.service.get(at)?),
            CallKind::Head(at) => Answer::empty(if self.service.has(at)? { 200 } else { 404 }),
            CallKind::Put(at) => match store_body::parse(body) {
                Ok(request) => {
                    self.service.store(at, &request)?;
                    Answer::json(200, br#"{"status":"stored"}"#.to_vec())
                }
                Err(problems) => Answer::unprocessable(&problems),
            },
            CallKind::Delete(at) => {
                self.service.delete(at)?;
                answer::deleted()
            }
            CallKind::DeleteNothing => answer::deleted(),
        })
    }

    fn health(&self) -> Result<Answer, VaultError> {
        #[derive(serde::Serialize)]
        struct Health<'a> {
            status: &'a str,
            backend: &'a str,
            credential_count: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            upstream: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            renewal: Option<Renewal>,
        }
        #[derive(serde::Serialize)]
        struct Renewal {
            state: &'static str,
            ttl_seconds: Option<u64>,
            last_error: Option<String>,
        }
        let BackendStatus { works, renewal, upstream, credential_count } =
            self.service.backend_status();
        Ok(Answer::json_of(&Health {
            status: if works { "ok" } else { "degraded" },
            backend: self.service.backend(),
            credential_count: self.service.count()?.or(credential_count).unwrap_or(0),
            upstream: upstream.map(|socket| socket.display().to_string()),
            renewal: renewal.map(|RenewalStatus { state, ttl, last_error }| Renewal {
                state: state.as_str(),
                ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
                last_error,
            }),
        }))
    }

    fn list(&self, namespace: Option<&Namespace>) -> Result<Answer, VaultError> {
        let mut list = answer::JsonList::default();
        self.service.summaries(namespace, &mut |summary| list.push(&summary))?;
        Ok(list.into_answer())
    }

    fn runtime_env(&self) -> Result<Answer, VaultError> {
        let mut list = answer::JsonList::default();
        self.service.runtime_env(&mut |entry| list.push(&entry))?;
        Ok(list.into_answer())
    }
}

/// What a method means on a resource.
fn resource_call(resource: Resource, head: &RequestHead<'_>) -> Result<CallKind, Answer> {
    let method = &head.method;
    let only_get = |call: CallKind| match method {
        Method::Get => Ok(call),
        _ => Err(Answer::method_not_allowed("GET")),
    };
    match resource {
        Resource::Health => only_get(CallKind::Health),
        Resource::Credentials => only_get(CallKind::List(None)),
        // No credential can be in a namespace of an invalid name.
        Resource::Namespace(name) => only_get(
            Namespace::new(name).map_or(CallKind::ListNothing, |n| CallKind::List(Some(n))),
        ),
        Resource::RuntimeEnv => only_get(CallKind::RuntimeEnv),
        Resource::Credential { namespace, key } => {
            let at = Namespace::new(namespace).and_then(|name| CredentialRef::new(name, key));
            match (method, at) {
                (Method::Get, Ok(at)) => Ok(CallKind::Get(at)),
                (Method::Get, Err(_)) => Err(Answer::credential_not_found()),
                (Method::Head, Ok(at)) => Ok(CallKind::Head(at)),
                (Method::Head, Err(_)) => Err(Answer::empty(404)),
                (Method::Put, Ok(at)) => {
                    store_body::check_content_type(head.content_type)?;
                    Ok(CallKind::Put(at))
                }
                (Method::Put, Err(error)) => Err(Answer::from(&error)),
                (Method::Delete, Ok(at)) => Ok(CallKind::Delete(at)),
                (Method::Delete, Err(_)) => Ok(CallKind::DeleteNothing),
                _ => Err(Answer::method_not_allowed("GET, HEAD, PUT, DELETE")),
            }
        }
    }
}
