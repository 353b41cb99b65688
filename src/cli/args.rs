//! The command line as argh parses it. The doc comments of options are their help.

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};
use intentframe_credentials::CredentialRef;

use super::failure::Failure;
use super::{
    audit, backup, commands, config, dev, doctor, exec, export, import, metadata, policy, rotate,
    seal, serve, store, systemd_credentials, validate,
};

/// The IntentFrame credential vault: the service and its command-line client.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    help_triggers("-h", "--help", "help"),
    example = "credential-vault serve\n\
               printf %s \"$TOKEN\" | credential-vault store github.myorg/token\n\
               credential-vault get openai/api_key\n\
               credential-vault check openai/api_key email.you@gmail.com/password\n\
               credential-vault exec --consumer jarvis -- jarvis --port 8080",
    note = "A credential is named NAMESPACE/KEY. The socket is the one given by --socket,\n\
            else by INTENTFRAME_VAULT_SOCKET, else ~/.intentframe/run/credential-vault.sock.\n\
            Every command has its own --help.",
    error_code(
        1,
        "not found: no such credential, or one that `check` asks for; doctor: a problem;\n\
               import: a conflict"
    ),
    error_code(2, "usage: the command line, a setting or the value is invalid"),
    error_code(3, "unreachable: no service answers on the socket"),
    error_code(4, "refused: the service does not allow the request"),
    error_code(5, "any other failure, such as a locked backend"),
    error_code(126, "exec: the command exists but cannot be started"),
    error_code(127, "exec: the command does not exist; else exec exits as the command does")
)]
pub struct Arguments {
    /// the socket of the service, or the one that `serve` and `dev` listen on; may also follow
    /// the command
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// read this configuration file, instead of the user's and the system's; may also follow the
    /// command (IF_VAULT_CONFIG)
    #[argh(option, arg_name = "path")]
    pub config: Option<PathBuf>,

    /// accept a service that runs as this user ID; without it, a command sends nothing
    /// unless the service runs as the current user or root
    #[argh(option, arg_name = "uid")]
    pub server_uid: Option<u32>,

    /// print the version
    #[argh(switch, short = 'V')]
    pub version: bool,

    #[argh(subcommand)]
    pub command: Option<Command>,
}

#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand)]
pub enum Command {
    Serve(serve::Serve),
    Dev(dev::Dev),
    Health(commands::Health),
    List(commands::List),
    Get(commands::Get),
    Has(commands::Has),
    Store(store::Store),
    Delete(commands::Delete),
    RuntimeEnv(commands::RuntimeEnv),
    Check(commands::Check),
    Config(config::ConfigCommand),
    Exec(exec::Exec),
    Policy(policy::PolicyCommand),
    Audit(audit::Audit),
    Rotate(rotate::Rotate),
    Validate(validate::Validate),
    Seal(seal::Seal),
    SystemdCredentials(systemd_credentials::SystemdCredentials),
    Doctor(doctor::Doctor),
    Metadata(metadata::Metadata),
    Backup(backup::Backup),
    Export(export::Export),
    Import(import::Import),
}

/// Parses `NAMESPACE/KEY`. The error does not repeat it: it may be a value in the wrong place.
pub fn credential(name: &str) -> Result<CredentialRef, Failure> {
    const FORM: &str = "a credential is named NAMESPACE/KEY, as in openai/api_key";
    match name.split_once('/') {
        None => Err(Failure::usage(FORM)),
        Some((_, key)) if key.contains('/') => Err(Failure::usage(format!(
            "{FORM}: a single slash; use dots within the namespace, as in github.myorg/token"
        ))),
        Some((namespace, key)) => CredentialRef::parse(namespace, key)
            .map_err(|error| Failure::usage(format!("{error} ({FORM})"))),
    }
}
