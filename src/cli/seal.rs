//! `seal`: the key of the backend `sealed`; and how a passphrase is read.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::sync::Arc;

use intentframe_credentials::backend::{InDatabase as _, SealedVault};
use intentframe_credentials::daemon::DaemonError;
use intentframe_credentials::seal::KeySource;
use intentframe_credentials::text::counted;
use intentframe_credentials::{CredentialVault as _, Secret, VaultError, settings};

use super::local::Local;
use super::logging::keep_out;
use super::prelude::*;
use super::store::{self, prompt};

/// Manage the key of the backend sealed: init, rekey, rewrap or status.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "seal", help_triggers("-h", "--help"))]
#[argh(note = "seal init    make a sealed store, as the first `serve --backend sealed` does\n\
            seal rekey   encrypt all values with a new data key; what opens it stays the same\n\
            seal rewrap  change the key file or the passphrase; the values stay as they are\n\
            seal status  show the ID of the store, what opens it, and the number of values\n\n\
            All but status need the service to be stopped. Without --key-file, the key is\n\
            $CREDENTIALS_DIRECTORY/vault-key, else the passphrase, else vault.key beside the\n\
            data directory, which init makes if it is missing.")]
pub struct Seal {
    /// the data directory of the service (INTENTFRAME_DATA_DIR, else ~/.intentframe/data)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the key file; init makes it if it is missing (IF_VAULT_KEY_FILE)
    #[argh(option, arg_name = "path")]
    key_file: Option<PathBuf>,

    /// read the passphrase from this file descriptor
    #[argh(option, arg_name = "number")]
    passphrase_fd: Option<i32>,

    /// with init: ask for a new passphrase
    #[argh(switch)]
    passphrase: bool,

    /// with rewrap: the key file from now on, made if it is missing
    #[argh(option, arg_name = "path")]
    new_key_file: Option<PathBuf>,

    /// with rewrap: read the new passphrase from this file descriptor, instead of asking for it
    #[argh(option, arg_name = "number")]
    new_passphrase_fd: Option<i32>,

    /// init, rekey, rewrap or status
    #[argh(positional)]
    action: String,
}

pub fn run(args: Seal, context: &Context) -> Result<(), Failure> {
    let action = args.action.as_str();
    let is_new = args.new_key_file.is_some() || args.new_passphrase_fd.is_some();
    if (args.passphrase && action != "init") || (is_new && action != "rewrap") {
        return Err(Failure::usage(format!("seal {action} does not have this option")));
    }
    let backend = Some("sealed".to_owned());
    let mut local = Local::new(context, args.data_dir.as_deref(), backend, args.key_file)?;
    let vault = SealedVault::from_options(&local.backend_options)?;
    match (action, vault.status_of_seal()?) {
        ("status", _) | ("rekey" | "rewrap", None) => return status(&vault),
        ("init", Some(_)) => {
            return Err(Failure::usage("there is a sealed store already")
                .hint("`credential-vault seal rewrap` changes what opens it"));
        }
        ("init" | "rekey" | "rewrap", _) => unlock(&mut local, args.passphrase_fd, context)?,
        _ => return Err(Failure::usage("seal knows init, rekey, rewrap and status")),
    }
    let mut options = local.backend_options;
    if args.passphrase {
        options.passphrase = Some(Arc::new(new_passphrase(context)?));
    }
    if action == "init" {
        options.key_file.clone().map(key_file).transpose()?;
    }
    let vault = SealedVault::from_options(&options)?;
    vault.check()?;
    let done = match action {
        "rekey" => format!("a new key encrypts {}\n", counted(vault.rekey()?, "value")),
        "rewrap" => {
            let source = key(args.new_key_file, args.new_passphrase_fd, None, context)?;
            vault.rewrap(&source)?;
            format!(
                "{source} opens the values from now on. What opened them before still opens older \
                 copies of the database; seal rekey keeps it from new values\n"
            )
        }
        _ => String::new(),
    };
    // This opens the store, and so makes a new one.
    vault.database()?.close().map_err(VaultError::from)?;
    if action == "init" { status(&vault) } else { output::text(&done) }
}

fn status(vault: &SealedVault) -> Result<(), Failure> {
    let Some((header, values)) = vault.status_of_seal()? else {
        return Err(Failure::usage("there is no sealed store in the data directory")
            .hint("`credential-vault seal init` makes one"));
    };
    let key = if header.needs_passphrase() { "passphrase" } else { "key file" };
    let rows = [("store", header.id()), ("key", key), ("values", &values.to_string())];
    output::rows(&["SEAL", ""], &rows.map(|(name, value)| [name.to_owned(), value.to_owned()]))
}

/// The file, or a new one in its place.
fn key_file(path: PathBuf) -> Result<KeySource, Failure> {
    if path.symlink_metadata().is_ok() {
        return Ok(KeySource::File(path));
    }
    let source = KeySource::create_file(&path).map_err(Failure::usage)?;
    log::warn!("made {source}; keep a copy of it in another place");
    Ok(source)
}

/// Reads the passphrase of the backend `sealed`, if that is the backend: from the descriptor, else
/// from the terminal if the store needs one.
pub fn unlock(
    local: &mut Local,
    descriptor: Option<i32>,
    context: &Context,
) -> Result<(), Failure> {
    let options = &mut local.backend_options;
    if local.backend != "sealed" {
        return Ok(());
    }
    if descriptor.is_none() {
        let sealed = SealedVault::from_options(options)?.status_of_seal()?;
        let is_needed = sealed.is_some_and(|(header, _)| header.needs_passphrase());
        if !is_needed || options.key_file.is_some() || !io::stdin().is_terminal() {
            return Ok(());
        }
    }
    let passphrase = passphrase(descriptor, "Passphrase of the vault (not shown): ", context)?;
    options.passphrase = Some(Arc::new(passphrase));
    Ok(())
}

/// The key in a file or from a passphrase. If `is_passphrase` is `None` it is a new one: a missing
/// file is made, and a passphrase is asked for twice.
pub fn key(
    file: Option<PathBuf>,
    passphrase_fd: Option<i32>,
    is_passphrase: Option<bool>,
    context: &Context,
) -> Result<KeySource, Failure> {
    let file = file.map(|path| settings::expand_tilde(&path, &context.environment)).transpose()?;
    let passphrase = match (file, passphrase_fd, is_passphrase) {
        (Some(path), None, None) => return key_file(path),
        (Some(path), None, Some(_)) => return Ok(KeySource::File(path)),
        (Some(_), Some(_), _) => Err(Failure::usage("give a key file or a passphrase, not both")),
        (None, None, Some(false)) => {
            Err(Failure::usage("a key file opens it; give --key-file FILE"))
        }
        (None, None, None) => new_passphrase(context),
        (None, fd, _) => passphrase(fd, "Passphrase of the export (not shown): ", context),
    };
    passphrase.map(KeySource::Passphrase)
}

fn new_passphrase(context: &Context) -> Result<Secret, Failure> {
    let first = passphrase(None, "New passphrase (not shown): ", context)?;
    if passphrase(None, "Again: ", context)?.expose() != first.expose() {
        return Err(Failure::usage("the two passphrases are not the same; nothing was changed"));
    }
    Ok(first)
}

/// A passphrase from the descriptor, else from the terminal.
fn passphrase(
    descriptor: Option<i32>,
    question: &str,
    context: &Context,
) -> Result<Secret, Failure> {
    let passphrase = descriptor.map_or_else(|| ask(question), from_descriptor)?;
    if passphrase.is_empty() {
        return Err(Failure::usage("the passphrase is empty"));
    }
    keep_out(&passphrase, &context.secrets);
    Ok(passphrase)
}

fn ask(question: &str) -> Result<Secret, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("without a terminal, nobody can be asked for a passphrase")
            .hint("--passphrase-fd 5 5< FILE (for rewrap: --new-passphrase-fd) reads it; --key-file FILE\n  \
                 needs none"));
    }
    prompt(question).map(Secret::new).map_err(cannot("read a passphrase from the terminal"))
}

/// Reads a passphrase to the end of what the descriptor refers to.
fn from_descriptor(number: i32) -> Result<Secret, Failure> {
    // Only unsafe code can own a descriptor by its number. Opening it again is safe.
    let file = File::open(format!("/dev/fd/{number}")).map_err(|error| {
        Failure::usage(format!("cannot read a passphrase from descriptor {number}: {error}"))
            .hint(&format!("open it, as in: --passphrase-fd {number} {number}< FILE"))
    })?;
    let passphrase = store::value(file, false)
        .map_err(|_| Failure::usage("a passphrase is UTF-8 text of at most 256 KiB"))?;
    if number > 2 {
        let _ = nix::unistd::close(number);
    }
    Ok(passphrase)
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        DaemonError::from(error).into()
    }
}
