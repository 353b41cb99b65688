//! The options of `exec`.

use std::path::PathBuf;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use intentframe_credentials::Namespace;
use intentframe_credentials::spawn::Selection;

use super::supervise::Watch;
use crate::cli::args::credential;
use crate::cli::failure::Failure;

/// Run a command with credentials in its environment: exec [options] -- command [arguments]
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "exec", help_triggers("-h", "--help"))]
#[argh(
    example = "credential-vault exec --consumer jarvis -- jarvis --port 8080\n\
               credential-vault exec --only github.myorg/token -- gh repo list\n\
               credential-vault exec --clean --env PGPASSWORD=db.main/password -- psql\n\
               credential-vault exec --watch --mask -- ./agent",
    note = "By default, exec delivers every credential of delivery mode runtime_env in the\n\
            variable stored with it. It starts nothing if a credential is missing, has no\n\
            variable, or shares its variable with another one; if the variable is already\n\
            set to another value; or if the variable controls what a program runs or\n\
            trusts (LD_PRELOAD, PATH, HTTPS_PROXY, ...) and --allow-name does not name it.\n\
            The variables that give access to the vault itself (VAULT_TOKEN, ...) are not\n\
            inherited.\n\n\
            The command replaces credential-vault, so signals, exit code and terminal are\n\
            the command's own. With --mask, --watch or --files, credential-vault keeps\n\
            running, forwards signals, and exits as the command does."
)]
pub struct Exec {
    /// only credentials that this consumer may have
    #[argh(option, arg_name = "name")]
    pub consumer: Option<String>,

    /// only this credential, as NAMESPACE/KEY; may be repeated
    #[argh(option, arg_name = "credential")]
    pub only: Vec<String>,

    /// only those of this namespace; may be repeated and combined with --only
    #[argh(option, arg_name = "namespace")]
    pub namespace: Vec<String>,

    /// deliver this credential too, as NAME=NAMESPACE/KEY, in this variable; may be repeated
    #[argh(option, arg_name = "mapping")]
    pub env: Vec<String>,

    /// let --env name credentials of delivery mode executor_only
    #[argh(switch)]
    pub allow_executor_only: bool,

    /// allow this variable, although it controls what a program runs or trusts; may be repeated
    #[argh(option, arg_name = "name")]
    pub allow_name: Vec<String>,

    /// inherit only PATH, HOME, LANG and TERM
    #[argh(switch)]
    pub clean: bool,

    /// inherit this variable even so; may be repeated
    #[argh(option, arg_name = "name")]
    pub keep: Vec<String>,

    /// replace variables that are already set
    #[argh(switch)]
    pub r#override: bool,

    /// write one file per credential to this new directory instead of setting variables;
    /// CREDENTIALS_DIRECTORY contains its path
    #[argh(option, arg_name = "dir")]
    pub files: Option<PathBuf>,

    /// replace the values in the output of the command
    #[argh(switch)]
    pub mask: bool,

    /// restart the command when a credential changes or the command crashes
    #[argh(switch)]
    pub watch: bool,

    /// with --watch: send TERM and restart (default), or send HUP and let the command run on
    #[argh(option, arg_name = "name")]
    pub signal: Option<String>,

    /// with --watch: the seconds between TERM and KILL (30 by default)
    #[argh(option, arg_name = "seconds")]
    pub grace: Option<f64>,

    /// with --watch: the seconds between polls of the service (2 by default)
    #[argh(option, arg_name = "seconds")]
    pub interval: Option<f64>,

    /// with --watch: how many crashes in a row to restart after (10 by default)
    #[argh(option, arg_name = "count")]
    pub max_restarts: Option<u32>,

    /// instead of running a command, be a git credential helper: the password for HOST, as
    /// HOST=NAMESPACE/KEY; may be repeated
    #[argh(option, arg_name = "mapping")]
    pub git_credential: Vec<String>,

    /// the operation that git adds; without --git-credential, rejected: the command follows --
    #[argh(positional, hidden_help)]
    pub misplaced: Vec<String>,
}

impl Exec {
    /// The credentials that the options select.
    pub fn selection(&self) -> Result<Selection, Failure> {
        let mut selection = Selection::new();
        if let Some(consumer) = &self.consumer {
            selection = selection.consumer(consumer);
        }
        for name in &self.only {
            selection = selection.only(credential(name)?);
        }
        for name in &self.namespace {
            selection = selection.namespace(Namespace::new(name).map_err(Failure::usage)?);
        }
        for mapping in &self.env {
            let Some((variable, name)) = mapping.split_once('=') else {
                return Err(Failure::usage("--env needs NAME=NAMESPACE/KEY"));
            };
            selection = selection.mapped(variable, credential(name)?);
        }
        for name in &self.allow_name {
            selection = selection.allow_name(name);
        }
        if self.allow_executor_only {
            selection = selection.allow_executor_only();
        }
        Ok(selection)
    }

    /// What `--watch` and the options that go with it ask for.
    pub fn watch(&self) -> Result<Option<Watch>, Failure> {
        let details = [
            ("--signal", self.signal.is_some()),
            ("--grace", self.grace.is_some()),
            ("--interval", self.interval.is_some()),
            ("--max-restarts", self.max_restarts.is_some()),
        ];
        if !self.watch {
            return match details.into_iter().find(|(_, is_given)| *is_given) {
                Some((name, _)) => Err(Failure::usage(format!("{name} requires --watch"))),
                None => Ok(None),
            };
        }
        let hangs_up = match self.signal.as_deref() {
            None | Some("TERM" | "SIGTERM") => false,
            Some("HUP" | "SIGHUP") => true,
            Some(_) => return Err(Failure::usage("--signal is either TERM or HUP")),
        };
        let seconds = |name: &str, seconds: f64| {
            Duration::try_from_secs_f64(seconds)
                .map_err(|_| Failure::usage(format!("{name} needs a number of seconds, as in 2.5")))
        };
        let grace = seconds("--grace", self.grace.unwrap_or(30.0))?;
        let interval = seconds("--interval", self.interval.unwrap_or(2.0))?;
        if interval.is_zero() {
            return Err(Failure::usage("--interval is more than 0"));
        }
        let max_restarts = self.max_restarts.unwrap_or(10);
        Ok(Some(Watch { hangs_up, grace, interval, max_restarts }))
    }
}
