//! The command line as argh parses it. The doc comments of options are their help.

use std::ffi::OsString;
use std::path::PathBuf;

use argh::{FromArgs, SubCommands as _};
use intentframe_credentials::CredentialRef;

use super::failure::Failure;
use super::{
    audit, backup, commands, config, dev, doctor, exec, export, import, metadata, policy, rotate,
    seal, serve, store, systemd_credentials, validate,
};

/// The IntentFrame credential vault: the service and its command-line client.
#[derive(FromArgs)]
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
    #[argh(switch)]
    pub version: bool,

    #[argh(subcommand)]
    pub command: Option<Command>,
}

#[derive(FromArgs)]
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

/// The name of the command: the first argument that is neither an option nor its value.
pub fn command(arguments: &[OsString]) -> Option<&'static str> {
    let mut arguments = arguments.iter().map(|it| it.to_str().unwrap_or_default());
    let name = loop {
        match arguments.next()? {
            "--" => return None,
            "--socket" | "--config" | "--server-uid" => drop(arguments.next()),
            option if option.starts_with('-') => {}
            name => break name,
        }
    };
    Command::COMMANDS.iter().map(|it| it.name).find(|known| *known == name)
}

/// Takes `--` and what follows it: the command that `exec` runs, which need not be UTF-8.
pub fn take_program(arguments: &mut Vec<OsString>) -> Vec<OsString> {
    let dashes = arguments.iter().position(|it| it == "--");
    dashes.map_or_else(Vec::new, |dashes| arguments.split_off(dashes).split_off(1))
}

/// Turns `--name=value` into two arguments, the only form that argh knows.
pub fn split_assignments(arguments: Vec<OsString>) -> Result<Vec<String>, Failure> {
    let mut split = Vec::with_capacity(arguments.len());
    let mut may_be_option = true;
    for argument in arguments {
        let argument =
            argument.into_string().map_err(|_| Failure::usage("an argument is not UTF-8"))?;
        may_be_option &= argument != "--";
        match argument.split_once('=') {
            Some((name, value)) if may_be_option && name.starts_with("--") => {
                split.extend([name.to_owned(), value.to_owned()]);
            }
            _ => split.push(argument),
        }
    }
    Ok(split)
}

/// Takes the last `--socket PATH` or `--config PATH`: argh knows it only before the command.
pub fn take_path(arguments: &mut Vec<String>, option: &str) -> Result<Option<PathBuf>, Failure> {
    let end = arguments.iter().position(|it| it == "--").unwrap_or(arguments.len());
    let Some(at) = arguments[..end].iter().rposition(|it| it == option) else {
        return Ok(None);
    };
    let path = arguments.drain(at..end.min(at + 2)).nth(1);
    path.map(PathBuf::from)
        .map(Some)
        .ok_or_else(|| Failure::usage(format!("{option} needs a path")))
}

/// The error for what argh rejected. argh repeats an argument that it does not know, which
/// may be a value after `store`.
pub fn rejected(message: &str, command: Option<&str>) -> Failure {
    let is_repeated =
        message.starts_with("Unrecognized argument") || message.contains("with value");
    if is_repeated && command == Some("store") {
        return Failure::usage("store does not know one of its arguments").hint(
            "a value is never taken from the command line: every user of the machine can see it\n  \
             in the process list, and the shell keeps it in its history. Type it at the prompt of\n  \
             `credential-vault store NAMESPACE/KEY`, or send it to its standard input:\n  \
             `... | credential-vault store NAMESPACE/KEY`",
        );
    }
    Failure::usage(message.trim_end())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_command_is_the_first_argument_that_is_no_option() {
        for (line, name) in [
            ("exec -- a -- b", Some("exec")),
            ("--socket exec get --json", Some("get")),
            ("--server-uid 7 exec -- a", Some("exec")),
            ("--socket=x exec --", Some("exec")),
            ("nonsense get", None),
            ("--version", None),
            ("--socket", None),
            ("-- get", None),
        ] {
            assert_eq!(command(&words(line)), name, "{line}");
        }
    }

    #[test]
    fn a_program_follows_the_first_double_dash() {
        let mut arguments = words("exec --mask -- a -- b");
        assert_eq!(take_program(&mut arguments), ["a", "--", "b"]);
        assert_eq!(arguments, ["exec", "--mask"]);
        assert!(take_program(&mut arguments).is_empty());
    }

    #[test]
    fn assignments_are_split_up_to_the_double_dash() {
        assert_eq!(
            split_assignments(words("--socket=/a=b get x/y=z -- --json=1")).expect("UTF-8"),
            ["--socket", "/a=b", "get", "x/y=z", "--", "--json=1"]
        );
    }
}
