//! Access: the one place that decides by the peer whether a request may be carried out.

use std::net::IpAddr;

use crate::peer::{Peer, Process};

use super::{Answer, RequestHead};

/// The access rules.
///
/// Over the Unix socket, only the service's own user and root are admitted. Over TCP, which is
/// for development, the client must have meant this machine: a request whose `Host` is not
/// localhost or a loopback address, or that carries an `Origin`, comes from a web page and is
/// refused.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    owner_uid: u32,
}

const ROOT: u32 = 0;

impl Access {
    /// The rules for a service that runs as `owner_uid`.
    #[must_use]
    pub fn of_owner(owner_uid: u32) -> Self {
        Self { owner_uid }
    }

    /// Whether the peer of a new connection may ask for anything.
    pub(super) fn admit(self, peer: Peer) -> Result<(), Answer> {
        match peer {
            Peer::Process(Process { uid, .. }) if uid != self.owner_uid && uid != ROOT => {
                log::warn!("refused: {peer} is neither the service's user nor root");
                Err(Answer::error(
                    403,
                    "this vault answers only its own user and root; run as that user",
                ))
            }
            Peer::Process(_) | Peer::Tcp(_) => Ok(()),
        }
    }
}

/// Whether the request may be carried out for a peer that was admitted.
pub(super) fn check(head: &RequestHead<'_>) -> Result<(), Answer> {
    match head.peer {
        Peer::Tcp(_) if head.has_origin => {
            Err(Answer::error(403, "requests from web pages (with an Origin) are refused"))
        }
        Peer::Tcp(_) if !head.host.is_some_and(is_loopback) => {
            Err(Answer::error(403, "the Host must be localhost or a loopback address"))
        }
        Peer::Process(_) | Peer::Tcp(_) => Ok(()),
    }
}

/// Whether a `Host` (RFC 9110, 7.2), with or without a port, names this machine.
fn is_loopback(host: &str) -> bool {
    let name = if let Some(bracketed) = host.strip_prefix('[') {
        let Some((address, port)) = bracketed.split_once(']') else { return false };
        if !(port.is_empty() || port.starts_with(':')) {
            return false;
        }
        address
    } else {
        host.split_once(':').map_or(host, |(name, _port)| name)
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in
            ["localhost", "LOCALHOST:8765", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8765"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "10.0.0.1",
            "::1.evil",
            "[::1",
            "[::1]evil",
            "[fe80::1]",
            "localhost@evil.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
