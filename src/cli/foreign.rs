//! What `import --from` reads: the credentials of other programs. docs/moving.md says which of
//! their fields become which credentials.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use intentframe_credentials::export_file::Entry;
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{
    CredentialRecord, CredentialRef, DeliveryMode, Secret, StoreRequest,
};
use serde_json::Value;

use super::dotenv;
use super::failure::{Failure, cannot};
use super::output::escaped;

const NO_TITLE: &str = "there is no column `Title` or `name`: export as CSV from 1Password (1PUX is \
    not read), Bitwarden or KeePassXC";

#[derive(Default)]
pub struct Found {
    pub entries: Vec<Entry>,
    /// The items that cannot be taken, and why. Without values.
    pub skipped: Vec<String>,
    /// The namespace that the titles are put into.
    within: Option<String>,
}

pub fn read(from: &str, file: Option<&Path>, within: Option<String>) -> Result<Found, Failure> {
    let mut found = Found { within, ..Found::default() };
    let text = file.map(fs::read).transpose().map_err(cannot("read the file"))?;
    match (from, text) {
        ("dotenv", Some(text)) => found.dotenv(&text),
        ("csv", Some(text)) => found.csv(&text)?,
        ("json", Some(text)) => found.json(&text)?,
        ("pass", None) => found.pass()?,
        _ => {
            let known = "--from takes `dotenv FILE`, `csv FILE`, `json FILE`, `pass` or `python`";
            return Err(Failure::usage(known));
        }
    }
    Ok(found)
}

impl Found {
    fn dotenv(&mut self, text: &[u8]) {
        let dotenv = dotenv::parse(text);
        let namespace = self.within.take().unwrap_or("env".to_owned());
        for variable in dotenv.variables {
            let key = variable.name.to_lowercase();
            self.add(&namespace, &key, variable.value.expose(), Some(variable.name));
        }
        self.skipped.extend(dotenv.problems);
    }

    /// See <https://bitwarden.com/help/condition-bitwarden-import/>; 1Password and KeePassXC write
    /// `Title`, `Username`, `Password`, `Notes`, and `OTPAuth` or `TOTP`.
    fn csv(&mut self, text: &[u8]) -> Result<(), Failure> {
        let invalid = |error| Failure::usage(format!("this is no CSV: {error}"));
        let mut reader = csv::Reader::from_reader(text);
        let head = reader.headers().map_err(invalid)?.clone();
        let title = head.iter().find(|it| ["Title", "name"].contains(it));
        let title = title.ok_or_else(|| Failure::usage(NO_TITLE))?;
        for row in reader.deserialize() {
            let row: BTreeMap<String, String> = row.map_err(invalid)?;
            for (column, value) in &row {
                match column.to_lowercase().trim_start_matches("login_") {
                    "otpauth" => self.add(&row[title], "totp", value, None),
                    key @ ("username" | "password" | "totp" | "notes" | "fields") => {
                        self.add(&row[title], key, value, None);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// See <https://bitwarden.com/help/condition-bitwarden-import/>.
    fn json(&mut self, text: &[u8]) -> Result<(), Failure> {
        let invalid = |error| Failure::usage(format!("this is no JSON: {error}"));
        let export: Value = serde_json::from_slice(text).map_err(invalid)?;
        let items = export["items"].as_array().filter(|_| export["encrypted"] != true);
        let encrypted = "this is no export of Bitwarden, or an encrypted one; export `.json`";
        for item in items.ok_or_else(|| Failure::usage(encrypted))? {
            let parts = ["login", "card", "identity", "sshKey"].map(|part| item[part].as_object());
            let parts = parts.into_iter().flatten().flatten();
            let fields = item["fields"].as_array().into_iter().flatten();
            let fields = fields.map(|it| (it["name"].as_str().unwrap_or_default(), &it["value"]));
            let all = parts.map(|(key, value)| (key.as_str(), value)).chain(fields);
            for (key, value) in all.chain([("notes", &item["notes"])]) {
                let title = item["name"].as_str().unwrap_or_default();
                self.add(title, key, value.as_str().unwrap_or_default(), None);
            }
        }
        Ok(())
    }

    /// The first line of an entry is the password; the rest becomes its notes. See pass(1).
    fn pass(&mut self) -> Result<(), Failure> {
        let find = "cd \"${PASSWORD_STORE_DIR:-$HOME/.password-store}\" && find . -name '*.gpg'";
        let find = Command::new("sh").args(["-c", find]).stderr(Stdio::inherit()).output();
        let names = find.map_err(cannot("list the password store"))?.stdout;
        let names = String::from_utf8_lossy(&names);
        for name in names.lines().filter_map(|it| it.strip_prefix("./")?.strip_suffix(".gpg")) {
            let mut pass = Command::new("pass");
            let shown = pass.args(["show", name]).stderr(Stdio::inherit()).output();
            let shown = shown.map_err(cannot("run pass"))?;
            let Some(text) =
                Secret::from_utf8(shown.stdout).ok().filter(|_| shown.status.success())
            else {
                self.skipped.push(format!("{name}: pass does not decrypt it to text"));
                continue;
            };
            let (namespace, key) = name.rsplit_once('/').unwrap_or(("pass", name));
            let namespace = namespace.replace('/', ".");
            let is_one = text.expose().starts_with("-----BEGIN ");
            let lines = text.expose().split_once('\n').filter(|_| !is_one);
            let (first, rest) = lines.unwrap_or((text.expose(), ""));
            self.add(&namespace, key, first, None);
            self.add(&namespace, &format!("{key}.notes"), rest.trim_end(), None);
        }
        Ok(())
    }

    /// Adds a credential, unless it is empty: programs write all the fields that an item may have.
    fn add(&mut self, title: &str, key: &str, value: &str, env_name: Option<String>) {
        // The title in lower case, with a dash for what no namespace has.
        let lower = title.to_lowercase();
        let words = lower.split(|c: char| !c.is_ascii_alphanumeric() && !"_.@+".contains(c));
        let slug = words.filter(|it| !it.is_empty()).collect::<Vec<_>>().join("-");
        let within = self.within.iter().filter(|_| !slug.is_empty());
        let namespace = within.chain([&slug]).map(String::as_str).collect::<Vec<_>>().join(".");
        let reason = match CredentialRef::parse(&namespace, key.trim()) {
            _ if value.is_empty() => return,
            Err(error) => error.to_string(),
            Ok(at) if self.entries.iter().any(|it| it.record.at == at) => {
                format!("there is another {at} before it")
            }
            Ok(at) => {
                let value = Secret::new(value.to_owned());
                let mut request = StoreRequest { env_name, ..StoreRequest::new(value.duplicate()) };
                if request.env_name.is_some() {
                    request.delivery_mode = DeliveryMode::RuntimeEnv;
                }
                let record = CredentialRecord::new(at, &request, Timestamp::now());
                return self.entries.push(Entry { record, value });
            }
        };
        self.skipped.push(escaped(&format!("{title}, {key}: {reason}")).into_owned());
    }
}
