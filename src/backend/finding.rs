//! [`Finding`]: one line of what `credential-vault doctor` reports.

use serde::Serialize;

/// The kinds of findings, separated by empty lines: `KIND SEVERITY`, why it matters, and what to
/// do, where `{}` stands for what the finding is about.
const KINDS: &str = include_str!("findings.txt");

/// A result of an examination. It never contains a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind, which programs can rely on, such as `value-missing`.
    pub kind: &'static str,
    /// `ok`; `warning`: it works, but somebody should know; or `problem`.
    pub severity: &'static str,
    /// A credential, a path or a backend.
    pub about: String,
    /// The finding, in a sentence.
    pub what: String,
    /// Why it matters; empty if all is well.
    pub why: &'static str,
    /// Advice; empty if all is well.
    #[serde(rename = "do")]
    pub advice: String,
    /// The correction that was made.
    pub fixed: Option<String>,
}

impl Finding {
    /// A finding of one of the kinds in `findings.txt`.
    ///
    /// # Panics
    ///
    /// If there is no such kind.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "callers have texts and references")]
    pub fn new(kind: &'static str, about: impl ToString, what: impl ToString) -> Self {
        let mut kinds = KINDS.split("\n\n");
        let found = kinds.find_map(|text| text.strip_prefix(kind)?.strip_prefix(' '));
        let mut lines = found.expect("findings.txt has the kind").lines();
        let (severity, why) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let (about, what) = (about.to_string(), what.to_string());
        let advice = lines.next().unwrap_or_default().replace("{}", &about);
        Self { kind, severity, about, what, why, advice, fixed: None }
    }
}
