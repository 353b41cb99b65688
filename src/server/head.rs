//! Request heads: found in the bytes that have arrived, checked, and framed (RFC 9112).

use std::mem::MaybeUninit;
use std::str;

use tiny_http::Method;

use crate::caller::Peer;
use crate::router::RequestHead;

use super::Limits;

/// A request's head.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) request: RequestHead<'a>,
    pub(super) framing: Framing,
}

/// Where a request ends, and how its answer is sent.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Framing {
    /// The length of the head in bytes, with the empty line at its end.
    pub(super) head_len: usize,
    /// The length of head and body, in bytes.
    pub(super) len: usize,
    pub(super) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// HTTP/1.0, whose clients must be told that a connection is kept, and know no chunks.
    pub(super) is_http_1_0: bool,
    /// A HEAD request, whose answer has no body.
    pub(super) is_head: bool,
}

/// Why a request is not served: the status, and what to do. The connection is closed after it,
/// since nobody can know where the next request starts.
pub(super) type Rejection = (u16, &'static str);

const TOO_LARGE: Rejection = (431, "the request line and headers are longer than 16 KiB");
const MALFORMED: Rejection = (400, "the request is not HTTP/1.1 (RFC 9112)");

const MAX_HEADERS: usize = 64;

/// Parses the head that `input` starts with. `None` when it is not whole yet.
pub(super) fn parse<'a>(
    input: &'a [u8],
    peer: &'a Peer,
    limits: &Limits,
) -> Result<Option<Head<'a>>, Rejection> {
    let end = find_end(input, limits.head_bytes)?;
    // Only the places that are used are initialised: most requests have few headers.
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let start = &input[..end.unwrap_or(input.len())];
    let head_len = match (parsed.parse_with_uninit_headers(start, &mut headers), end) {
        // A head that is wrong already is rejected without waiting for the rest.
        (Ok(httparse::Status::Partial), None) => return Ok(None),
        (Ok(httparse::Status::Complete(parsed)), Some(len)) if parsed == len => len,
        (Err(httparse::Error::TooManyHeaders), _) => return Err((431, "more than 64 headers")),
        (Err(httparse::Error::Version), _) => {
            return Err((400, "only HTTP/1.1 and HTTP/1.0 are supported"));
        }
        _ => return Err(MALFORMED),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(MALFORMED);
    };
    let method: Method = method.parse().map_err(|()| MALFORMED)?;
    let target = origin_form(target)?;
    let framing = Framing {
        head_len,
        keep_alive: version == 1,
        is_http_1_0: version == 0,
        is_head: method == Method::Head,
        ..Framing::default()
    };
    let request = RequestHead {
        method,
        target,
        content_type: None,
        host: None,
        is_of_web_page: false,
        bearer: None,
        peer,
    };
    let mut head = Head { request, framing };
    let mut content_length = None;
    for header in &*parsed.headers {
        head.take(header, &mut content_length)?;
    }
    let body_len = content_length.unwrap_or(0);
    if body_len > limits.body_bytes {
        return Err((413, "the body is longer than 2 MiB"));
    }
    head.framing.len = head_len + body_len;
    Ok(Some(head))
}

impl<'a> Head<'a> {
    fn take(
        &mut self,
        header: &httparse::Header<'a>,
        content_length: &mut Option<usize>,
    ) -> Result<(), Rejection> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let framing = &mut self.framing;
        // By length first: most headers are none of these.
        match header.name.len() {
            4 if is("Host") => {
                let earlier = self.request.host.replace(text(header)?);
                refuse_second(earlier.is_some(), "there are two Host headers")?;
            }
            6 if is("Origin") => self.request.is_of_web_page = true,
            6 if is("Expect") => {
                if !text(header)?.eq_ignore_ascii_case("100-continue") {
                    return Err((417, "the only expectation known is 100-continue"));
                }
                framing.expects_continue = !framing.is_http_1_0;
            }
            10 if is("Connection") => {
                for option in text(header)?.split(',').map(str::trim) {
                    if option.eq_ignore_ascii_case("close") {
                        framing.keep_alive = false;
                    } else if option.eq_ignore_ascii_case("keep-alive") && framing.is_http_1_0 {
                        framing.keep_alive = true;
                    }
                }
            }
            12 if is("Content-Type") => self.request.content_type = Some(text(header)?),
            13 if is("Authorization") => {
                let (scheme, token) = text(header)?.split_once(' ').unwrap_or_default();
                if scheme.eq_ignore_ascii_case("Bearer") {
                    self.request.bearer = Some(token.trim());
                }
            }
            14 if is("Sec-Fetch-Site") => {
                // `none`: a person has typed the address into a browser.
                self.request.is_of_web_page |= !matches!(text(header)?, "none" | "same-origin");
            }
            14 if is("Content-Length") => {
                let earlier = content_length.replace(length(header.value)?);
                refuse_second(earlier.is_some(), "there are two Content-Length headers")?;
            }
            17 if is("Transfer-Encoding") => {
                const DETAIL: &str =
                    "Transfer-Encoding is not accepted; send the body with a Content-Length";
                return Err((400, DETAIL));
            }
            _ => {}
        }
        Ok(())
    }
}

fn refuse_second(is_second: bool, detail: &'static str) -> Result<(), Rejection> {
    if is_second { Err((400, detail)) } else { Ok(()) }
}

/// The length of the head that `input` starts with, if all of it is there.
///
/// A line feed without a carriage return before it is refused: what some parsers take
/// for the end of a line and others do not is how requests are smuggled.
fn find_end(input: &[u8], limit: usize) -> Result<Option<usize>, Rejection> {
    let within = &input[..input.len().min(limit)];
    let mut line_start = 0;
    while let Some(length) = memchr::memchr(b'\n', &within[line_start..]) {
        let line_feed = line_start + length;
        if length == 0 || within[line_feed - 1] != b'\r' {
            return Err((400, "a line of the head ends without a carriage return"));
        }
        // An empty line ends the head, but for those before the request line, of which
        // RFC 9112, 2.2 lets a server ignore some.
        if length == 1 && within[..line_start].iter().any(|&byte| byte != b'\r' && byte != b'\n') {
            return Ok(Some(line_feed + 1));
        }
        line_start = line_feed + 1;
    }
    if input.len() > limit || within.len() == limit { Err(TOO_LARGE) } else { Ok(None) }
}

/// The target in origin form, of the origin or absolute form (RFC 9112, 3.2).
fn origin_form(target: &str) -> Result<&str, Rejection> {
    const SCHEME: &str = "http://";
    if target.starts_with('/') {
        return Ok(target);
    }
    let absolute = target
        .get(..SCHEME.len())
        .filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
        .and_then(|_| target[SCHEME.len()..].find('/'))
        .map(|slash| &target[SCHEME.len() + slash..]);
    absolute.ok_or((400, "the request target is not a path"))
}

fn text<'a>(header: &httparse::Header<'a>) -> Result<&'a str, Rejection> {
    str::from_utf8(header.value).map(str::trim).map_err(|_| MALFORMED)
}

/// Digits only (RFC 9110, 8.6): no sign, no list.
fn length(value: &[u8]) -> Result<usize, Rejection> {
    const BAD: Rejection = (400, "the Content-Length is not a number");
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let digits = str::from_utf8(digits).map_err(|_| BAD)?;
    // A number too large to hold is larger than every limit.
    Ok(digits.parse().unwrap_or(usize::MAX))
}
