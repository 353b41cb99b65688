//! TCP under the HTTP library, with TLS where the URI asks for it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use ureq::Error;
use ureq::http::Uri;
use ureq::http::uri::Authority;
use ureq::unversioned::resolver::{DefaultResolver, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout};

use super::link::{KeptLink, LastLink, Link};
use super::stream::{Idle, NotConnected, StreamTransport};

/// Resolves a name when it connects, and tries its addresses one after the other. (ureq
/// asks its resolver for every request, be there a kept connection or not, and that starts
/// a thread each time.)
pub(crate) struct TcpConnector {
    /// The host and port whose links are remembered, and where.
    home: Authority,
    last: LastLink,
    tls: Option<Arc<ClientConfig>>,
}

impl TcpConnector {
    /// With `tls` for `https` URIs; without it, they fail. Links to `home` are remembered
    /// in `last`.
    pub(crate) fn new(home: Authority, last: LastLink, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { home, last, tls }
    }
}

/// Shows no configuration: it holds the client's key.
impl fmt::Debug for TcpConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TcpConnector")
    }
}

impl TcpConnector {
    fn tls(&self, uri: &Uri) -> Result<ClientConnection, Error> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| other(&error))?;
        let config = self.tls.as_ref().ok_or(Error::Tls("TLS is not set up"))?;
        ClientConnection::new(Arc::clone(config), name).map_err(|error| other(&error))
    }
}

impl Connector<()> for TcpConnector {
    type Out = StreamTransport<KeptLink>;

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
        let tls = match details.uri.scheme_str() {
            Some("https") => Some(self.tls(details.uri)?),
            _ => None,
        };
        let link = Link::tcp(tcp, tls);
        let is_home = details.uri.authority() == Some(&self.home);
        let kept = if is_home { self.last.keep(link) } else { link.into() };
        Ok(Some(StreamTransport::new(kept, Idle::Peek)))
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
