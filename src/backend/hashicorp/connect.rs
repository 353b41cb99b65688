//! Connections under the HTTP library: its own TCP and TLS, or a Unix socket, with buffers
//! that are wiped.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::{read, retry_on_intr};
use rustix::net::RecvFlags;
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, LazyBuffers, NextTimeout, Transport,
};
use zeroize::Zeroize;

use crate::unix_socket::connect;

use super::tls::Tls;

/// Connects to the server.
#[derive(Debug)]
pub(super) enum Dialer {
    Unix(PathBuf),
    Http(Tls),
}

impl Connector<()> for Dialer {
    type Out = Wiped;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Wiped>, Error> {
        Ok(match self {
            Self::Unix(path) => Some(UnixTransport::connect(path, details)?),
            Self::Http(tls) => connect_http(tls, details)?,
        }
        .map(Wiped))
    }
}

/// Resolves the name and connects. The configuration of TLS, and the connector that would keep
/// it, are made anew, so that the client certificate is the one in the files now.
fn connect_http(
    tls: &Tls,
    details: &ConnectionDetails<'_>,
) -> Result<Option<Box<dyn Transport>>, Error> {
    let resolver = DefaultResolver::default();
    let with_tls = if details.needs_tls() {
        let tls = tls.config().map_err(|reason| Error::Other(reason.into()))?;
        let config = Config::builder()
            .proxy(None)
            .tls_config(tls)
            .input_buffer_size(details.config.input_buffer_size())
            .output_buffer_size(details.config.output_buffer_size());
        Some(config.build())
    } else {
        None
    };
    let details = ConnectionDetails {
        uri: details.uri,
        addrs: resolver.resolve(details.uri, details.config, details.timeout)?,
        config: with_tls.as_ref().unwrap_or(details.config),
        request_level: details.request_level,
        resolver: details.resolver,
        now: details.now,
        timeout: details.timeout,
        current_time: Arc::clone(&details.current_time),
        run_connector: Arc::clone(&details.run_connector),
        register_shutdown: Arc::clone(&details.register_shutdown),
    };
    DefaultConnector::new().connect(&details, None)
}

/// Resolves nothing, since [`Dialer`] resolves when it connects. ureq resolves before every request, even where it has
/// a connection, and its own resolver starts a thread each time.
#[derive(Debug)]
pub(super) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}

/// A connection whose buffers are wiped: values and tokens pass through them, and an idle
/// connection keeps them.
#[derive(Debug)]
pub(super) struct Wiped(Box<dyn Transport>);

impl Wiped {
    fn wipe_input(&mut self) {
        let buffers = self.0.buffers();
        buffers.input_consume(buffers.input().len());
        // When nothing is left to read, the free part is the whole buffer.
        buffers.input_append_buf().zeroize();
    }
}

impl Transport for Wiped {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let sent = self.0.transmit_output(amount, timeout);
        self.0.buffers().output()[..amount].zeroize();
        sent
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    /// ureq asks this of a connection that has carried a whole answer, before it keeps it.
    fn is_open(&mut self) -> bool {
        self.wipe_input();
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.wipe_input();
    }
}

struct UnixTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl UnixTransport {
    fn connect(path: &Path, details: &ConnectionDetails<'_>) -> Result<Box<dyn Transport>, Error> {
        let timeout = details.timeout;
        let stream = connect(path, *timeout.not_zero().unwrap_or(timeout.after))?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Box::new(Self { stream, buffers }))
    }
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|timeout| *timeout))?;
        Ok(self.stream.write_all(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|timeout| *timeout))?;
        let received = retry_on_intr(|| read(&self.stream, self.buffers.input_append_buf()));
        let count = received.map_err(io::Error::from)?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    /// An idle connection is open if there is nothing to read, not even its end.
    fn is_open(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(&self.stream, &mut [0; 1], flags);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

/// Does not show the buffers.
impl fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnixTransport")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_keeps_nothing_in_its_buffers() {
        let (stream, mut server) = UnixStream::pair().expect("a pair");
        let inner = Box::new(UnixTransport { stream, buffers: LazyBuffers::new(64, 64) });
        let mut connection = Wiped(inner);
        connection.buffers().output()[..6].copy_from_slice(b"canary");
        connection.transmit_output(6, NextTimeout::default()).expect("sends");
        assert!(connection.buffers().output().iter().all(|byte| *byte == 0));

        server.write_all(b"a canary").expect("sends");
        connection.await_input(NextTimeout::default()).expect("receives");
        connection.buffers().input_consume(2);
        server.write_all(b", two").expect("sends");
        connection.await_input(NextTimeout::default()).expect("receives");
        assert_eq!(connection.buffers().input(), b"canary, two");
        connection.buffers().input_consume(11);
        assert!(connection.is_open());
        assert!(connection.buffers().input_append_buf().iter().all(|byte| *byte == 0));
        drop(server);
        assert!(!connection.is_open());
    }
}
