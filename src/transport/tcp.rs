//! TCP under the HTTP library, with TLS where the URI asks for it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::Error;
use ureq::unversioned::resolver::{DefaultResolver, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout};

use super::stream::{Idle, NotConnected, Stream, StreamTransport};

/// Resolves a name when it connects, and tries its addresses one after the other. (ureq
/// asks its resolver for every request, be there a kept connection or not, and that starts
/// a thread each time.)
pub(crate) struct TcpConnector {
    tls: Option<Arc<ClientConfig>>,
}

impl TcpConnector {
    /// With `tls` for `https` URIs; without it, they fail.
    pub(crate) fn new(tls: Option<Arc<ClientConfig>>) -> Self {
        Self { tls }
    }
}

/// Shows no configuration: it holds the client's key.
impl fmt::Debug for TcpConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TcpConnector")
    }
}

impl Connector<()> for TcpConnector {
    type Out = StreamTransport<MaybeTls>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        let resolver = DefaultResolver::default();
        let addresses = resolver.resolve(details.uri, details.config, details.timeout)?;
        let tcp = connect(&addresses, details.timeout).map_err(not_connected)?;
        // Requests are small, and each waits for its answer.
        tcp.set_nodelay(true)?;
        if details.uri.scheme_str() != Some("https") {
            return Ok(Some(StreamTransport::new(MaybeTls::Plain(tcp), Idle::Peek)));
        }
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| other(&error))?;
        let config = self.tls.as_ref().ok_or(Error::Tls("TLS is not set up"))?;
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(|e| other(&e))?;
        let stream = MaybeTls::Tls(Box::new(StreamOwned::new(tls, tcp)));
        Ok(Some(StreamTransport::new(stream, Idle::Peek)))
    }
}

fn other(error: &dyn std::error::Error) -> Error {
    not_connected(io::Error::other(error.to_string()))
}

fn not_connected(error: io::Error) -> Error {
    Error::Other(Box::new(NotConnected(error)))
}

fn connect(addresses: &[SocketAddr], timeout: NextTimeout) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let attempt = match timeout.not_zero() {
            Some(timeout) => TcpStream::connect_timeout(address, *timeout),
            None => TcpStream::connect(address),
        };
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A TCP connection, in the clear or within TLS. The handshake is made by the first write.
pub(crate) enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl MaybeTls {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref(),
        }
    }
}

impl Read for MaybeTls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for MaybeTls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

impl Stream for MaybeTls {
    const RESET_MEANS_UNREAD: bool = false;

    fn socket(&self) -> impl AsFd {
        self.tcp()
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.tcp().set_read_timeout(timeout)?;
        self.tcp().set_write_timeout(timeout)
    }
    fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}
