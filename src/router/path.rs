//! From the method and the path of a request to its call, by the wire contract.

use std::borrow::Cow;

use tiny_http::Method;

use super::answer::JsonPage;
use super::{Answer, Call, RequestHead, body, done};
use crate::caller::{Caller, Peer};
use crate::error::VaultError;
use crate::metadata::Filter;
use crate::model::{CredentialRef, Namespace};

/// The call of a request. The query is ignored.
///
/// # Errors
///
/// The answer, if the head alone decides it; or, if the path names a resource but for its trailing
/// slash, the redirect to the same target without that slash.
pub(super) fn call(head: &RequestHead<'_>) -> Result<Call, Answer> {
    let target = head.target;
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let trimmed = path.trim_end_matches('/');
    let raw = trimmed.strip_prefix('/').ok_or_else(Answer::not_found)?.split('/');
    // One more than the longest path has, so that a longer path is noticed.
    let segments: Vec<Cow<'_, str>> = raw.take(6).map(decode).collect::<Result<_, _>>()?;
    let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
    let call = call_of(&segments, head).ok_or_else(Answer::not_found)?;
    if trimmed.len() == path.len() {
        call
    } else {
        Err(Answer::redirect(&[trimmed, query].concat()))
    }
}

/// `None` if there is no such resource.
fn call_of(segments: &[&str], head: &RequestHead<'_>) -> Option<Result<Call, Answer>> {
    let get = |call| match head.method {
        Method::Get => call,
        _ => Err(Answer::method_not_allowed("GET")),
    };
    let list = |filter, is_whole| get(Ok(Call::List(filter, is_whole, None)));
    Some(match *segments {
        ["health"] => get(Ok(Call::Health)),
        ["openapi.json"] => get(Err(Answer::openapi())),
        ["v1", "runtime-env"] => list(Filter::RuntimeEnv, false),
        ["v1", "records"] => list(Filter::All, true),
        ["v1", "credentials"] => list(Filter::All, false),
        ["v1", "credentials", namespace] => match Namespace::new(namespace) {
            Ok(namespace) => list(Filter::Namespace(namespace), false),
            Err(_) => get(Err(JsonPage::new(true).into_answer(None))),
        },
        ["v1", "credentials", namespace, key] => {
            credential_call(CredentialRef::parse(namespace, key), head)
        }
        ["v1", "units", unit, namespace, key] => {
            let unit = Box::new(Peer::Process(Caller::of_unit(unit.to_owned())));
            let at = CredentialRef::parse(namespace, key);
            get(at.map(|at| Call::Get(at, Some(unit))).map_err(|_| Answer::credential_not_found()))
        }
        ["v1", "validations", namespace, key] => match head.method {
            Method::Put => {
                let at = CredentialRef::parse(namespace, key).map_err(Answer::from);
                body::check_content_type(head.content_type).and(at).map(Call::Validate)
            }
            _ => Err(Answer::method_not_allowed("PUT")),
        },
        _ => return None,
    })
}

/// The call on a credential, whose name may be invalid.
fn credential_call(
    at: Result<CredentialRef, VaultError>,
    head: &RequestHead<'_>,
) -> Result<Call, Answer> {
    match (&head.method, at) {
        (Method::Get, Ok(at)) => Ok(Call::Get(at, None)),
        (Method::Get, Err(_)) => Err(Answer::credential_not_found()),
        (Method::Head, Ok(at)) => Ok(Call::Head(at)),
        (Method::Head, Err(_)) => Err(Answer::empty(404)),
        (Method::Put, Ok(at)) => {
            body::check_content_type(head.content_type).map(|()| Call::Put(at))
        }
        (Method::Put, Err(error)) => Err(error.into()),
        (Method::Delete, Ok(at)) => Ok(Call::Delete(at)),
        // A credential of an invalid name cannot exist: there is nothing to delete.
        (Method::Delete, Err(_)) => Err(done("deleted")),
        _ => Err(Answer::method_not_allowed("GET, HEAD, PUT, DELETE")),
    }
}

/// Decodes one segment (RFC 3986, 2.1). No path of ours has an empty segment, or an encoded
/// slash in one.
fn decode(segment: &str) -> Result<Cow<'_, str>, Answer> {
    if segment.is_empty() {
        return Err(Answer::not_found());
    }
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let malformed = || Answer::error(400, "the path is not percent-encoded UTF-8 (RFC 3986, 2.1)");
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(malformed()) };
        decoded.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
    }
    let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
    if decoded.contains('/') { Err(Answer::not_found()) } else { Ok(Cow::Owned(decoded)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(target: &str) -> Result<Call, Answer> {
        let peer = &Peer::Tcp(([127, 0, 0, 1], 1).into());
        let (method, content_type, host, bearer) = (Method::Get, None, None, None);
        let is_of_web_page = false;
        call(&RequestHead { method, target, content_type, host, is_of_web_page, bearer, peer })
    }

    fn key_of(target: &str) -> String {
        let Ok(Call::Get(at, None)) = get(target) else { panic!("{target} is no credential") };
        at.to_string()
    }

    fn status(target: &str) -> u16 {
        get(target).expect_err(target).status
    }

    #[test]
    fn encoded_and_plain_segments_name_the_same_credential() {
        let plain = key_of("/v1/credentials/email.you@gmail.com/password");
        let encoded = key_of("/v1/credentials/email.you%40gmail.com/p%61ssword?x=/y");
        assert_eq!(plain, encoded);
    }

    #[test]
    fn a_trailing_slash_redirects_if_there_is_such_a_resource() {
        for (target, location) in [
            ("/health/", "/health"),
            ("/v1/credentials/a%40b//?q=1/", "/v1/credentials/a%40b?q=1/"),
            ("/v1/credentials/é/", "/v1/credentials/%C3%A9"),
        ] {
            let answer = get(target).expect_err(target);
            assert_eq!(
                (answer.status, &*answer.headers),
                (307, &[("Location", location.into())][..])
            );
        }
        assert_eq!(status("/nothing/"), 404);
        assert_eq!(status("/"), 404);
    }

    #[test]
    fn other_paths_are_not_found_and_bad_encodings_are_bad_requests() {
        for target in [
            "",
            "health",
            "/v1",
            "/v1/credentials/a/b/c",
            "/v1/credentials/a/b/c/d/e",
            "/v1//a",
            "/v1/credentials/a/b%2Fc",
            "/v1/credentials/a%2fb",
            "/health/x",
            "/v1/runtime-env/x",
            "/v1/units/a.service/n",
            "/v1/units/a.service/n/k/x",
            "//health",
        ] {
            assert_eq!(status(target), 404, "{target}");
        }
        for target in [
            "/v1/credentials/%",
            "/v1/credentials/%4",
            "/v1/credentials/%zz",
            "/v1/credentials/%ff",
        ] {
            assert_eq!(status(target), 400, "{target}");
        }
        assert_eq!(key_of("/v1/credentials/a/%252F"), "a/%2F", "decoded once");
    }
}
