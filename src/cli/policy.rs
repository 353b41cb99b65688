//! `policy`: checks a policy file, and explains what it decides.

use intentframe_credentials::caller::{Caller, Supervisor};
use intentframe_credentials::daemon::DATABASE;
use intentframe_credentials::metadata::Snapshot;
use intentframe_credentials::policy::{Operation, Policy};
use intentframe_credentials::settings;

use super::prelude::*;

/// Check a policy file, or explain what it decides.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "policy", help_triggers("-h", "--help"))]
pub struct PolicyCommand {
    #[argh(subcommand)]
    command: Subcommand,
}

#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand)]
enum Subcommand {
    Check(Check),
    Explain(Explain),
}

/// Check a policy file. The exit code is 0 if a service can use it.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "check", help_triggers("-h", "--help"))]
struct Check {
    /// the policy file
    #[argh(positional)]
    file: PathBuf,
}

/// Explain what a policy decides for a running process. The exit code is 0 if it allows the
/// operation, and 4 if not.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "explain", help_triggers("-h", "--help"))]
#[argh(note = "The service's user is the one that the service at the socket runs as, or the\n\
            current user if none answers. Reading the program of another user's process\n\
            takes root.")]
struct Explain {
    /// the policy file (IF_VAULT_POLICY)
    #[argh(option, arg_name = "path")]
    policy: Option<PathBuf>,

    /// the data directory, for the consumers that the credential allows (INTENTFRAME_DATA_DIR)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the process that asks
    #[argh(option, arg_name = "number")]
    pid: i32,

    /// the operation: read, list, write or delete
    #[argh(positional)]
    operation: String,

    /// the credential, as NAMESPACE/KEY
    #[argh(positional)]
    credential: String,
}

pub fn run(args: PolicyCommand, context: &Context) -> Result<(), Failure> {
    match args.command {
        Subcommand::Check(args) => {
            let own_uid = rustix::process::geteuid().as_raw();
            let policy = Policy::load(&args.file, own_uid).map_err(Failure::usage)?;
            output::text(&format!("valid: {policy}\n"))
        }
        Subcommand::Explain(args) => explain(args, context),
    }
}

fn explain(args: Explain, context: &Context) -> Result<(), Failure> {
    let operation: Operation = args.operation.parse().map_err(Failure::usage)?;
    let at = credential(&args.credential)?;
    let environment = &context.environment;
    let file = context
        .setting_path(args.policy, "IF_VAULT_POLICY")?
        .ok_or_else(|| Failure::usage("no policy: give --policy FILE, or set IF_VAULT_POLICY"))?;
    let socket = context.socket()?;
    let service = Caller::serving(&socket);
    let owner_uid =
        service.as_ref().map_or_else(|| rustix::process::geteuid().as_raw(), |it| it.process.uid);
    let policy = Policy::load(&file, owner_uid).map_err(Failure::usage)?;
    let supervisor = service.and_then(|it| Supervisor::of(it.process.pid?));
    let caller = Caller::of_pid(args.pid, supervisor.as_ref())
        .map_err(cannot(format!("examine process {}", args.pid)))?;
    let database = settings::data_dir(args.data_dir.as_deref(), environment)?.join(DATABASE);
    let find = || Snapshot::open(&database)?.find(&at);
    let record = database.exists().then(find).transpose().map_err(Failure::other)?.flatten();
    let allowed = record.map(|record| record.allowed_consumers).unwrap_or_default();
    let consumers: Vec<_> = policy.consumers_of(&caller).collect();
    let applied = if operation == Operation::Read { allowed.as_slice() } else { &[] };
    let decision = policy.decide(&caller, operation, Some(at.namespace().as_str()), applied);
    let outcome = match &decision {
        Ok(grant) => match (grant.rule, grant.consumer) {
            (Some(rule), Some(consumer)) => format!("allowed by rule {rule}, as {consumer}"),
            _ => "allowed: the service's user and root need no rule here".to_owned(),
        },
        Err(refusal) => format!("refused: {refusal}"),
    };
    let allows = if allowed.is_empty() { "everyone".to_owned() } else { allowed.join(", ") };
    let rows = [
        ["process".to_owned(), caller.to_string()],
        ["consumers".to_owned(), consumers.join(", ")],
        ["the credential allows".to_owned(), allows],
        ["decision".to_owned(), outcome],
    ];
    output::rows(&[&args.operation.to_uppercase(), &at.to_string()], &rows)?;
    decision.map(drop).map_err(|_| Failure::silent(REFUSED))
}
