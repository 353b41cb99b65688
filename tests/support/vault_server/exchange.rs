//! What goes in and out of the server's logic: a parsed request, an answer, and the ways in
//! which `OpenBao` words a refusal.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::values::{Object, object};

/// A request as it came, its path without the leading `/v1/` and percent-decoded.
#[derive(Default, Clone)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub token: Option<String>,
    pub namespace: String,
    pub wrap_ttl: Option<String>,
    pub content_type: Option<String>,
    pub vault_request: bool,
    pub body: Vec<u8>,
}

impl Call {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// What a request asks of a path: the capability that it needs is named the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Read,
    List,
    Delete,
    Patch,
    /// HEAD: no path here supports it.
    Header,
}

/// A request on its way through the logic.
pub struct Request {
    pub id: String,
    pub operation: Operation,
    /// Relative to the namespace.
    pub path: String,
    /// The namespace's path: empty for the root, otherwise with a slash at the end.
    pub namespace: String,
    pub data: Object,
    pub token: Option<String>,
    pub wrap_ttl: Option<Duration>,
    pub now: SystemTime,
}

/// An answer in bytes but for the head that HTTP needs.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: json_header(), body: format!("{body}\n").into_bytes() }
    }

    pub fn empty(status: u16) -> Self {
        Self { status, headers: json_header(), body: Vec::new() }
    }
}

fn json_header() -> Vec<(&'static str, String)> {
    vec![("Content-Type", "application/json".to_owned())]
}

/// What a path has to say.
#[derive(Default)]
pub struct Answer {
    pub data: Option<Object>,
    pub auth: Option<Object>,
    pub warnings: Vec<String>,
    /// Another status than 200, with the answer as its body.
    pub status: Option<u16>,
    /// Written as it is: what was wrapped.
    pub raw: Option<Vec<u8>>,
}

impl Answer {
    pub fn data(value: Value) -> Self {
        Self { data: Some(object(value)), ..Self::default() }
    }

    pub fn keys(keys: Vec<String>) -> Self {
        let mut data = Object::new();
        if !keys.is_empty() {
            data.insert("keys".to_owned(), Value::from(keys));
        }
        Self { data: Some(data), ..Self::default() }
    }

    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// The JSON around every answer.
    pub fn to_json(&self, request_id: &str) -> Value {
        json!({
            "request_id": request_id,
            "lease_id": "",
            "renewable": false,
            "lease_duration": 0,
            "data": self.data,
            "wrap_info": null,
            "warnings": if self.warnings.is_empty() { Value::Null } else { json!(self.warnings) },
            "auth": self.auth,
        })
    }
}

/// `None` where `OpenBao`'s own handlers return nothing: 204, or 404 to a read.
pub type Outcome = Result<Option<Answer>, Refusal>;

/// An answer with `errors`.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub errors: Vec<String>,
}

impl Refusal {
    pub fn new(status: u16, error: impl Into<String>) -> Self {
        Self { status, errors: vec![error.into()] }
    }

    /// The status alone.
    pub fn bare(status: u16) -> Self {
        Self { status, errors: Vec::new() }
    }

    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(400, error)
    }

    /// One error as Go's `multierror` prints it.
    pub fn wrapped(status: u16, error: &str) -> Self {
        Self::new(status, format!("1 error occurred:\n\t* {error}\n\n"))
    }

    /// The token is missing, unknown, expired or used up.
    pub fn dead_token() -> Self {
        Self::new(403, "permission denied")
    }

    /// The token lives, and its policies do not allow this.
    pub fn no_capability() -> Self {
        Self::wrapped(403, "permission denied")
    }

    pub fn unsupported_operation() -> Self {
        Self::wrapped(405, "unsupported operation")
    }

    pub fn unsupported_path() -> Self {
        Self::wrapped(404, "unsupported path")
    }

    pub fn no_route(path: &str) -> Self {
        Self::new(404, format!("no handler for route {path:?}. route entry not found."))
    }

    pub fn sealed() -> Self {
        Self::new(503, "Vault is sealed")
    }

    pub fn into_reply(self) -> Reply {
        let Self { status, errors } = self;
        Reply::json(status, &json!({ "errors": errors }))
    }
}
