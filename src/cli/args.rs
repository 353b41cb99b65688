//! What may be written on the command line.

// argh prints the doc comments as help, where backticks and backslashes have no place.
#![allow(clippy::doc_markdown, rustdoc::broken_intra_doc_links)]

use std::ffi::OsString;
use std::path::PathBuf;

use argh::FromArgs;

use super::failure::Failure;

/// The IntentFrame credential vault: the service, and the commands that ask it.
#[derive(FromArgs)]
#[argh(
    help_triggers("-h", "--help", "help"),
    example = "credential-vault serve\n\
               printf %s \"$TOKEN\" | credential-vault store github.myorg/token\n\
               credential-vault get openai/api_key\n\
               credential-vault check openai/api_key email.you@gmail.com/password\n\
               credential-vault exec --consumer jarvis -- jarvis --port 8080",
    note = "A credential is named NAMESPACE/KEY. The socket is that of --socket, else of\n\
            INTENTFRAME_VAULT_SOCKET, else ~/.intentframe/run/credential-vault.sock.\n\
            Every command has its own --help.",
    error_code(1, "not found: there is no such credential, or `check` is not content"),
    error_code(2, "usage: the command line or the value is not what it has to be"),
    error_code(3, "unreachable: no service answers on the socket"),
    error_code(4, "refused: the service says that this may not be"),
    error_code(5, "any other failure, such as a backend that is locked"),
    error_code(126, "exec: the command is there and could not be started"),
    error_code(127, "exec: there is no such command; else exec ends as the command does")
)]
pub struct Arguments {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// whom the service may run as, besides this user and root (a number); a command sends
    /// nothing to anybody else's
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
    Serve(Serve),
    Dev(Dev),
    Health(Health),
    List(List),
    Get(Get),
    Has(Has),
    Store(Store),
    Delete(Delete),
    RuntimeEnv(RuntimeEnv),
    Check(Check),
    Exec(Exec),
}

/// Run the service.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "serve",
    help_triggers("-h", "--help"),
    note = "Under a service manager: serves the socket of LISTEN_FDS, if it is passed one, and\n\
            tells NOTIFY_SOCKET when it is ready and when it stops, and by WATCHDOG_USEC that\n\
            it answers."
)]
pub struct Serve {
    /// where to listen; INTENTFRAME_VAULT_SOCKET
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// where the metadata database is kept; INTENTFRAME_DATA_DIR, else ~/.intentframe/data
    #[argh(option, arg_name = "path")]
    pub data_dir: Option<PathBuf>,

    /// where values are kept: keyring (the default), hashicorp, service
    /// (another one, at IF_VAULT_UPSTREAM_SOCKET) or env; IF_VAULT_BACKEND
    #[argh(option, arg_name = "name")]
    pub backend: Option<String>,

    /// wait for a backend that is unavailable, instead of giving up
    #[argh(switch)]
    pub wait_for_backend: bool,

    /// how many threads serve requests
    #[argh(option, arg_name = "count")]
    pub workers: Option<usize>,

    /// write a line to this descriptor, and close it, once requests are served
    #[argh(option, arg_name = "number")]
    pub ready_fd: Option<i32>,
}

/// Run a service for development: values in memory, seeded from a `.env` file.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "dev",
    help_triggers("-h", "--help"),
    note = "Seeds OPENAI_API_KEY, ANTHROPIC_API_KEY, and each EMAIL_<LABEL>_ADDRESS with\n\
            its EMAIL_<LABEL>_PASSWORD. Without a .env it uses .env.example."
)]
pub struct Dev {
    /// the file to seed from, instead of .env
    #[argh(option, arg_name = "path")]
    pub env_file: Option<PathBuf>,

    /// listen on loopback TCP instead of the socket
    #[argh(switch)]
    pub tcp: bool,

    /// the TCP port (with --tcp), 8765 by default
    #[argh(option, arg_name = "number")]
    pub port: Option<u16>,

    /// where to listen; INTENTFRAME_VAULT_SOCKET
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// where the metadata database is kept, instead of ~/.intentframe/dev-data
    #[argh(option, arg_name = "path")]
    pub data_dir: Option<PathBuf>,

    /// how many threads serve requests
    #[argh(option, arg_name = "count")]
    pub workers: Option<usize>,
}

/// Ask the service how it is.
#[derive(FromArgs)]
#[argh(subcommand, name = "health", help_triggers("-h", "--help"))]
pub struct Health {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// List credentials, without their values.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "list",
    help_triggers("-h", "--help"),
    note = "Not on a terminal: tab-separated lines of namespace, key, delivery mode, masked\n\
            preview, time stored, time last used."
)]
pub struct List {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// print JSON
    #[argh(switch)]
    pub json: bool,

    /// only those of this namespace
    #[argh(positional)]
    pub namespace: Option<String>,
}

/// Print a credential's value.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "get",
    help_triggers("-h", "--help"),
    note = "The bare value; a newline follows it on a terminal only."
)]
pub struct Get {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// print JSON
    #[argh(switch)]
    pub json: bool,

    /// which one, as NAMESPACE/KEY
    #[argh(positional)]
    pub credential: String,
}

/// Tell whether there is a credential: exit code 0 or 1.
#[derive(FromArgs)]
#[argh(subcommand, name = "has", help_triggers("-h", "--help"))]
pub struct Has {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// print JSON
    #[argh(switch)]
    pub json: bool,

    /// which one, as NAMESPACE/KEY
    #[argh(positional)]
    pub credential: String,
}

/// Store a value, which is read from standard input or a prompt.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "store",
    help_triggers("-h", "--help"),
    example = "credential-vault store openai/api_key\n\
               credential-vault store tls.example/private_key --keep-newline < key.pem",
    note = "On a terminal the value is asked for and not shown. Else standard input is the\n\
            value: UTF-8, at most 256 KiB, less one newline at its end (\\n or \\r\\n) unless\n\
            --keep-newline is given. It is never taken from the command line, which every\n\
            user of the machine can read in the process list."
)]
pub struct Store {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// executor_only (the default: a trusted service fetches it) or runtime_env (it is
    /// injected as an environment variable)
    #[argh(option, arg_name = "mode")]
    pub delivery_mode: Option<String>,

    /// who may have it; may be repeated; everyone, if not given
    #[argh(option, arg_name = "name")]
    pub consumer: Vec<String>,

    /// the variable it is delivered in
    #[argh(option, arg_name = "name")]
    pub env_name: Option<String>,

    /// what checks that the value still works
    #[argh(option, arg_name = "name")]
    pub validator_id: Option<String>,

    /// take standard input as it is, with the newline at its end
    #[argh(switch)]
    pub keep_newline: bool,

    /// store an empty value, which is otherwise taken for a mistake
    #[argh(switch)]
    pub allow_empty: bool,

    /// which one, as NAMESPACE/KEY
    #[argh(positional)]
    pub credential: String,

    /// here to be refused with a reason
    #[argh(positional, hidden_help)]
    pub more: Vec<String>,
}

/// Delete a credential; that there was none is as good.
#[derive(FromArgs)]
#[argh(subcommand, name = "delete", help_triggers("-h", "--help"))]
pub struct Delete {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// which one, as NAMESPACE/KEY
    #[argh(positional)]
    pub credential: String,
}

/// List the credentials that are delivered as environment variables.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "runtime-env",
    help_triggers("-h", "--help"),
    note = "Not on a terminal: tab-separated lines of namespace, key, variable, consumers\n\
            (separated by commas; none means everyone)."
)]
pub struct RuntimeEnv {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Test that the service answers and has every credential named.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "check",
    help_triggers("-h", "--help"),
    note = "Exits with 0 if so. Else with 1, also when no service answers, and prints those\n\
            that it has not found, one on a line."
)]
pub struct Check {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// print JSON
    #[argh(switch)]
    pub json: bool,

    /// which ones, as NAMESPACE/KEY
    #[argh(positional)]
    pub credentials: Vec<String>,
}

/// Run a command with its credentials in its environment.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "exec",
    help_triggers("-h", "--help"),
    example = "credential-vault exec --consumer jarvis -- jarvis --port 8080\n\
               credential-vault exec --only github.myorg/token -- gh repo list\n\
               credential-vault exec --clean --env PGPASSWORD=db.main/password -- psql\n\
               credential-vault exec --watch --mask -- ./agent",
    note = "Gives every credential of delivery mode runtime_env in the variable stored with it,\n\
            unless options choose. Nothing is started when one of them is missing, has no\n\
            variable, or one that another has too, that is set already to another value, or\n\
            that steers a loader, a shell, an interpreter or a tool (LD_PRELOAD, PATH, ...).\n\
            The variables by which the vault itself comes to secrets (VAULT_TOKEN, ...) are\n\
            removed from the command's environment.\n\n\
            credential-vault is replaced by the command, so that signals, exit code and\n\
            terminal are the command's own. With --mask, --watch or --files it stays, passes\n\
            signals on, and ends as the command does."
)]
pub struct Exec {
    /// the service's socket
    #[argh(option, arg_name = "path")]
    pub socket: Option<PathBuf>,

    /// only credentials for everyone or for this consumer
    #[argh(option, arg_name = "name")]
    pub consumer: Option<String>,

    /// only this one, as NAMESPACE/KEY; may be repeated
    #[argh(option, arg_name = "credential")]
    pub only: Vec<String>,

    /// only those of this namespace (and those of --only); may be repeated
    #[argh(option, arg_name = "name")]
    pub namespace: Vec<String>,

    /// this one as well, in this variable, as NAME=NAMESPACE/KEY; may be repeated
    #[argh(option, arg_name = "mapping")]
    pub env: Vec<String>,

    /// let --env name credentials of delivery mode executor_only
    #[argh(switch)]
    pub allow_executor_only: bool,

    /// start from an environment of PATH, HOME, LANG and TERM alone
    #[argh(switch)]
    pub clean: bool,

    /// keep this variable, although --clean or its kind would remove it; may be repeated
    #[argh(option, arg_name = "name")]
    pub keep: Vec<String>,

    /// replace variables that are set already
    #[argh(switch)]
    pub r#override: bool,

    /// one file per credential in this new directory, instead of variables;
    /// CREDENTIALS_DIRECTORY names it
    #[argh(option, arg_name = "dir")]
    pub files: Option<PathBuf>,

    /// hide the values in what the command writes
    #[argh(switch)]
    pub mask: bool,

    /// start the command again when one of its credentials changes, or it crashes
    #[argh(switch)]
    pub watch: bool,

    /// with --watch: TERM (the default), or HUP, which leaves it running
    #[argh(option, arg_name = "name")]
    pub signal: Option<String>,

    /// with --watch: seconds between TERM and KILL, 30 by default
    #[argh(option, arg_name = "seconds")]
    pub grace: Option<f64>,

    /// with --watch: seconds between looks at the vault, 2 by default
    #[argh(option, arg_name = "seconds")]
    pub interval: Option<f64>,

    /// with --watch: how often in a row it is started again after a crash, 10 by default
    #[argh(option, arg_name = "count")]
    pub max_restarts: Option<u32>,

    /// here to be refused with a reason
    #[argh(positional, hidden_help)]
    pub misplaced: Vec<String>,
}

/// What the command line asks for.
pub enum Parsed {
    /// A command; and what `exec` is to run, which is bytes and not text.
    Run(Box<Arguments>, Vec<OsString>),
    /// The help or the version.
    Print(String),
}

const NAME: &str = "credential-vault";

/// Reads the arguments, without the program's name.
pub fn parse(mut arguments: Vec<OsString>) -> Result<Parsed, Failure> {
    let to_run = split_command(&mut arguments);
    let arguments = arguments
        .into_iter()
        .map(OsString::into_string)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Failure::usage("an argument is not UTF-8"))?;
    let split = split_assignments(&arguments);
    match Arguments::from_args(&[NAME], &split) {
        Ok(Arguments { version: true, .. }) => {
            Ok(Parsed::Print(format!("{NAME} {}\n", env!("CARGO_PKG_VERSION"))))
        }
        Ok(arguments) => Ok(Parsed::Run(Box::new(arguments), to_run)),
        Err(argh::EarlyExit { output, status: Ok(()) }) => {
            Ok(Parsed::Print(format!("{}\n", output.trim_end())))
        }
        Err(argh::EarlyExit { output, status: Err(()) }) => {
            Err(usage_error(&output, split.contains(&"store")))
        }
    }
}

/// Takes off what follows the `--` of `exec`, which is not ours to read.
fn split_command(arguments: &mut Vec<OsString>) -> Vec<OsString> {
    let Some(dashes) = arguments.iter().position(|argument| argument == "--") else {
        return Vec::new();
    };
    // The first argument that is neither an option of ours nor an option's value.
    let mut ours = arguments[..dashes].iter();
    let command = loop {
        match ours.next() {
            Some(option) if option == "--socket" || option == "--server-uid" => drop(ours.next()),
            Some(option) if option.as_encoded_bytes().starts_with(b"-") => {}
            other => break other,
        }
    };
    if command.is_none_or(|command| command != "exec") {
        return Vec::new();
    }
    let mut to_run = arguments.split_off(dashes);
    to_run.remove(0);
    to_run
}

/// `--name=value` as two arguments, which is how argh wants them.
fn split_assignments(arguments: &[String]) -> Vec<&str> {
    let mut split = Vec::with_capacity(arguments.len());
    let mut arguments = arguments.iter();
    for argument in arguments.by_ref() {
        match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => split.extend([name, value]),
            _ => split.push(argument),
        }
        if argument == "--" {
            break;
        }
    }
    split.extend(arguments.map(String::as_str));
    split
}

/// argh's message repeats the argument that it cannot place, which after `store` may be
/// a value.
fn usage_error(message: &str, storing: bool) -> Failure {
    let message = message.trim_end();
    let help = "`credential-vault --help` and `credential-vault COMMAND --help` say what is";
    let is_repeated =
        message.starts_with("Unrecognized argument") || message.contains("with value");
    if storing && is_repeated {
        return Failure::usage(format!(
            "an argument of store is not known\n  {VALUE_ADVICE}\n  {help}"
        ));
    }
    Failure::usage(format!("{message}\n  {help}"))
}

/// How to pass a value to `store`.
pub const VALUE_ADVICE: &str = "a value is never taken from the command line, which every user \
    of the machine can read in the process list\n  (and the shell keeps it in its history); \
    run `credential-vault store NAMESPACE/KEY` and type it at\n  the prompt, or send it to \
    standard input: `... | credential-vault store NAMESPACE/KEY`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exec_runs_is_taken_off_unread() {
        let split = |line: &str| {
            let mut ours: Vec<_> = line.split(' ').map(OsString::from).collect();
            let to_run = split_command(&mut ours);
            (ours.len(), to_run.len())
        };
        assert_eq!(split("exec -- a -- b"), (1, 3));
        assert_eq!(split("--socket exec exec --mask -- a"), (4, 1));
        assert_eq!(split("--server-uid 7 exec -- a"), (3, 1));
        assert_eq!(split("--socket=x exec --"), (2, 0));
        assert_eq!(split("exec a b"), (3, 0));
        assert_eq!(split("get -- exec/x"), (3, 0));
        assert_eq!(split("--socket exec get -- x"), (5, 0));
    }

    #[test]
    fn assignments_are_split_up_to_the_double_dash() {
        let arguments = ["--socket=/a=b", "get", "x/y=z", "--", "--json=1"].map(str::to_owned);
        assert_eq!(
            split_assignments(&arguments),
            ["--socket", "/a=b", "get", "x/y=z", "--", "--json=1"]
        );
    }
}
