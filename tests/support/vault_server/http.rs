//! HTTP/1.1 as Go's server speaks it: requests in, answers out.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};

use super::exchange::{Call, Refusal, Reply};

/// Go frames a body up to this size by its length, a larger one in chunks.
const LARGEST_PLAIN_BODY: usize = 2048;
const LARGEST_HEAD: usize = 64 * 1024;
const LARGEST_REQUEST: usize = 32 * 1024 * 1024;

/// A request, or what is to be answered to something that is none.
pub enum Received {
    Call {
        call: Call,
        keeps_alive: bool,
    },
    Unusable {
        reply: Reply,
        keeps_alive: bool,
    },
    /// The same, and the rest of the connection cannot be understood.
    Hopeless(Reply),
}

/// Reads requests off one connection.
pub struct Reader<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Reader<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next request; `None` at the end of the stream.
    pub fn next(&mut self) -> io::Result<Option<Received>> {
        let Some(head) = self.head()? else { return Ok(None) };
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        if !parsed.parse(&head).is_ok_and(|status| status.is_complete()) {
            return Ok(Some(Received::Hopeless(plain(400, "400 Bad Request"))));
        }
        let header = |name: &str| {
            let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
        };
        let length = header("Content-Length").map_or(Ok(0), |length| length.parse::<usize>());
        let Ok(length) = length else {
            return Ok(Some(Received::Hopeless(plain(400, "400 Bad Request"))));
        };
        let chunked = header("Transfer-Encoding").is_some_and(|coding| coding == "chunked");
        if length > LARGEST_REQUEST {
            let refusal = Refusal::new(413, "http: request body too large");
            return Ok(Some(Received::Hopeless(refusal.into_reply())));
        }
        if header("Expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let connection = header("Connection").unwrap_or_default().to_lowercase();
        let keeps_alive = parsed.version == Some(1) && connection != "close";
        let bearer = header("Authorization")
            .and_then(|value| value.strip_prefix("Bearer ").map(|token| token.trim().to_owned()));
        let mut call = Call {
            method: parsed.method.unwrap_or_default().to_owned(),
            token: header("X-Vault-Token").filter(|token| !token.is_empty()).or(bearer),
            namespace: header("X-Vault-Namespace").unwrap_or_default(),
            wrap_ttl: header("X-Vault-Wrap-TTL"),
            content_type: header("Content-Type"),
            vault_request: header("X-Vault-Request").is_some_and(|value| value == "true"),
            ..Call::default()
        };
        let target = parsed.path.unwrap_or_default().to_owned();
        call.body = if chunked { self.chunks()? } else { self.take(length)? };
        Ok(Some(match aim(&target, &mut call) {
            Ok(()) => Received::Call { call, keeps_alive },
            Err(reply) => Received::Unusable { reply, keeps_alive },
        }))
    }

    fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(Some(self.buffer.drain(..at + 4).collect()));
            }
            if self.buffer.len() > LARGEST_HEAD {
                return Err(ErrorKind::InvalidData.into());
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                if self.fill()? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            };
            let line = self.take(line_end + 2)?;
            let digits = std::str::from_utf8(&line[..line_end]).unwrap_or_default();
            let size = usize::from_str_radix(digits.split(';').next().unwrap_or_default(), 16)
                .map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
            let chunk = self.take(size + 2)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let count = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

/// Fills in path and query, or says what Go's router answers to such a target.
fn aim(target: &str, call: &mut Call) -> Result<(), Reply> {
    // Some clients send the whole address, as if to a proxy.
    let target = target
        .strip_prefix("http://")
        .and_then(|rest| rest.find('/').map(|at| &rest[at..]))
        .unwrap_or(target);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let decoded = percent_decoded(path, false);
    if decoded.chars().any(char::is_control) {
        return Err(Reply { status: 400, headers: Vec::new(), body: Vec::new() });
    }
    let clean = cleaned(&decoded);
    if clean != decoded {
        let location = if query.is_empty() { clean } else { format!("{clean}?{query}") };
        let mut reply = plain(307, "Temporary Redirect");
        reply.headers.push(("Location", location));
        return Err(reply);
    }
    let Some(path) = decoded.strip_prefix("/v1/") else {
        return Err(Refusal::bare(404).into_reply());
    };
    path.clone_into(&mut call.path);
    call.query = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(name, true), percent_decoded(value, true))
        })
        .collect();
    Ok(())
}

/// The path without empty and dotted segments; a slash at the end stays.
fn cleaned(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let slash = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{slash}", segments.join("/"))
}

fn percent_decoded(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            decoded.push(byte);
            at += 3;
            continue;
        }
        decoded.push(if plus_is_space && bytes[at] == b'+' { b' ' } else { bytes[at] });
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn plain(status: u16, text: &str) -> Reply {
    Reply {
        status,
        headers: vec![("Content-Type", "text/plain; charset=utf-8".to_owned())],
        body: text.as_bytes().to_vec(),
    }
}

/// The bytes of an answer.
pub fn written(reply: &Reply, to_head: bool, closes: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, reason(reply.status));
    head.push_str("Cache-Control: no-store\r\n");
    for (name, value) in &reply.headers {
        write!(head, "{name}: {value}\r\n").expect("a string takes everything");
    }
    head.push_str("Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n");
    if closes {
        head.push_str("Connection: close\r\n");
    }
    let chunked = reply.body.len() > LARGEST_PLAIN_BODY;
    if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else if reply.status != 204 {
        write!(head, "Content-Length: {}\r\n", reply.body.len())
            .expect("a string takes everything");
    }
    let mut bytes = format!("{head}\r\n").into_bytes();
    if to_head || reply.status == 204 {
        return bytes;
    }
    if chunked {
        for chunk in reply.body.chunks(LARGEST_PLAIN_BODY) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
    } else {
        bytes.extend_from_slice(&reply.body);
    }
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Request Entity Too Large",
        412 => "Precondition Failed",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}
