//! A scripted server on a Unix socket. It records the requests.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

/// One request, as it arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET /health`.
    pub what: String,
    /// The header lines, in lower case.
    pub headers: Vec<String>,
    /// The body, as long as its Content-Length says.
    pub body: String,
}

/// The server's reaction to a request.
pub enum Reply {
    /// Writes these bytes and waits for the next request.
    Bytes(Vec<u8>),
    /// Writes these bytes and closes the connection.
    Last(Vec<u8>),
    /// Writes these bytes one by one and closes the connection.
    Slowly(Vec<u8>),
    /// Never answers.
    Silence,
}

type Answer = dyn Fn(&Asked) -> Reply + Send + Sync;

/// The server. Its threads end with the test's process.
pub struct Fake {
    pub socket: PathBuf,
    _dir: TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
}

/// An answer with a JSON body.
pub fn json(status: &str, body: &str) -> Reply {
    Reply::Bytes(
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

/// An answer to HEAD.
pub fn no_body(status: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status}\r\nContent-Length: 14\r\n\r\n").into_bytes())
}

impl Fake {
    pub fn new(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("vault.sock");
        let listener = UnixListener::bind(&socket).expect("binds in a fresh directory");
        let fake = Self { socket, _dir: dir, asked: Arc::default(), connections: Arc::default() };
        let (asked, connections) = (fake.asked.clone(), fake.connections.clone());
        let answer: Arc<Answer> = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, answer) = (asked.clone(), answer.clone());
                let stream = stream.expect("accepts");
                thread::spawn(move || serve(&stream, &asked, &*answer));
            }
        });
        fake
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics here").clone()
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn serve(stream: &UnixStream, asked: &Mutex<Vec<Asked>>, answer: &Answer) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        asked.lock().expect("no test panics here").push(request.clone());
        let mut stream = stream;
        // An error means that the client has gone, which its test checks.
        match answer(&request) {
            Reply::Bytes(bytes) => drop(stream.write_all(&bytes)),
            Reply::Last(bytes) => return drop(stream.write_all(&bytes)),
            Reply::Slowly(bytes) => {
                return drop(bytes.iter().try_for_each(|byte| stream.write_all(&[*byte])));
            }
            Reply::Silence => {}
        }
    }
}

fn read(reader: &mut BufReader<&UnixStream>) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let what = lines.remove(0).strip_suffix(" HTTP/1.1").expect("HTTP/1.1").to_owned();
    let headers: Vec<_> = lines.iter().map(|line| line.to_lowercase()).collect();
    let length = headers.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { what, headers, body: String::from_utf8(body).expect("UTF-8") })
}
