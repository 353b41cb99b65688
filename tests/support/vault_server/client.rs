//! A raw client: one kept connection, plain HTTP, every answer in full.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::DEADLINE;

/// Where a Vault listens: `http://host:port` or `unix:///path`.
#[derive(Debug, Clone)]
pub struct Address(pub String);

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// A Vault as one client sees it: an address, a token, a namespace.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: Address,
    pub token: Option<String>,
    pub namespace: Option<String>,
}

/// A request to a path below `/v1/`.
#[derive(Debug, Clone)]
pub struct Ask {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Self {
        let (method, path) = (method.to_owned(), path.to_owned());
        Self { method, path, headers: Vec::new(), body: None }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json").bytes(body.to_string().as_bytes())
    }

    pub fn merge_patch(self, body: &Value) -> Self {
        self.header("Content-Type", "application/merge-patch+json")
            .bytes(body.to_string().as_bytes())
    }

    pub fn bytes(mut self, body: &[u8]) -> Self {
        self.body = Some(body.to_vec());
        self
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Got {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, or null when there is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }

    pub fn errors(&self) -> Vec<String> {
        let errors = self.json()["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

impl Client {
    pub fn new(address: &str, token: &str) -> Self {
        Self {
            address: Address(address.trim_end_matches('/').to_owned()),
            token: Some(token.to_owned()),
            namespace: None,
        }
    }

    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn ask(&self, ask: &Ask) -> Got {
        self.connect().expect("it listens").ask(self, ask).expect("an answer")
    }

    pub fn connect(&self) -> io::Result<Connection> {
        Connection::open(&self.address)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Got {
        self.ask(&Ask::new("GET", path))
    }

    #[track_caller]
    pub fn list(&self, path: &str) -> Got {
        self.ask(&Ask::new("LIST", path))
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Got {
        self.ask(&Ask::new("POST", path).json(body))
    }

    #[track_caller]
    pub fn patch(&self, path: &str, body: &Value) -> Got {
        self.ask(&Ask::new("PATCH", path).merge_patch(body))
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Got {
        self.ask(&Ask::new("DELETE", path))
    }
}

/// One kept connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
}

impl Connection {
    pub fn open(address: &Address) -> io::Result<Self> {
        let stream: Box<dyn Stream> = if let Some(path) = address.0.strip_prefix("unix://") {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            Box::new(stream)
        } else {
            let host = address.0.strip_prefix("http://").ok_or(ErrorKind::Unsupported)?;
            let stream = TcpStream::connect(host)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            Box::new(stream)
        };
        Ok(Self { stream, received: Vec::new() })
    }

    pub fn ask(&mut self, client: &Client, ask: &Ask) -> io::Result<Got> {
        self.send(client, ask)?;
        self.answer(ask.method == "HEAD")
    }

    pub fn send(&mut self, client: &Client, ask: &Ask) -> io::Result<()> {
        let mut head = format!(
            "{} /v1/{} HTTP/1.1\r\nHost: vault\r\nX-Vault-Request: true\r\n",
            ask.method, ask.path
        );
        let own = [("X-Vault-Token", &client.token), ("X-Vault-Namespace", &client.namespace)];
        for (name, value) in own {
            if let Some(value) = value {
                write!(head, "{name}: {value}\r\n").expect("a string takes everything");
            }
        }
        for (name, value) in &ask.headers {
            write!(head, "{name}: {value}\r\n").expect("a string takes everything");
        }
        if let Some(body) = &ask.body {
            write!(head, "Content-Length: {}\r\n", body.len()).expect("a string takes everything");
        }
        let mut bytes = format!("{head}\r\n").into_bytes();
        bytes.extend_from_slice(ask.body.as_deref().unwrap_or_default());
        self.stream.write_all(&bytes)
    }

    pub fn answer(&mut self, to_head: bool) -> io::Result<Got> {
        let head = self.through(b"\r\n\r\n")?;
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        let complete = parsed.parse(&head).is_ok_and(|status| status.is_complete());
        let status = parsed.code.filter(|_| complete).ok_or(ErrorKind::InvalidData)?;
        let headers = parsed.headers.iter().map(|header| {
            (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned())
        });
        let mut got = Got { status, headers: headers.collect(), body: Vec::new() };
        if to_head || status == 204 || status < 200 {
            return Ok(got);
        }
        if got.header("Transfer-Encoding").is_some() {
            loop {
                let line = self.through(b"\r\n")?;
                let digits = std::str::from_utf8(&line[..line.len() - 2]).unwrap_or_default();
                let size = usize::from_str_radix(digits, 16).map_err(io::Error::other)?;
                let chunk = self.take(size + 2)?;
                if size == 0 {
                    return Ok(got);
                }
                got.body.extend_from_slice(&chunk[..size]);
            }
        }
        let length = got.header("Content-Length").and_then(|length| length.parse().ok());
        got.body = self.take(length.ok_or(ErrorKind::InvalidData)?)?;
        Ok(got)
    }

    fn through(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.received.windows(mark.len()).position(|window| window == mark) {
                return Ok(self.received.drain(..at + mark.len()).collect());
            }
            self.receive()?;
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < length {
            self.receive()?;
        }
        Ok(self.received.drain(..length).collect())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                // A socket with a timeout is interrupted when the process is stopped and
                // goes on (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
