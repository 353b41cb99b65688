//! The Unix socket under the HTTP client: ureq's connector and transport, with buffers
//! that are wiped.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::RecvFlags;
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use zeroize::{Zeroize, Zeroizing};

/// What a connector's error carries when there was no connection: it tells "nobody
/// there" from a connection that broke.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct NotConnected(pub(super) io::Error);

/// Opens the one socket, whatever the URI says.
#[derive(Debug)]
pub(super) struct UnixConnector {
    socket: PathBuf,
}

impl UnixConnector {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }
}

impl Connector<()> for UnixConnector {
    type Out = UnixTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<UnixTransport>, Error> {
        let timeout = details.timeout.not_zero().map(|timeout| *timeout);
        match open(&self.socket, timeout) {
            Ok(stream) => Ok(Some(UnixTransport { stream, buffers: WipedBuffers::default() })),
            Err(error) => Err(Error::Other(Box::new(NotConnected(error)))),
        }
    }
}

/// Connects. A listener whose queue is full keeps a caller waiting on Linux, which a
/// send timeout that is set before connecting bounds (unix(7) does not say so, the
/// kernel's `unix_stream_connect` does).
#[cfg(target_os = "linux")]
fn open(socket: &Path, timeout: Option<Duration>) -> io::Result<UnixStream> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };

    let address = SocketAddrUnix::new(socket)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, timeout)?;
    match rustix::io::retry_on_intr(|| connect(&fd, &address)) {
        Ok(()) => Ok(fd.into()),
        Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
    }
}

/// Connects. Other systems refuse at once when a listener's queue is full.
#[cfg(not(target_os = "linux"))]
fn open(socket: &Path, _timeout: Option<Duration>) -> io::Result<UnixStream> {
    UnixStream::connect(socket)
}

/// One connection.
pub(super) struct UnixTransport {
    stream: UnixStream,
    buffers: WipedBuffers,
}

/// Shows no buffer: what is in there may be a value.
impl fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnixTransport")
    }
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(timeout.not_zero().map(|timeout| *timeout))?;
        let sent = self.stream.write_all(&self.buffers.output[..amount]);
        self.buffers.wipe_output(amount);
        sent.map_err(|error| timeout_or_io(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.stream.set_read_timeout(timeout.not_zero().map(|timeout| *timeout))?;
        let amount = loop {
            match self.stream.read(self.buffers.input_append_buf()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| timeout_or_io(error, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// An idle connection is open when it has nothing to read: bytes that nobody asked
    /// for, or an end, both mean that it cannot be used again.
    fn is_open(&mut self) -> bool {
        let peeked =
            rustix::net::recv(&self.stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

fn timeout_or_io(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

const INPUT_BYTES: usize = 32 * 1024;
const OUTPUT_BYTES: usize = 16 * 1024;

/// ureq's buffers, wiped as soon as what is in them has gone on. ureq's own are neither
/// wiped nor hidden from `Debug`.
#[derive(Default)]
struct WipedBuffers {
    output: Zeroizing<Vec<u8>>,
    /// Where ureq puts the plain body before it writes it into `output`.
    scratch: Zeroizing<Vec<u8>>,
    input: Zeroizing<Vec<u8>>,
    consumed: usize,
    filled: usize,
    progress: bool,
}

impl WipedBuffers {
    /// Forgets what was sent. The body went through `scratch` in pieces no longer than
    /// what was sent of it.
    fn wipe_output(&mut self, amount: usize) {
        self.output[..amount].zeroize();
        let copied = amount.min(self.scratch.len());
        self.scratch[..copied].zeroize();
    }

    fn ensure_output(&mut self) {
        self.output.resize(OUTPUT_BYTES, 0);
    }
}

impl Buffers for WipedBuffers {
    fn output(&mut self) -> &mut [u8] {
        self.ensure_output();
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.input.resize(INPUT_BYTES, 0);
        if self.consumed > 0 {
            self.input.copy_within(self.consumed..self.filled, 0);
            let left = self.filled - self.consumed;
            self.input[left..self.filled].zeroize();
            (self.consumed, self.filled) = (0, left);
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        let end = self.consumed + amount;
        self.input[self.consumed..end].zeroize();
        self.consumed = end;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.ensure_output();
        self.scratch.resize(OUTPUT_BYTES, 0);
        (&mut self.scratch, &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.filled > self.consumed && self.progress
    }
}

/// There is no name to resolve; ureq asks all the same, and wants an address.
#[derive(Debug)]
pub(super) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_gone_on_is_wiped() {
        let mut buffers = WipedBuffers::default();
        buffers.input_append_buf()[..6].copy_from_slice(b"canary");
        buffers.input_appended(6);
        buffers.input_consume(4);
        assert_eq!(buffers.input(), b"ry");
        assert_eq!(&buffers.input[..6], b"\0\0\0\0ry");
        buffers.input_append_buf();
        assert_eq!(&buffers.input[..6], b"ry\0\0\0\0");
        assert_eq!(buffers.input(), b"ry");

        let (scratch, output) = buffers.tmp_and_output();
        scratch[..6].copy_from_slice(b"canary");
        output[..6].copy_from_slice(b"canary");
        buffers.wipe_output(6);
        assert!(buffers.output.iter().chain(buffers.scratch.iter()).all(|byte| *byte == 0));
    }
}
