//! `systemd-credentials`: gives systemd the values that other units load with `LoadCredential=`.
//!
//! systemd connects and reads to the end; it sends nothing. What it wants is in the address that
//! it connects from (systemd.exec(5)). A credential that ends too early cannot be told from a
//! whole one, so a refusal is an answer that is too long: systemd then does not start the unit.

use std::fmt::Display;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use intentframe_credentials::client::VaultClient;
use intentframe_credentials::peer::Process;
use intentframe_credentials::server::{Endpoint, Listener, SocketAccess};
use intentframe_credentials::{CredentialRef, Secret, settings};
use rustix::event::{PollFd, PollFlags, poll};
use sd_notify::NotifyState;
use signal_hook::low_level::pipe;

use super::prelude::*;
use super::signals::STOP;
use super::supervised;

/// systemd takes a credential of at most 1 MiB.
const TOO_LONG: u64 = 2 * 1024 * 1024;

/// Values that are fetched at a time. At the start of a machine, many units want theirs.
const WORKERS: usize = 8;

const ROOT: u32 = 0;

/// Serve the credentials that other systemd units load with LoadCredential=.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "systemd-credentials", help_triggers("-h", "--help"))]
#[argh(note = "A unit loads a credential with LoadCredential=NAMESPACE~KEY:PATH, where PATH is\n\
            that of --listen, and gets it if the policy of the service lets the unit read it.\n\
            Only root, and so only the system's manager, is served. Under a service manager,\n\
            the socket passed in LISTEN_FDS is used.")]
pub struct SystemdCredentials {
    /// listen on this socket
    #[argh(option, arg_name = "path")]
    listen: Option<PathBuf>,
}

pub fn run(args: SystemdCredentials, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let endpoint = match (supervised::inherited_socket(&context.environment)?, args.listen) {
        (Some(endpoint), _) => endpoint,
        (None, Some(path)) => Endpoint::Unix(settings::expand_tilde(&path, &context.environment)?),
        (None, None) => return Err(Failure::usage("give --listen PATH, or pass a socket")),
    };
    if endpoint.is_open_to_others() {
        return Err(Failure::usage("other users may connect to this socket; SocketMode=0600"));
    }
    let bound = Listener::bind(&endpoint, SocketAccess::default()).map_err(Failure::other)?;
    let listener = bound.as_fd().try_clone_to_owned().map_err(cannot("listen"))?.into();
    let stopped = on_signal().map_err(cannot("handle signals"))?;
    log::info!("serving the credentials of units at {endpoint}");
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| serve(&listener, &stopped, &client));
        }
        supervised::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    });
    supervised::notify(&[NotifyState::Stopping]);
    Ok(())
}

/// Readable once SIGTERM or SIGINT has arrived.
fn on_signal() -> io::Result<UnixStream> {
    let (stopped, stop) = UnixStream::pair()?;
    for signal in STOP {
        pipe::register(signal, stop.try_clone()?)?;
    }
    Ok(stopped)
}

/// The life of a worker. It ends between two answers, so that none is cut off.
fn serve(listener: &UnixListener, stopped: &UnixStream, client: &VaultClient) {
    const PAUSE: Duration = Duration::from_millis(100);
    // Another worker was faster, or the client is gone.
    let harmless = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted];
    loop {
        let mut watched =
            [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        let polled = poll(&mut watched, None).map_err(io::Error::from);
        if !watched[1].revents().is_empty() {
            return;
        }
        match polled.and_then(|_| listener.accept()) {
            Ok((stream, address)) => {
                // Without its reader there is nobody to tell.
                let _ = answer(stream, &address, client);
            }
            Err(error) if harmless.contains(&error.kind()) => {}
            Err(error) => {
                log::error!("connections cannot be accepted; trying again: {error}");
                thread::sleep(PAUSE);
            }
        }
    }
}

fn answer(mut stream: UnixStream, from: &SocketAddr, client: &VaultClient) -> io::Result<()> {
    let peer = Process::across(&stream)?;
    if peer.uid != ROOT {
        log::warn!("refused a connection of user {}: only root is served", peer.uid);
        return Ok(());
    }
    match value(from, client) {
        Ok(value) => stream.write_all(value.expose().as_bytes()),
        Err(reason) => {
            log::warn!("refused, so that the unit does not start: {reason}");
            io::copy(&mut io::repeat(0).take(TOO_LONG), &mut stream).map(drop)
        }
    }
}

/// The value of the credential that a unit wants, or why it does not get it.
fn value(from: &SocketAddr, client: &VaultClient) -> Result<Secret, String> {
    let address = abstract_name(from).and_then(|name| str::from_utf8(name).ok());
    let (unit, name) = address
        .and_then(unit_and_name)
        .ok_or("systemd connects from the address RANDOM/unit/UNIT/CREDENTIAL")?;
    let failed = |reason: &dyn Display| format!("{unit}, credential {name:?}: {reason}");
    let names = name.split_once('~').ok_or_else(|| failed(&"it is named NAMESPACE~KEY"))?;
    let at = CredentialRef::parse(names.0, names.1).map_err(|error| failed(&error))?;
    let value = client.get_for_unit(unit, &at).map_err(|error| failed(&error))?;
    value.ok_or_else(|| failed(&"there is no such credential"))
}

/// The unit, and its name for the credential.
fn unit_and_name(address: &str) -> Option<(&str, &str)> {
    let (_random, rest) = address.split_once('/')?;
    let (unit, name) = rest.strip_prefix("unit/")?.split_once('/')?;
    (!unit.is_empty() && !name.contains('/')).then_some((unit, name))
}

#[cfg(target_os = "linux")]
fn abstract_name(address: &SocketAddr) -> Option<&[u8]> {
    std::os::linux::net::SocketAddrExt::as_abstract_name(address)
}

/// Only Linux has abstract addresses, and systemd.
#[cfg(not(target_os = "linux"))]
fn abstract_name(_: &SocketAddr) -> Option<&[u8]> {
    None
}

#[cfg(test)]
mod tests {
    use super::unit_and_name;

    #[test]
    fn an_address_has_a_unit_and_a_name() {
        for (address, expected) in [
            ("f00/unit/edi.service/openai~api_key", Some(("edi.service", "openai~api_key"))),
            ("f00/unit/a@1.service/x", Some(("a@1.service", "x"))),
            ("f00/unit/edi.service/a/b", None),
            ("f00/unit//a", None),
            ("f00/unit/edi.service", None),
            ("f00/system/edi.service/a", None),
            ("unit/edi.service/a", None),
            ("", None),
        ] {
            assert_eq!(unit_and_name(address), expected, "{address}");
        }
    }
}
