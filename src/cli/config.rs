//! The configuration file, and `config`, which shows the settings in effect.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use intentframe_credentials::text::nearest;
use intentframe_credentials::{Environment, ownership, settings};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use serde_json::json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::prelude::*;

const SYSTEM_FILE: &str = "/etc/intentframe/vault.toml";

/// Key, variable, kind, default and meaning of a setting. The rest of the program reads variables.
pub type Setting = [&'static str; 5];

/// The one table of settings.
pub fn all() -> impl Iterator<Item = Setting> {
    let lines = include_str!("settings.txt").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let mut cells = line.splitn(5, '|').map(str::trim);
        [(); 5].map(|()| cells.next().expect("each line has five cells"))
    })
}

/// The content of the configuration files.
#[derive(Debug, Default)]
pub struct Config {
    /// The commands of validators, and where they come from, by the validator's name.
    pub validators: BTreeMap<String, (Vec<String>, String)>,
    /// A file that this user may not read.
    pub unreadable: Option<PathBuf>,
    /// `FILE:line` of the variables that have their value from a file.
    origins: BTreeMap<&'static str, String>,
}

/// Reads the file that is given, else the user's and the system's, and sets the variables that
/// `environment` does not have.
pub fn load(given: Option<PathBuf>, environment: &mut Environment) -> Result<Config, Failure> {
    let mut config = Config::default();
    let given = given.or_else(|| environment.setting("IF_VAULT_CONFIG").map(PathBuf::from));
    if let Some(file) = given {
        config.add(&settings::expand_tilde(&file, environment)?, environment)?;
        return Ok(config);
    }
    let xdg = settings::xdg("XDG_CONFIG_HOME", environment).unwrap_or(Path::new("~/.config"));
    let user = settings::expand_tilde(&xdg.join("intentframe/vault.toml"), environment);
    for file in user.into_iter().chain([SYSTEM_FILE.into()]) {
        match access(&file, Access::READ_OK) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // It has the settings of others, such as the service.
            Err(Errno::ACCESS) => config.unreadable = Some(file),
            _ => config.add(&file, environment)?,
        }
    }
    Ok(config)
}

impl Config {
    /// Says where the settings come from that a message names.
    pub fn explain(&self, failure: Failure) -> Failure {
        let is_named = |variable: &str| failure.message.contains(variable);
        let named = self.origins.iter().filter(|(variable, _)| is_named(variable));
        let places: Vec<_> =
            named.map(|(name, place)| format!("{name} is set in {place}")).collect();
        failure.hint(&places.join("\n  "))
    }

    fn add(&mut self, file: &Path, environment: &mut Environment) -> Result<(), Failure> {
        let name = file.display();
        let (text, metadata) = ownership::read(file)
            .map_err(|reason| Failure::usage(format!("the configuration {name}: {reason}")))?;
        let before = |offset| text.get(..offset).unwrap_or_default();
        let line = |offset| before(offset).matches('\n').count() + 1;
        let wrong = |offset, reason: &str| {
            let column = before(offset).chars().rev().take_while(|it| *it != '\n').count() + 1;
            Failure::usage(format!("{name}:{}:{column}: {reason}", line(offset)))
        };
        let table = DeTable::parse(&text)
            .map_err(|error| wrong(error.span().map_or(0, |span| span.start), error.message()))?;
        let set = all().filter(|[_, variable, ..]| environment.setting(variable).is_some());
        let set: Vec<_> = set.map(|[_, variable, ..]| base(variable)).collect();
        let mut added = Vec::new();
        for (key, value) in table.get_ref() {
            let (start, key) = (key.span().start, key.get_ref().as_ref());
            let place = format!("{name}:{}", line(start));
            if key == "validators" {
                for (name, command) in validators(value).map_err(|at| wrong(at, VALIDATORS))? {
                    self.validators.entry(name).or_insert((command, place.clone()));
                }
                continue;
            }
            let setting = all().find(|[name, ..]| *name == key);
            let [_, variable, kind, ..] = setting.ok_or_else(|| wrong(start, &unknown(key)))?;
            let mut text = text_of(kind, value.get_ref())
                .map_err(|form| wrong(value.span().start, &format!("{key} is {form}")))?;
            if kind == "secret" && is_exposed(&metadata) {
                let reason = format!("{key} is a secret, and others can read this file");
                let advice = format!("run chmod 600 {name}, or use {key}_file");
                return Err(wrong(start, &reason).hint(&advice));
            }
            if kind == "path" {
                text = settings::expand_tilde(Path::new(&text), environment)?.display().to_string();
            }
            if !set.contains(&base(variable)) {
                added.push((variable.to_owned(), text));
                self.origins.insert(variable, place);
            }
        }
        *environment = environment.with(added);
        Ok(())
    }
}

/// A variable and its `_FILE` are two forms of one setting.
fn base(variable: &str) -> &str {
    let base = variable.strip_suffix("_FILE").or(variable.strip_suffix("_BYTES"));
    base.unwrap_or(variable)
}

/// Root may let a group read its file: the one of the service.
fn is_exposed(metadata: &Metadata) -> bool {
    metadata.mode() & if metadata.uid() == 0 { 0o004 } else { 0o044 } != 0
}

fn unknown(key: &str) -> String {
    let keys: Vec<_> = all().map(|[key, ..]| key).chain(["validators"]).collect();
    let hint = nearest(key, keys.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    let hint = hint.unwrap_or_else(|| format!("there are: {}", keys.join(", ")));
    format!("there is no setting `{key}`; {hint}")
}

/// The value as a variable has it, or the form that it must have.
fn text_of(kind: &str, value: &DeValue<'_>) -> Result<String, &'static str> {
    match (kind, value) {
        ("number" | "duration", DeValue::Integer(number)) if number.radix() == 10 => {
            Ok(number.as_str().to_owned())
        }
        ("switch", DeValue::Boolean(is_on)) => Ok(is_on.to_string()),
        ("path" | "text" | "secret" | "duration", DeValue::String(text)) => Ok(text.to_string()),
        ("number", _) => Err("a number, as in 32"),
        ("duration", _) => Err("a number of seconds, or a duration such as \"1m30s\""),
        ("switch", _) => Err("true or false"),
        _ => Err("a text in quotes"),
    }
}

const VALIDATORS: &str = "each validator is a name and its command, as in \
    github = [\"/usr/local/bin/check-github\", \"--quiet\"]";

/// The commands in the table `validators`, or where it is wrong.
fn validators(table: &Spanned<DeValue<'_>>) -> Result<Vec<(String, Vec<String>)>, usize> {
    let rows = table.get_ref().as_table().ok_or(table.span().start)?.iter();
    rows.map(|(name, command)| {
        let words = command.get_ref().as_array().filter(|words| !words.is_empty());
        let words = words.ok_or(command.span().start)?.iter();
        let word = |it: &Spanned<DeValue<'_>>| {
            it.get_ref().as_str().map(str::to_owned).ok_or(it.span().start)
        };
        Ok((name.get_ref().to_string(), words.map(word).collect::<Result<_, _>>()?))
    })
    .collect()
}

/// Show every setting in effect, and where it comes from.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "config", help_triggers("-h", "--help"))]
#[argh(note = "Options win over the environment, that over the user's file\n\
            ($XDG_CONFIG_HOME/intentframe/vault.toml, else ~/.config/intentframe/vault.toml), and\n\
            that over /etc/intentframe/vault.toml. --config FILE (IF_VAULT_CONFIG) replaces both\n\
            files. A secret is shown as [set].")]
pub struct ConfigCommand {
    /// print JSON
    #[argh(switch)]
    json: bool,
}

pub fn run(args: &ConfigCommand, context: &Context) -> Result<(), Failure> {
    let (environment, config) = (&context.environment, &context.config);
    let row = |[key, variable, kind, default, _]: Setting| {
        let option = match key {
            "socket" => context.socket.as_ref().map(|it| it.display().to_string()),
            "server_uid" => context.server_uid.map(|it| it.to_string()),
            _ => None,
        };
        let given = option.as_deref().or_else(|| environment.setting(variable));
        let source = match config.origins.get(variable) {
            _ if option.is_some() => "option".to_owned(),
            Some(place) => place.clone(),
            None if given.is_some() => format!("environment {variable}"),
            None => "default".to_owned(),
        };
        let path = match key {
            "socket" => settings::socket(given.map(Path::new), environment).ok(),
            "data_dir" => settings::data_dir(given.map(Path::new), environment).ok(),
            _ => None,
        };
        let value = match given {
            // An address that is refused may have a password.
            Some(text) if kind == "secret" || text.contains("://") && text.contains('@') => "[set]",
            given => given.unwrap_or(default),
        };
        let value = path.map_or_else(|| value.to_owned(), |path| path.display().to_string());
        [key.to_owned(), value, source]
    };
    let validators = config.validators.iter().map(|(name, (command, place))| {
        [format!("validators.{name}"), command.join(" "), place.clone()]
    });
    let rows: Vec<_> = all().map(row).chain(validators).collect();
    if !args.json {
        return output::rows(&["SETTING", "VALUE", "FROM"], &rows);
    }
    let object = |[setting, value, from]: &[String; 3]| json!({ "setting": setting, "value": value, "from": from });
    output::json(&rows.iter().map(object).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_files_wins_and_the_environment_over_both() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("writes");
            directory.path().join(name)
        };
        let user = file("user", "backend = \"env\"\nvault_role_id_file = \"~/role\"\n");
        let system = file(
            "system",
            "backend = \"sealed\"\npreview = \"none\"\nvault_role_id = \"r\"\nworkers = 8\n",
        );
        let variables =
            [("HOME", "/home/ann"), ("IF_VAULT_WORKERS", "4"), ("IF_VAULT_PREVIEW", "")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut environment: Environment = variables.into_iter().collect();
        let mut config = Config::default();
        config.add(&user, &mut environment).expect("the user's");
        config.add(&system, &mut environment).expect("the system's");
        for (variable, value) in [
            ("IF_VAULT_BACKEND", Some("env")),
            ("IF_VAULT_PREVIEW", Some("none")),
            ("IF_VAULT_WORKERS", Some("4")),
            ("VAULT_ROLE_ID_FILE", Some("/home/ann/role")),
            ("VAULT_ROLE_ID", None),
        ] {
            assert_eq!(environment.setting(variable), value, "{variable}");
        }
        assert_eq!(config.origins["IF_VAULT_PREVIEW"], format!("{}:2", system.display()));
        assert!(!config.origins.contains_key("IF_VAULT_WORKERS"));
    }

    /// The documents have every setting, and the sample is a file with all of them.
    #[test]
    fn the_documents_have_all_settings() {
        let documents = include_str!("../../docs/settings.md");
        let sample = include_str!("../../docs/vault.toml");
        for [key, variable, _, _, meaning] in all() {
            let row =
                documents.lines().find(|it| it.starts_with(&format!("| `{key}` | `{variable}` |")));
            assert!(row.is_some_and(|it| it.contains(&format!("| {meaning} |"))), "{key}");
            let is_here =
                |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} ="));
            assert!(sample.lines().any(is_here), "{key}");
        }
    }
}
