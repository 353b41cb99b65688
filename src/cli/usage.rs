//! The command line read by its definitions alone: for help, completions and usage errors.
//! An error repeats no argument that may be a value in the wrong place.

use std::collections::BTreeMap;

use argh::{
    ArgsInfo as _, CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality, PositionalInfo,
};
use intentframe_credentials::text::nearest;

use super::args::Arguments;
use super::failure::Failure;

const NO_VALUES: &str = "a value is never taken from the command line: every user of the machine \
    can see it\n  in the process list, and the shell keeps it in its history. Type it at the \
    prompt of\n  `credential-vault store NAMESPACE/KEY`, or send it to its standard input:\n  \
    `... | credential-vault store NAMESPACE/KEY`";

/// The options that may also follow the command.
const EVERYWHERE: &[&str] = &["--socket", "--config"];

/// How far the definitions lead along a command line.
#[derive(Default)]
pub struct Usage<'a> {
    /// The names of the commands, the outermost first.
    pub path: Vec<&'static str>,
    /// The definition of the innermost of them.
    pub command: CommandInfoWithArgs,
    /// Its positional arguments that may follow.
    pub positionals: &'static [PositionalInfo<'static>],
    /// The option whose value follows.
    pub awaiting: Option<&'static FlagInfo<'static>>,
    /// Whether there is `--`.
    pub has_dashes: bool,
    /// The last value of each of [`EVERYWHERE`].
    pub everywhere: BTreeMap<&'static str, &'a str>,
    /// The rest in the form that argh knows: without `--name=value` and the program of `exec`.
    arguments: Vec<&'a str>,
    is_help: bool,
    /// The options that have a value.
    options: Vec<&'static FlagInfo<'static>>,
    /// The first error.
    problem: Option<Failure>,
}

impl<'a> Usage<'a> {
    pub fn new(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut usage = Self { command: Arguments::get_args_info(), ..Self::default() };
        words.into_iter().for_each(|word| usage.take(word));
        usage
    }

    fn take(&mut self, word: &'a str) {
        if let Some(flag) = self.awaiting.take() {
            return self.value(flag, word);
        }
        match (word, self.positionals) {
            _ if self.has_dashes && self.has_program() => return,
            ("--", _) if !self.has_dashes => self.has_dashes = true,
            ("-h" | "--help", _) if !self.has_dashes => self.is_help = true,
            ("help", _) if !self.command.commands.is_empty() => self.is_help = true,
            _ if word.starts_with('-') && !self.has_dashes => return self.option(word),
            _ if !self.command.commands.is_empty() => self.subcommand(word),
            (_, [last]) if last.optionality == Optionality::Repeating => {}
            (_, [_, rest @ ..]) => self.positionals = rest,
            (_, []) => self.unknown("takes no more arguments", None),
        }
        self.arguments.push(word);
    }

    /// Whether what follows `--` is a program and its arguments.
    pub fn has_program(&self) -> bool {
        matches!(self.path[..], ["exec" | "rotate"])
    }

    fn subcommand(&mut self, word: &str) {
        let mut names = self.command.commands.iter().map(|it| it.name);
        let Some(at) = names.clone().position(|name| name == word) else {
            let near = nearest(word, names);
            return self.unknown("has no such command", near);
        };
        self.path.extend(names.nth(at));
        self.command = self.command.commands.swap_remove(at).command;
        self.positionals = self.command.positionals;
        self.options.retain(|it| !EVERYWHERE.contains(&it.long));
    }

    fn option(&mut self, word: &'a str) {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (word, None),
        };
        let has_name = |it: &&FlagInfo<'_>| {
            it.long == name || it.short.is_some_and(|short| *name == format!("-{short}"))
        };
        let root = Arguments::get_args_info().flags.iter();
        let everywhere = root.filter(|it| EVERYWHERE.contains(&it.long));
        let known = self.command.flags.iter().chain(everywhere);
        match (known.clone().find(has_name), value) {
            (None, _) => {
                let near = nearest(name, known.map(|it| it.long));
                let name = if self.path == ["store"] { "of this name" } else { name };
                self.unknown(&format!("has no option {name}"), near);
            }
            (Some(flag), value) if flag.kind == FlagInfoKind::Switch => match value {
                None => self.arguments.push(word),
                Some(_) => self.unknown(&format!("takes no value for {name}"), None),
            },
            (Some(flag), Some(value)) => self.value(flag, value),
            (Some(flag), None) => self.awaiting = Some(flag),
        }
    }

    fn value(&mut self, flag: &'static FlagInfo<'static>, value: &'a str) {
        if flag.optionality != Optionality::Repeating && self.options.contains(&flag) {
            self.unknown(&format!("takes {} only once", flag.long), None);
        }
        self.options.push(flag);
        if EVERYWHERE.contains(&flag.long) {
            self.everywhere.insert(flag.long, value);
        } else {
            self.arguments.extend([flag.long, value]);
        }
    }

    fn unknown(&mut self, what: &str, near: Option<&str>) {
        let near = near.map(|name| format!("did you mean `{name}`?")).unwrap_or_default();
        let why = if self.path == ["store"] { NO_VALUES } else { "" };
        let error = self.failure(what).hint(&near).hint(why);
        self.problem.get_or_insert(error);
    }

    fn failure(&self, what: &str) -> Failure {
        Failure::usage(format!("{} {what}", self.path.last().unwrap_or(&"the vault")))
    }

    /// The arguments for argh, which print the help if `help COMMAND` or `COMMAND --help` asks.
    pub fn arguments(&mut self) -> Result<Vec<&'a str>, Failure> {
        if let Some(flag) = self.awaiting {
            self.unknown(&format!("needs a value for {}", flag.long), None);
        }
        match self.problem.take() {
            Some(problem) if !self.is_help || !self.command.commands.is_empty() => Err(problem),
            _ if self.is_help => Ok([&self.path[..], &["--help"]].concat()),
            _ => {
                let first = self.everywhere.iter().flat_map(|(name, value)| [*name, *value]);
                Ok(first.chain(self.arguments.drain(..)).collect())
            }
        }
    }

    /// The error for a command line that argh rejects.
    pub fn error(self) -> Failure {
        let is_required = |it: &Optionality| *it == Optionality::Required;
        let positionals = self.positionals.iter().filter(|it| is_required(&it.optionality));
        let commands = self.command.commands.iter().map(|it| it.name.to_owned());
        let missing = commands.chain(positionals.map(|it| format!("<{}>", it.name)));
        let mut missing: Vec<_> = missing.collect();
        if missing.is_empty() {
            // argh takes any text as a path or a name.
            let may_fail = |it: &&FlagInfo<'_>| match it.kind {
                FlagInfoKind::Option { arg_name: "name" | "path" | "dir" } => false,
                _ => is_required(&it.optionality) || self.options.contains(it),
            };
            let known = self.command.flags.iter().chain(Arguments::get_args_info().flags);
            missing
                .extend(known.filter(may_fail).map(|it| format!("a valid value for {}", it.long)));
        }
        let or = if self.command.commands.is_empty() { ", " } else { " or " };
        self.failure(&format!("needs {}", missing.join(or)))
    }
}
