//! One request and its answer, over a connection that is there, without waiting.
//!
//! It knows what a server says to a read as a rule: one answer of HTTP/1.1 (RFC 9112) with a
//! length, or in chunks. Whatever else comes is [`Progress::Broken`], and the request is to
//! be sent by the HTTP library, which knows the rest.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::transport::Link;

/// A request that has been sent. Until its answer is there, its connection is no good for
/// another.
pub(super) struct Exchange {
    link: Arc<Link>,
    answer: Reading,
}

/// What has become of a request.
pub(super) enum Progress {
    /// There is nothing to do until more can be read.
    Waiting,
    /// This came.
    Answered(Answer),
    /// The connection broke, or something came that is not understood here.
    Broken,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    /// What `Retry-After` says, in seconds.
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Exchange {
    /// Sends the request; `None` when it could not be sent in one go.
    pub(super) fn begin(link: Arc<Link>, request: &[u8]) -> Option<Self> {
        link.set_spoilt(true);
        link.set_hasty(true);
        let exchange = Self { link, answer: Reading::default() };
        let mut link = &*exchange.link;
        let sent = link.write(request).and_then(|count| link.flush().map(|()| count));
        (sent.ok() == Some(request.len())).then_some(exchange)
    }

    /// What tells when there is more to read.
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Reads what has come. Once it is not waiting any more, it is to be dropped.
    pub(super) fn advance(&mut self) -> Progress {
        loop {
            let count = match (&*self.link).read(self.answer.room()) {
                Ok(count) if count > 0 => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Progress::Waiting;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) => return Progress::Broken,
            };
            match self.answer.feed(count) {
                Ok(None) => {}
                Ok(Some((answer, is_last))) => {
                    self.link.set_spoilt(is_last);
                    return Progress::Answered(answer);
                }
                Err(NotUnderstood) => return Progress::Broken,
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.link.set_hasty(false);
    }
}

struct NotUnderstood;

/// An answer, as far as it has come.
#[derive(Default)]
struct Reading {
    input: Zeroizing<Vec<u8>>,
    filled: usize,
    head: Option<Head>,
    chunks: Chunks,
}

struct Head {
    length: usize,
    status: u16,
    retry_after: Option<Duration>,
    /// Of the body; `None` when it comes in chunks.
    body: Option<usize>,
    closes: bool,
}

/// A body in chunks, as far as it has been put together.
#[derive(Default)]
struct Chunks {
    /// How far into what follows the head.
    at: usize,
    body: Zeroizing<Vec<u8>>,
}

/// Most answers fit in this.
const FIRST_ROOM: usize = 1024;
/// The longest answer that is read here.
const MOST_BYTES: usize = 2 * 1024 * 1024;
const MOST_HEADERS: usize = 48;

impl Reading {
    /// Where what comes next belongs.
    fn room(&mut self) -> &mut [u8] {
        if self.filled == self.input.len() {
            grow(&mut self.input, (self.filled * 2).max(FIRST_ROOM));
            let capacity = self.input.capacity();
            self.input.resize(capacity, 0);
        }
        &mut self.input[self.filled..]
    }

    /// Takes what has come, and gives the answer when that is all of it; with it, whether
    /// the connection ends here.
    fn feed(&mut self, count: usize) -> Result<Option<(Answer, bool)>, NotUnderstood> {
        self.filled += count;
        if self.filled > MOST_BYTES {
            return Err(NotUnderstood);
        }
        if self.head.is_none() {
            self.head = head(&self.input[..self.filled])?;
        }
        let Some(head) = &self.head else { return Ok(None) };
        let rest = &self.input[head.length..self.filled];
        let body = match head.body {
            Some(length) if rest.len() > length => return Err(NotUnderstood),
            Some(length) if rest.len() < length => return Ok(None),
            Some(_) => {
                let (start, end) = (head.length, self.filled);
                self.input.truncate(end);
                self.input.drain(..start);
                std::mem::take(&mut self.input)
            }
            None if self.chunks.put_together(rest)? => std::mem::take(&mut self.chunks.body),
            None => return Ok(None),
        };
        let answer = Answer { status: head.status, retry_after: head.retry_after, body };
        Ok(Some((answer, head.closes)))
    }
}

impl Chunks {
    /// Goes on with what follows the head; whether that was all.
    fn put_together(&mut self, rest: &[u8]) -> Result<bool, NotUnderstood> {
        loop {
            let data = &rest[self.at..];
            let (line, size) = match httparse::parse_chunk_size(data) {
                Ok(httparse::Status::Complete(parsed)) => parsed,
                Ok(httparse::Status::Partial) => return Ok(false),
                Err(_) => return Err(NotUnderstood),
            };
            let size = usize::try_from(size).map_err(|_| NotUnderstood)?;
            let end = line.checked_add(size).ok_or(NotUnderstood)?;
            match data.get(end..).filter(|after| after.len() >= 2) {
                None if end > MOST_BYTES => return Err(NotUnderstood),
                None => return Ok(false),
                Some(after) if !after.starts_with(b"\r\n") => return Err(NotUnderstood),
                Some(after) if size == 0 && after.len() > 2 => return Err(NotUnderstood),
                Some(_) if size == 0 => return Ok(true),
                Some(_) => {}
            }
            let wanted = self.body.len() + size;
            if wanted > self.body.capacity() {
                grow(&mut self.body, wanted.max(rest.len()));
            }
            self.body.extend_from_slice(&data[line..end]);
            self.at += end + 2;
        }
    }
}

/// Makes room without leaving a copy behind.
fn grow(buffer: &mut Zeroizing<Vec<u8>>, capacity: usize) {
    let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
    larger.extend_from_slice(buffer);
    *buffer = larger;
}

/// The head, when all of it has come.
fn head(input: &[u8]) -> Result<Option<Head>, NotUnderstood> {
    const HTTP_1_1: u8 = 1;

    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(NotUnderstood),
    };
    let status = response.code.filter(|status| (200..600).contains(status) && *status != 204);
    let (Some(status), Some(HTTP_1_1)) = (status, response.version) else {
        return Err(NotUnderstood);
    };
    let mut head = Head { length, status, retry_after: None, body: None, closes: false };
    let mut is_chunked = false;
    for header in &*response.headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = || std::str::from_utf8(header.value).map_err(|_| NotUnderstood);
        if is("Content-Length") {
            let length = value()?.parse().map_err(|_| NotUnderstood)?;
            if head.body.replace(length).is_some() {
                return Err(NotUnderstood);
            }
        } else if is("Transfer-Encoding") {
            if is_chunked || !value()?.eq_ignore_ascii_case("chunked") {
                return Err(NotUnderstood);
            }
            is_chunked = true;
        } else if is("Content-Encoding") {
            return Err(NotUnderstood);
        } else if is("Connection") {
            head.closes |= !value()?.eq_ignore_ascii_case("keep-alive");
        } else if is("Retry-After") {
            head.retry_after = value()?.parse().ok().map(Duration::from_secs);
        }
    }
    if is_chunked == head.body.is_some() {
        return Err(NotUnderstood);
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// What comes of the bytes when they come in pieces of this length.
    fn read(bytes: &[u8], piece: usize) -> Result<Option<(u16, Vec<u8>, bool)>, ()> {
        let mut reading = Reading::default();
        for piece in bytes.chunks(piece) {
            let mut left = piece;
            while !left.is_empty() {
                let count = reading.room().write(left).expect("a slice can be written to");
                left = &left[count..];
                match reading.feed(count) {
                    Ok(None) => {}
                    Ok(Some((answer, closes))) if left.is_empty() => {
                        return Ok(Some((answer.status, answer.body.to_vec(), closes)));
                    }
                    Ok(Some(_)) | Err(NotUnderstood) => return Err(()),
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn an_answer_is_read_however_it_comes() {
        let long = "v".repeat(5000);
        let with_length = format!("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{long}");
        let in_chunks = format!(
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             1388;x=y\r\n{long}\r\n3\r\n\r\n1\r\n0\r\n\r\n"
        );
        for piece in [1, 2, 7, 100, 4096, 10_000] {
            let read = |text: &str| read(text.as_bytes(), piece);
            assert_eq!(read(&with_length), Ok(Some((200, long.clone().into_bytes(), false))));
            let body = format!("{long}\r\n1").into_bytes();
            assert_eq!(read(&in_chunks), Ok(Some((404, body, true))), "{piece}");
            assert_eq!(read("HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nab"), Ok(None));
            assert_eq!(
                read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"),
                Ok(None)
            );
        }
    }

    #[test]
    fn what_is_unusual_is_left_to_others() {
        for text in [
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nuntil the end",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\na",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert_eq!(read(text.as_bytes(), 4096), Err(()), "{text}");
        }
    }
}
