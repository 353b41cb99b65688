//! The paths of the wire contract, percent-decoded once.

use std::borrow::Cow;

use super::Answer;

/// A thing that methods apply to. Names are decoded, but not yet validated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Health,
    OpenApi,
    Credentials,
    Namespace(String),
    /// With a systemd unit, if it is asked for on behalf of that.
    Credential {
        unit: Option<String>,
        namespace: String,
        key: String,
    },
    RuntimeEnv,
    Records,
    Validation(String, String),
}

impl Resource {
    /// The resource that a request target in origin form names. The query is ignored.
    ///
    /// # Errors
    ///
    /// 400 or 404; or, if the path names a resource but for its trailing slash, the redirect
    /// to the same target without that slash.
    pub(super) fn parse(target: &str) -> Result<Self, Answer> {
        let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
        let trimmed = path.trim_end_matches('/');
        let resource = Self::of_path(trimmed)?;
        if trimmed.len() == path.len() {
            Ok(resource)
        } else {
            Err(Answer::redirect(&[trimmed, query].concat()))
        }
    }

    fn of_path(path: &str) -> Result<Self, Answer> {
        let raw = path.strip_prefix('/').ok_or_else(Answer::not_found)?.split('/');
        // One more than the longest path has, so that a longer path is noticed.
        let segments: Vec<Cow<'_, str>> = raw.take(6).map(decode).collect::<Result<_, _>>()?;
        let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
        let credential = |unit: Option<&str>, namespace: &str, key: &str| Self::Credential {
            unit: unit.map(str::to_owned),
            namespace: namespace.to_owned(),
            key: key.to_owned(),
        };
        match *segments {
            ["health"] => Ok(Self::Health),
            ["openapi.json"] => Ok(Self::OpenApi),
            ["v1", "runtime-env"] => Ok(Self::RuntimeEnv),
            ["v1", "records"] => Ok(Self::Records),
            ["v1", "validations", namespace, key] => {
                Ok(Self::Validation(namespace.to_owned(), key.to_owned()))
            }
            ["v1", "credentials"] => Ok(Self::Credentials),
            ["v1", "credentials", namespace] => Ok(Self::Namespace(namespace.to_owned())),
            ["v1", "credentials", namespace, key] => Ok(credential(None, namespace, key)),
            ["v1", "units", unit, namespace, key] => Ok(credential(Some(unit), namespace, key)),
            _ => Err(Answer::not_found()),
        }
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

    fn status(target: &str) -> u16 {
        Resource::parse(target).expect_err(target).status
    }

    #[test]
    fn encoded_and_plain_segments_name_the_same_credential() {
        let plain =
            Resource::parse("/v1/credentials/email.you@gmail.com/password").expect("a path");
        let encoded = Resource::parse("/v1/credentials/email.you%40gmail.com/p%61ssword?x=/y")
            .expect("a path");
        assert_eq!(plain, encoded);
    }

    #[test]
    fn a_trailing_slash_redirects_if_there_is_such_a_resource() {
        for (target, location) in [
            ("/health/", "/health"),
            ("/v1/credentials/a%40b//?q=1/", "/v1/credentials/a%40b?q=1/"),
            ("/v1/credentials/é/", "/v1/credentials/%C3%A9"),
        ] {
            let answer = Resource::parse(target).expect_err(target);
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
        assert_eq!(
            Resource::parse("/v1/credentials/a/%252F").expect("decoded once"),
            Resource::Credential { unit: None, namespace: "a".into(), key: "%2F".into() }
        );
    }
}
