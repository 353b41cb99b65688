//! Responses: an answer of the router's as the bytes of HTTP/1.1 (RFC 9112).

use std::io::Write as _;
use std::time::SystemTime;

use httpdate::HttpDate;
use tiny_http::StatusCode;

use crate::router::Answer;

use super::buffer::Buffer;
use super::head::Framing;

/// Room for the head of any response: our headers are few and short.
const HEAD_BYTES: usize = 512;

/// Adds a response to what is to be sent. A body of which this is the first page goes in chunks
/// (RFC 9112, 7.1); HTTP/1.0 has none, so there the end of the connection ends it.
pub(super) fn write(output: &mut Buffer, answer: &Answer, framing: Framing, is_last: bool) {
    let headers_len: usize =
        answer.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let head = output.room_for(HEAD_BYTES + headers_len);
    let mut write = |line: std::fmt::Arguments<'_>| {
        head.write_fmt(line).expect("a Vec takes every write");
    };
    let (status, reason) = (answer.status, StatusCode(answer.status).default_reason_phrase());
    write(format_args!("HTTP/1.1 {status} {reason}\r\n"));
    match (is_last, framing.is_http_1_0) {
        (true, _) => write(format_args!("Connection: close\r\n")),
        (false, true) => write(format_args!("Connection: keep-alive\r\n")),
        (false, false) => {}
    }
    for (name, value) in &answer.headers {
        write(format_args!("{name}: {value}\r\n"));
    }
    match (&answer.rest, framing.is_http_1_0) {
        (None, _) => write(format_args!("Content-Length: {}\r\n", answer.body.len())),
        (Some(_), false) => write(format_args!("Transfer-Encoding: chunked\r\n")),
        (Some(_), true) => {}
    }
    // The date: RFC 9110, 6.6.1.
    let date = HttpDate::from(SystemTime::now());
    write(format_args!("Server: credential-vault\r\nDate: {date}\r\n\r\n"));
    if answer.rest.is_some() {
        write_page(output, &answer.body, false, framing);
    } else if !framing.is_head {
        output.room_for(answer.body.len()).extend_from_slice(&answer.body);
    }
}

/// Adds a page of a body that has several.
pub(super) fn write_page(output: &mut Buffer, page: &[u8], is_last: bool, framing: Framing) {
    let (size, end) = match (framing.is_http_1_0, is_last) {
        (true, _) => (String::new(), ""),
        (false, true) => (format!("{:x}\r\n", page.len()), "\r\n0\r\n\r\n"),
        (false, false) => (format!("{:x}\r\n", page.len()), "\r\n"),
    };
    let bytes = output.room_for(size.len() + page.len() + end.len());
    for part in [size.as_bytes(), page, end.as_bytes()] {
        bytes.extend_from_slice(part);
    }
}
