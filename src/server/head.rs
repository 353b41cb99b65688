//! Request heads: found in the bytes that have come, checked, and framed (RFC 9112).

use std::mem::MaybeUninit;
use std::str;

use tiny_http::Method;

use super::Limits;

/// What the bytes at the start of a connection's input are.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    /// Not a whole head yet.
    Partial,
    /// A head.
    Head(Head<'a>),
}

/// A request's head.
#[derive(Debug)]
pub(super) struct Head<'a> {
    /// Its length in bytes, with the empty line at its end.
    pub(super) len: usize,
    /// The length of the body that follows, in bytes.
    pub(super) body_len: usize,
    pub(super) method: Method,
    /// In origin form.
    pub(super) target: &'a str,
    pub(super) content_type: Option<&'a str>,
    pub(super) host: Option<&'a str>,
    pub(super) has_origin: bool,
    pub(super) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// HTTP/1.0, to which a kept connection has to be announced.
    pub(super) is_http_1_0: bool,
}

/// Why a request is not served: the status, and what to do. The connection is closed
/// after it, since where the next request starts cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) status: u16,
    pub(super) detail: &'static str,
}

const fn reject(status: u16, detail: &'static str) -> Rejection {
    Rejection { status, detail }
}

const TOO_LARGE: Rejection = reject(431, "the request line and headers are longer than 16 KiB");
const MALFORMED: Rejection = reject(400, "the request is not HTTP/1.1 (RFC 9112)");

const MAX_HEADERS: usize = 64;

/// Parses what `input` starts with.
pub(super) fn parse<'a>(input: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, Rejection> {
    let end = find_end(input, limits.head_bytes)?;
    // Of the places for headers only those that are used are filled in: most requests have few.
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let start = &input[..end.unwrap_or(input.len())];
    match (request.parse_with_uninit_headers(start, &mut headers), end) {
        // What is wrong already is refused without waiting for more of it.
        (Ok(httparse::Status::Partial), None) => return Ok(Parsed::Partial),
        (Ok(httparse::Status::Complete(parsed)), Some(len)) if parsed == len => {}
        (Err(httparse::Error::TooManyHeaders), _) => {
            return Err(reject(431, "more than 64 headers"));
        }
        (Err(httparse::Error::Version), _) => {
            return Err(reject(400, "only HTTP/1.1 and HTTP/1.0 are spoken here"));
        }
        _ => return Err(MALFORMED),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(MALFORMED);
    };
    let is_http_1_0 = version == 0;
    let mut head = Head {
        len: end.ok_or(MALFORMED)?,
        body_len: 0,
        method: method.parse().map_err(|()| MALFORMED)?,
        target: origin_form(target)?,
        content_type: None,
        host: None,
        has_origin: false,
        keep_alive: !is_http_1_0,
        expects_continue: false,
        is_http_1_0,
    };
    let mut content_length = None;
    for header in &*request.headers {
        head.take(header, &mut content_length)?;
    }
    head.body_len = content_length.unwrap_or(0);
    if head.body_len > limits.body_bytes {
        return Err(reject(413, "the body is longer than 2 MiB"));
    }
    Ok(Parsed::Head(head))
}

impl<'a> Head<'a> {
    fn take(
        &mut self,
        header: &httparse::Header<'a>,
        content_length: &mut Option<usize>,
    ) -> Result<(), Rejection> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        // By length first: most headers are none of these.
        match header.name.len() {
            4 if is("Host") => {
                let earlier = self.host.replace(text(header)?);
                refuse_second(earlier.is_some(), "there are two Host headers")?;
            }
            6 if is("Origin") => self.has_origin = true,
            6 if is("Expect") => {
                if !text(header)?.eq_ignore_ascii_case("100-continue") {
                    return Err(reject(417, "the only expectation known is 100-continue"));
                }
                self.expects_continue = !self.is_http_1_0;
            }
            10 if is("Connection") => {
                for option in text(header)?.split(',').map(str::trim) {
                    if option.eq_ignore_ascii_case("close") {
                        self.keep_alive = false;
                    } else if option.eq_ignore_ascii_case("keep-alive") && self.is_http_1_0 {
                        self.keep_alive = true;
                    }
                }
            }
            12 if is("Content-Type") => self.content_type = Some(text(header)?),
            14 if is("Content-Length") => {
                let earlier = content_length.replace(length(header.value)?);
                refuse_second(earlier.is_some(), "there are two Content-Length headers")?;
            }
            17 if is("Transfer-Encoding") => {
                return Err(reject(
                    400,
                    "Transfer-Encoding is not accepted; send the body with a Content-Length",
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

fn refuse_second(is_second: bool, detail: &'static str) -> Result<(), Rejection> {
    if is_second { Err(reject(400, detail)) } else { Ok(()) }
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
            return Err(reject(400, "a line of the head ends without a carriage return"));
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
    absolute.ok_or(reject(400, "the request target is not a path"))
}

fn text<'a>(header: &httparse::Header<'a>) -> Result<&'a str, Rejection> {
    str::from_utf8(header.value).map(str::trim).map_err(|_| MALFORMED)
}

/// Digits only (RFC 9110, 8.6): no sign, no list.
fn length(value: &[u8]) -> Result<usize, Rejection> {
    const BAD: Rejection = reject(400, "the Content-Length is not a number");
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let digits = str::from_utf8(digits).map_err(|_| BAD)?;
    // A number too large to hold is larger than every limit.
    Ok(digits.parse().unwrap_or(usize::MAX))
}
