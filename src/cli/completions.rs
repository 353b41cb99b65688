//! The commands that are not in `--help`: scripts and packages call them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use argh::{ArgsInfo as _, FlagInfo, FlagInfoKind};
use intentframe_credentials::client::{ClientOptions, VaultClient};
use intentframe_credentials::{Environment, settings};

use super::args::Arguments;
use super::commands::name;
use super::failure::Failure;
use super::output;
use super::usage::Usage;

/// A shell waits for the answer at each press of Tab.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Runs `completions SHELL`, which prints a script; `__complete WORD... CURRENT`, which that script
/// calls; or `__definitions`, which prints all commands and options for the manual pages.
pub fn run(arguments: &[OsString], environment: &Environment) -> Option<Result<(), Failure>> {
    let arguments: Vec<_> = arguments.iter().map(|it| it.to_str()).collect::<Option<_>>()?;
    Some(match arguments.as_slice() {
        ["completions", "bash"] => output::text(include_str!("completions/bash")),
        ["completions", "fish"] => output::text(include_str!("completions/fish")),
        ["completions", "zsh"] => output::text(include_str!("completions/zsh")),
        ["completions", ..] => Err(Failure::usage("completions needs bash, fish or zsh")),
        ["__complete", words @ .., current] => {
            output::text(&candidates(words, current, environment))
        }
        ["__definitions"] => output::json(&Arguments::get_args_info()),
        _ => return None,
    })
}

/// The words that may replace `current`: a line for each, with a tab and a description.
/// Empty where the shell should complete files, or if no vault answers.
fn candidates(words: &[&str], current: &str, environment: &Environment) -> String {
    let Usage { command, positionals, awaiting, has_dashes, everywhere, .. } =
        Usage::new(words.iter().copied());
    let expected = match awaiting {
        Some(FlagInfo { kind: FlagInfoKind::Option { arg_name }, .. }) => arg_name,
        None if current.starts_with('-') && !has_dashes => "option",
        _ => positionals.first().map_or("", |it| it.name),
    };
    let listed = || {
        let options = ClientOptions { timeout: TIMEOUT, server_uid: None };
        let socket = everywhere.get("--socket").map(Path::new);
        let socket = settings::socket(socket, environment).ok()?;
        VaultClient::with_options(socket, &options).list_all().ok()
    };
    let listed = || listed().into_iter().flatten();
    let found: BTreeSet<(String, &str)> = match expected {
        "option" => command.flags.iter().map(|it| (it.long.to_owned(), it.description)).collect(),
        "namespace" => listed().map(|it| (it.namespace, "")).collect(),
        "credential" | "credentials" => listed().map(|it| (name(&it), "")).collect(),
        "" => {
            command.commands.iter().map(|it| (it.name.to_owned(), it.command.description)).collect()
        }
        _ => BTreeSet::new(),
    };
    let found = found.iter().filter(|(name, _)| name.starts_with(current));
    let line = |(name, description): &(String, &str)| {
        let short = description.split(['.', ';', ':', '(']).next().unwrap_or_default();
        format!("{}\t{}\n", output::escaped(name), short.trim_end())
    };
    found.map(line).collect()
}
