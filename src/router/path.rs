//! The paths of the wire contract, percent-decoded once.

use std::borrow::Cow;

use super::Answer;

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Path {
    Resource(Resource),
    /// It has a trailing slash, and without it would name a resource: the target
    /// without the slash, still percent-encoded, with its query.
    RedirectTo(String),
}

/// A thing that methods apply to. Names are decoded, and not yet validated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Health,
    Credentials,
    Namespace(String),
    Credential { namespace: String, key: String },
    RuntimeEnv,
}

impl Path {
    /// Parses a request target in origin form. The query is ignored.
    pub(super) fn parse(target: &str) -> Result<Self, Answer> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let trimmed = path.trim_end_matches('/');
        if trimmed.len() == path.len() {
            return Resource::parse(path).map(Self::Resource);
        }
        Resource::parse(trimmed)?;
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Ok(Self::RedirectTo(format!("{trimmed}{query}")))
    }
}

impl Resource {
    fn parse(path: &str) -> Result<Self, Answer> {
        let mut raw = path.strip_prefix('/').ok_or_else(Answer::not_found)?.split('/');
        // One more than the longest path, so that a longer one is seen.
        let mut segments: [Option<Cow<'_, str>>; 5] = [const { None }; 5];
        for (segment, text) in segments.iter_mut().zip(raw.by_ref()) {
            *segment = Some(decode(text)?);
        }
        let [first, second, third, fourth, rest] = segments;
        match (first.as_deref(), second.as_deref(), third, fourth, rest) {
            (Some("health"), None, ..) => Ok(Self::Health),
            (Some("v1"), Some("runtime-env"), None, ..) => Ok(Self::RuntimeEnv),
            (Some("v1"), Some("credentials"), None, ..) => Ok(Self::Credentials),
            (Some("v1"), Some("credentials"), Some(namespace), None, None) => {
                Ok(Self::Namespace(namespace.into_owned()))
            }
            (Some("v1"), Some("credentials"), Some(namespace), Some(key), None) => {
                Ok(Self::Credential { namespace: namespace.into_owned(), key: key.into_owned() })
            }
            _ => Err(Answer::not_found()),
        }
    }
}

/// Decodes one segment (RFC 3986, 2.1). Empty, or with an encoded slash, it is a segment
/// of no path of ours.
fn decode(segment: &str) -> Result<Cow<'_, str>, Answer> {
    if segment.is_empty() {
        return Err(Answer::not_found());
    }
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let malformed = || Answer::bad_request("the path is not percent-encoded UTF-8 (RFC 3986, 2.1)");
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
        Path::parse(target).expect_err(target).status()
    }

    #[test]
    fn encoded_and_plain_segments_name_the_same() {
        let plain = Path::parse("/v1/credentials/email.you@gmail.com/password").expect("a path");
        let encoded =
            Path::parse("/v1/credentials/email.you%40gmail.com/p%61ssword?x=/y").expect("a path");
        assert_eq!(plain, encoded);
    }

    #[test]
    fn a_trailing_slash_redirects_only_to_what_exists() {
        let to = |target: &str| Path::RedirectTo(target.to_owned());
        assert_eq!(Path::parse("/health/").expect("a path"), to("/health"));
        assert_eq!(
            Path::parse("/v1/credentials/a%40b//?q=1/").expect("a path"),
            to("/v1/credentials/a%40b?q=1/")
        );
        assert_eq!(status("/nothing/"), 404);
        assert_eq!(status("/"), 404);
    }

    #[test]
    fn what_is_no_path_of_ours() {
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
            Path::parse("/v1/credentials/a/%252F").expect("decoded once"),
            Path::Resource(Resource::Credential { namespace: "a".into(), key: "%2F".into() })
        );
    }
}
