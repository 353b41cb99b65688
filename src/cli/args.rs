//! The command line: each command takes the options it knows, and what is left is an error.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use intentframe_credentials::CredentialRef;

use super::failure::Failure;

/// The arguments that no command has taken yet.
#[derive(Debug)]
pub struct Args {
    before_dashes: Vec<String>,
    /// What follows `--`; `exec` runs it.
    pub after_dashes: Vec<OsString>,
}

impl Args {
    /// Splits the arguments at the first `--`. Only what follows it need not be UTF-8.
    pub fn new(mut arguments: Vec<OsString>) -> Result<Self, Failure> {
        let dashes = arguments.iter().position(|it| it == "--").unwrap_or(arguments.len());
        let after_dashes = arguments.split_off(dashes).into_iter().skip(1).collect();
        let before_dashes = arguments.into_iter().map(utf8).collect::<Result<_, _>>()?;
        Ok(Self { before_dashes, after_dashes })
    }

    /// Takes the command's name: the first argument that is neither an option nor its value.
    pub fn command(&mut self) -> Option<String> {
        let mut at = 0;
        loop {
            match self.before_dashes.get(at)?.as_str() {
                "--socket" | "--server-uid" => at += 2,
                option if option.starts_with('-') => at += 1,
                _ => return Some(self.before_dashes.remove(at)),
            }
        }
    }

    /// Takes an option without a value, and returns whether it is given.
    pub fn switch(&mut self, name: &str) -> bool {
        let count = self.before_dashes.len();
        self.before_dashes.retain(|it| it != name);
        self.before_dashes.len() < count
    }

    /// Takes all values of an option, in their order.
    pub fn values(&mut self, name: &str) -> Result<Vec<String>, Failure> {
        let mut values = Vec::new();
        while let Some(at) = self.position(name) {
            let option = self.before_dashes.remove(at);
            values.push(match option.split_once('=') {
                Some((_, value)) => value.to_owned(),
                None if at < self.before_dashes.len() => self.before_dashes.remove(at),
                None => return Err(Failure::usage(format!("{name} needs a value"))),
            });
        }
        Ok(values)
    }

    /// Takes the value of an option; the last one if it is given several times.
    pub fn value(&mut self, name: &str) -> Result<Option<String>, Failure> {
        Ok(self.values(name)?.pop())
    }

    /// Takes the value of an option that is a path.
    pub fn path(&mut self, name: &str) -> Result<Option<PathBuf>, Failure> {
        Ok(self.value(name)?.map(PathBuf::from))
    }

    /// Takes the value of an option that is a number.
    pub fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        let number = self.value(name)?.map(|value| value.parse());
        number
            .transpose()
            .map_err(|_| Failure::usage(format!("{name} needs a number in its range")))
    }

    /// What is not an option. An option that nobody has taken is an error.
    pub fn positionals(self) -> Result<Vec<String>, Failure> {
        let is_option = |it: &&String| it.len() > 1 && it.starts_with('-');
        if let Some(option) = self.before_dashes.iter().find(is_option) {
            // A value in the wrong place is not repeated: only what may be an option's name is.
            let name = option.split('=').next().unwrap_or_default();
            let is_name = name.bytes().all(|byte| byte == b'-' || byte.is_ascii_lowercase());
            let name = if is_name { name } else { "(not shown)" };
            return Err(Failure::usage(format!("unknown option {name}")));
        }
        let after_dashes =
            self.after_dashes.into_iter().map(utf8).collect::<Result<Vec<_>, _>>()?;
        Ok([self.before_dashes, after_dashes].concat())
    }

    /// Checks that no argument is left.
    pub fn end(self) -> Result<(), Failure> {
        match self.positionals()?.as_slice() {
            [] => Ok(()),
            _ => Err(Failure::usage("this command takes options only")),
        }
    }

    /// The one positional argument, which names a credential.
    pub fn credential(self) -> Result<CredentialRef, Failure> {
        match self.positionals()?.as_slice() {
            [name] => credential(name),
            _ => Err(Failure::usage("this command takes one argument: NAMESPACE/KEY")),
        }
    }

    /// Where the option is, as `name`, `name value` or `name=value`.
    pub fn position(&self, name: &str) -> Option<usize> {
        let is_it = |argument: &String| match argument.strip_prefix(name) {
            Some(rest) => rest.is_empty() || rest.starts_with('='),
            None => false,
        };
        self.before_dashes.iter().position(is_it)
    }
}

fn utf8(argument: OsString) -> Result<String, Failure> {
    argument.into_string().map_err(|_| Failure::usage("an argument is not UTF-8"))
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

    fn args(line: &str) -> Args {
        Args::new(line.split(' ').map(OsString::from).collect()).expect("UTF-8")
    }

    #[test]
    fn the_command_is_the_first_argument_that_is_no_option() {
        for (line, command) in [
            ("exec -- a -- b", Some("exec")),
            ("--socket exec get --json", Some("get")),
            ("--server-uid 7 exec -- a", Some("exec")),
            ("--socket=x exec --", Some("exec")),
            ("--version", None),
            ("--socket", None),
            ("-- get", None),
        ] {
            assert_eq!(args(line).command().as_deref(), command, "{line}");
        }
        assert_eq!(args("exec -- a -- b").after_dashes, ["a", "--", "b"]);
    }

    #[test]
    fn options_take_their_values_in_both_forms() {
        let mut all = args("--socket=/a=b n/k --only x/y --socket /c --json --only=z/w -- --json");
        assert_eq!(all.value("--socket").expect("a value").as_deref(), Some("/c"), "the last");
        assert_eq!(all.values("--only").expect("values"), ["x/y", "z/w"]);
        assert!(all.position("--json").is_some() && all.switch("--json") && !all.switch("--json"));
        assert_eq!(all.positionals().expect("names"), ["n/k", "--json"]);

        assert!(args("n/k --socket").value("--socket").is_err());
        assert_eq!(args("--port 8").number("--port").expect("a number"), Some(8_u16));
        assert!(args("--port 70000").number::<u16>("--port").is_err());
    }

    #[test]
    fn an_unknown_option_is_named_and_a_value_is_not() {
        let said = |line| args(line).end().expect_err("is unknown").message;
        assert_eq!(said("--no-such=canary"), "unknown option --no-such");
        assert_eq!(said("-sk-canary-7"), "unknown option (not shown)");
        assert_eq!(said("canary"), "this command takes options only");
    }
}
