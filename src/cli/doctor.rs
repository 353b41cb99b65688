//! `doctor`: examines what the service depends on, and mends what can be mended safely.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use intentframe_credentials::backend::{Finding, KEY_FILE, SharedMetadata, create_vault};
use intentframe_credentials::caller::Caller;
use intentframe_credentials::client::{ClientError, Health, VaultClient};
use intentframe_credentials::metadata::{MetadataStore, Snapshot};
use intentframe_credentials::server::{Endpoint, Listener, SocketAccess};
use intentframe_credentials::{
    CredentialRecord, CredentialRef, CredentialVault, VaultError, mask_value, ownership,
};

use super::local::Local;
use super::prelude::*;
use super::seal;

/// Examine what the service depends on: files, socket, database, backend, credentials. The exit
/// code is 1 if there is a problem.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "doctor", help_triggers("-h", "--help"))]
#[argh(
    note = "Run it as the user of the service, with the options and the environment of `serve`.\n\
            It prints no value. With --fix it takes rights to files away from other users,\n\
            removes the socket of a service that is gone and, while no service runs, corrects\n\
            previews."
)]
pub struct Doctor {
    /// the data directory of the service (INTENTFRAME_DATA_DIR)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the backend of the service (IF_VAULT_BACKEND)
    #[argh(option, arg_name = "name")]
    backend: Option<String>,

    /// the policy of the service (IF_VAULT_POLICY)
    #[argh(option, arg_name = "path")]
    policy: Option<PathBuf>,

    /// the audit log of the service (IF_VAULT_AUDIT_LOG)
    #[argh(option, arg_name = "path")]
    audit_log: Option<PathBuf>,

    /// the key of the backend sealed, as for serve (IF_VAULT_KEY_FILE)
    #[argh(option, arg_name = "path")]
    key_file: Option<PathBuf>,

    /// read the passphrase of the backend sealed from this file descriptor
    #[argh(option, arg_name = "number")]
    passphrase_fd: Option<i32>,

    /// mend what can be mended safely
    #[argh(switch)]
    fix: bool,

    /// print JSON
    #[argh(switch)]
    json: bool,
}

/// Free space that a busy database and its log do not use up.
const LEAST_SPACE: u64 = 32 * 1024 * 1024;
/// How long a change that is under way may make backend and database differ, usually.
const MOMENT: Duration = Duration::from_secs(1);

pub fn run(args: Doctor, context: &Context) -> Result<(), Failure> {
    let mut local = Local::new(context, args.data_dir.as_deref(), args.backend, args.key_file)?;
    let policy = context.setting_path(args.policy, "IF_VAULT_POLICY")?;
    let audit_log = context.setting_path(args.audit_log, "IF_VAULT_AUDIT_LOG")?;
    let client = context.client()?;
    let mut report = Report { fix: args.fix, findings: Vec::new() };
    let service = report.socket(&client);
    if service.is_none() {
        seal::unlock(&mut local, args.passphrase_fd, context)?;
    }
    local.backend_options.own_socket = Some(client.socket().to_owned());
    let vault = create_vault(&local.backend, &local.backend_options)?;
    report.files(&local, client.socket(), policy.as_deref(), audit_log.as_deref());
    let is_sound = report.database(&local.database);
    if report.backend(&local, &*vault, service.as_deref()) && is_sound {
        report.values(&local, &*vault, service.is_some());
    }
    report.print(args.json)
}

struct Report {
    fix: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, kind: &'static str, about: impl ToString, what: impl ToString) {
        self.findings.push(Finding::new(kind, about, what));
    }

    /// Adds a finding. With `--fix`, calls `mend`, which returns what it did.
    fn mend<E: Display>(&mut self, mut finding: Finding, mend: impl FnOnce() -> Result<String, E>) {
        match self.fix.then(mend) {
            Some(Ok(done)) => finding.fixed = Some(done),
            Some(Err(reason)) => finding.what.extend(["; not fixed: ", &reason.to_string()]),
            None => {}
        }
        self.findings.push(finding);
    }

    /// Examines the socket. If something serves it, returns the name of the service's backend,
    /// which is empty if it is not known.
    fn socket(&mut self, client: &VaultClient) -> Option<String> {
        let (socket, about) = (client.socket(), client.socket().display());
        match client.health() {
            Ok(Health { status, backend, .. }) => {
                let kind = if status == "ok" { "service" } else { "service-degraded" };
                let who = Caller::serving(socket).map_or_else(String::new, |it| it.to_string());
                self.add(kind, about, format!("it is served by {who}: {status}, {backend}"));
                return Some(backend);
            }
            Err(ClientError::Unreachable { .. }) if socket.symlink_metadata().is_ok() => {
                let finding = Finding::new("socket-stale", about, "no service answers on it");
                // A listener takes the lock of the path before it removes what is stale.
                let endpoint = Endpoint::Unix(socket.to_owned());
                let bind = || Listener::bind(&endpoint, SocketAccess::default());
                self.mend(finding, || bind().map(|_| "removed".to_owned()));
            }
            Err(ClientError::Unreachable { .. }) => {
                self.add("service-absent", about, "no service runs");
            }
            Err(error) => {
                self.add("service-failed", about, error);
                return Some(String::new());
            }
        }
        None
    }

    /// Examines modes and owners of the files, and the space on the disk.
    fn files(&mut self, local: &Local, socket: &Path, policy: Option<&Path>, log: Option<&Path>) {
        let Local { data_dir, database, .. } = local;
        let of_socket = if policy.is_some() { 0 } else { 0o077 };
        let key = local.backend_options.key_file.clone();
        let key = key.unwrap_or_else(|| ownership::parent(data_dir).join(KEY_FILE));
        let mut files = vec![
            (data_dir.clone(), 0o022),
            (ownership::parent(socket).to_owned(), 0o022),
            (socket.to_owned(), of_socket),
            (key, 0o077),
        ];
        let of_database = ["", "-wal", "-shm", "-journal"];
        files.extend(of_database.map(|it| (format!("{}{it}", database.display()).into(), 0o077)));
        files.extend(policy.into_iter().chain(log).map(|path| (path.to_owned(), 0o022)));
        for (path, forbidden) in files {
            let Ok(found) = path.symlink_metadata() else { continue };
            let (about, mode) = (path.display(), found.mode() & 0o7777);
            let private = mode & !forbidden;
            // Everybody may write to a sticky directory such as /tmp.
            if mode != private && mode & 0o1000 == 0 && !found.is_symlink() {
                let finding = Finding::new("mode-open", &about, format!("its mode is {mode:04o}"));
                let set = || fs::set_permissions(&path, Permissions::from_mode(private));
                self.mend(finding, || set().map(|()| format!("mode {private:04o}")));
            }
            let checked = if path.is_dir() {
                ownership::check_directory(&path)
            } else {
                ownership::check_file(&path, &found)
            };
            if let Err(reason) = checked
                && path != socket
            {
                self.add("path-unsafe", about, reason);
            }
        }
        if let Ok(disk) = rustix::fs::statvfs(data_dir) {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let kind = if free < LEAST_SPACE { "disk-full" } else { "disk" };
            self.add(kind, data_dir.display(), format!("{} MiB are free", free >> 20));
        }
    }

    /// Examines the file of the database. Returns whether its rows can be compared.
    fn database(&mut self, path: &Path) -> bool {
        let damage = path.exists().then(|| Snapshot::open(path).and_then(|it| it.damage()));
        let (kind, what) = match damage {
            None => ("database-absent", "there is none yet".to_owned()),
            Some(Ok(damage)) if damage.is_empty() => ("database", "it is sound".to_owned()),
            Some(Ok(damage)) => ("database-unusable", damage.join("; ")),
            Some(Err(error)) => ("database-unusable", error.to_string()),
        };
        self.add(kind, path.display(), what);
        kind == "database"
    }

    /// Examines the backend. Returns whether its values can be compared with the database.
    fn backend(
        &mut self,
        local: &Local,
        vault: &dyn CredentialVault,
        service: Option<&str>,
    ) -> bool {
        let name = &local.backend;
        let wrapped = local.backend_options.environment.setting("VAULT_SECRET_ID_WRAPPED");
        // Any question tells whether a keyring is there and unlocked.
        let probe = CredentialRef::parse("vault", "probe").expect("a valid name");
        let seal = || Snapshot::open(&local.database)?.seal();
        let is_sealed = || seal().is_ok_and(|(header, _)| header.is_some());
        if let Some(other) = service.filter(|it| !it.is_empty() && *it != vault.name()) {
            self.add("service-other-backend", name, format!("the service uses {other}"));
        } else if name == "env" {
            self.add("backend-memory", name, "only the service has the values");
        } else if name == "hashicorp" && !matches!(wrapped, None | Some("0" | "f" | "false")) {
            self.add("backend-skipped", name, "its wrapped secret ID can be used once");
        } else if vault.in_database().is_some() && (service.is_some() || !is_sealed()) {
            self.add("backend-sealed", name, "values and metadata change together");
        } else if let Err(error) = vault.check().and_then(|()| vault.has(&probe)) {
            self.add("backend-failed", name, error);
        } else {
            self.add("backend", name, "it answers");
            self.findings.extend(vault.diagnose());
            return vault.metadata_keeper().is_none();
        }
        false
    }

    /// Compares the backend with the database. With `--fix`, corrects previews.
    fn values(&mut self, local: &Local, vault: &dyn CredentialVault, is_served: bool) {
        let (path, backend) = (&local.database, &local.backend);
        let look = || disagreements(vault, &Snapshot::open(path)?);
        let found = look().and_then(|mut found| {
            // A change under way is not found twice: its credential is stored at another time. The
            // service settles its own intents.
            if is_served && !found.is_empty() {
                thread::sleep(MOMENT);
                let again = look()?;
                found
                    .retain(|(it, _)| it.kind != "change-open" && again.iter().any(|a| a.0 == *it));
            }
            Ok(found)
        });
        let found = match found {
            Err(error @ VaultError::Metadata(_)) => return self.add("row-invalid", "a row", error),
            Err(error) => return self.add("backend-failed", backend, error),
            Ok(none) if none.is_empty() => {
                return self.add("values", backend, "it agrees with the database");
            }
            Ok(found) => found,
        };
        for (finding, correction) in found {
            match correction {
                None => self.findings.push(finding),
                Some(record) => self.mend(finding, || correct(path, vault, record)),
            }
        }
    }

    fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            output::json(&self.findings)?;
        }
        for it in self.findings.iter().filter(|_| !json) {
            let mut lines = vec![format!("{:8} {}: {}", it.severity, it.about, it.what)];
            if it.severity != "ok" {
                lines.extend([format!("  why: {}", it.why), format!("  do: {}", it.advice)]);
            }
            lines.extend(it.fixed.as_ref().map(|done| format!("  fixed: {done}")));
            let lines: Vec<_> = lines.iter().map(|it| output::escaped(it)).collect();
            output::text(&(lines.join("\n") + "\n"))?;
        }
        let is_left = |it: &&Finding| it.severity == "problem" && it.fixed.is_none();
        match self.findings.iter().filter(is_left).count() {
            0 => Ok(()),
            count => Err(Failure::new(NOT_FOUND, format!("problems: {count}"))),
        }
    }
}

/// Writes the corrected record, unless a service uses the database.
fn correct(
    database: &Path,
    vault: &dyn CredentialVault,
    record: CredentialRecord,
) -> Result<String, VaultError> {
    let store = match vault.in_database() {
        Some(vault) => vault.database()?,
        None => Arc::new(MetadataStore::open(database)?),
    };
    match vault.shared_metadata() {
        Some(shared) => shared.write(&record.at, Some(&record))?,
        None => store.restore(&record.at.clone(), Some(record))?,
    }
    Ok("corrected".to_owned())
}

/// The differences between backend and database, with the records that correct a preview. The
/// service settles the changes that are not finished.
fn disagreements(
    vault: &dyn CredentialVault,
    database: &Snapshot,
) -> Result<Vec<(Finding, Option<CredentialRecord>)>, VaultError> {
    let open = database.open_changes()?;
    let unfinished = |name| (Finding::new("change-open", name, "a change is not finished"), None);
    let mut found: Vec<_> = open.iter().map(unfinished).collect();
    let (mut names, mut namespaces) = (BTreeSet::from_iter(open), Vec::new());
    let shared = vault.shared_metadata().map(SharedMetadata::read_all).transpose()?;
    for mut record in shared.map_or_else(|| database.records(), Ok)? {
        let (at, stored) = (record.at.clone(), record.updated_at);
        namespaces.push(at.namespace().clone());
        if !names.insert(at.to_string()) {
            continue;
        }
        let (kind, what, correction) = match vault.get(&at) {
            Ok(None) => {
                let what = format!("it is listed, stored {stored}, but there is no value");
                ("value-missing", what, None)
            }
            Ok(Some(value)) => {
                let preview = mask_value(value.expose());
                // A preview that shows nothing is never wrong.
                if [&*preview, "****"].contains(&&*record.masked_preview) {
                    continue;
                }
                record.masked_preview = preview;
                let what = format!("its preview, stored {stored}, is not of its value");
                ("preview-wrong", what, Some(record))
            }
            Err(error @ VaultError::ReadFailed { .. }) => {
                ("value-unreadable", error.to_string(), None)
            }
            Err(error) => return Err(error),
        };
        found.push((Finding::new(kind, at, what), correction));
    }
    namespaces.dedup();
    // Hosts share a Vault, but each has a database of its own.
    let is_shared = vault.name() == "HashiCorpVault";
    let unlisted = if is_shared { "value-shared" } else { "value-unlisted" };
    for namespace in namespaces {
        for key in vault.list_keys(&namespace)? {
            let name = format!("{namespace}/{key}");
            if !names.contains(&name) {
                found.push((Finding::new(unlisted, name, "its value is not listed"), None));
            }
        }
    }
    Ok(found)
}
