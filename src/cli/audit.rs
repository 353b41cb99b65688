//! `audit`: reads the audit log.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::thread;
use std::time::Duration;

use intentframe_credentials::audit::{self, Entry};
use intentframe_credentials::ownership;

use super::prelude::*;

/// Check an audit log, or follow it.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "audit", help_triggers("-h", "--help"))]
pub struct Audit {
    #[argh(subcommand)]
    command: Subcommand,
}

#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand)]
enum Subcommand {
    Verify(Verify),
    Tail(Tail),
}

/// Check that no line of an audit log was changed, removed or added.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "verify", help_triggers("-h", "--help"))]
#[argh(note = "Two hashes are printed: the one that the first line continues, and that of the\n\
            last line. Of two files in a row, the second continues the last one of the first.\n\
            Whoever may write to the file could calculate all hashes anew: to notice that,\n\
            keep the last hash in another place.")]
struct Verify {
    /// the audit log
    #[argh(positional)]
    file: PathBuf,
}

/// Print the last lines of an audit log, and those that are added.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "tail", help_triggers("-h", "--help"))]
#[argh(note = "If standard output is not a terminal, the lines are printed as they are.")]
struct Tail {
    /// the number of earlier lines to print (10 by default)
    #[argh(option, short = 'n', default = "10", arg_name = "count")]
    lines: usize,

    /// end after the earlier lines
    #[argh(switch)]
    no_follow: bool,

    /// only this operation: read, list, store or delete
    #[argh(option, arg_name = "name")]
    op: Option<String>,

    /// only this outcome: allowed, refused, missing or failed
    #[argh(option, arg_name = "name")]
    outcome: Option<String>,

    /// only this consumer
    #[argh(option, arg_name = "name")]
    consumer: Option<String>,

    /// only this namespace, or this credential as NAMESPACE/KEY
    #[argh(option, arg_name = "name")]
    credential: Option<String>,

    /// the audit log
    #[argh(positional)]
    file: PathBuf,
}

/// How often a followed log is looked at.
const PAUSE: Duration = Duration::from_millis(250);

pub fn run(args: Audit) -> Result<(), Failure> {
    match args.command {
        Subcommand::Verify(Verify { file }) => verify(&file),
        Subcommand::Tail(args) => tail(&args),
    }
}

fn open(path: &Path) -> Result<BufReader<File>, Failure> {
    File::open(path).map(BufReader::new).map_err(cannot(format!("open {}", path.display())))
}

/// The last reader of each credential, by NAMESPACE/KEY.
pub fn last_users(path: &Path) -> Result<HashMap<String, String>, Failure> {
    let mut users = HashMap::new();
    for line in open(path)?.lines() {
        let line = line.map_err(cannot(format!("read {}", path.display())))?;
        let Some((entry, _)) = audit::parse(&line) else { continue };
        if entry.op == "read" && entry.outcome == "allowed" {
            users.insert(credential(&entry), caller(&entry));
        }
    }
    Ok(users)
}

fn verify(path: &Path) -> Result<(), Failure> {
    let verified = audit::verify(open(path)?)
        .map_err(|broken| Failure::other(format!("{}: {broken}", path.display())))?;
    let audit::Verified { lines, first, last } = verified;
    output::text(&format!("intact: {lines} lines\ncontinues {first}\nends with {last}\n"))
}

fn tail(args: &Tail) -> Result<(), Failure> {
    let mut log = open(&args.file)?;
    let mut earlier = VecDeque::new();
    let mut line = String::new();
    let failed = || cannot(format!("read {}", args.file.display()));
    while next_line(&mut log, &mut line).map_err(failed())? {
        earlier.extend(shown(args, &line));
        if earlier.len() > args.lines {
            earlier.pop_front();
        }
    }
    earlier.iter().try_for_each(|text| output::text(text))?;
    if args.no_follow {
        return Ok(());
    }
    loop {
        if next_line(&mut log, &mut line).map_err(failed())? {
            if let Some(text) = shown(args, &line) {
                output::text(&text)?;
            }
            continue;
        }
        // The service goes on in a new file once the old one was renamed.
        let open_file = log.get_ref().metadata().map_err(failed())?;
        match args.file.metadata() {
            Ok(there) if ownership::id(&there) != ownership::id(&open_file) => {
                log = open(&args.file)?;
            }
            _ => thread::sleep(PAUSE),
        }
    }
}

fn credential(entry: &Entry<'_>) -> String {
    let names = [entry.namespace.as_deref(), entry.key.as_deref()];
    names.into_iter().flatten().collect::<Vec<_>>().join("/")
}

/// The consumer, or else the user, and the program.
fn caller(entry: &Entry<'_>) -> String {
    let name = match (&entry.consumer, entry.uid) {
        (Some(consumer), _) => consumer.to_string(),
        (None, Some(uid)) => format!("uid {uid}"),
        (None, None) => "unknown".to_owned(),
    };
    entry.exe.as_ref().map_or(name.clone(), |exe| format!("{name} ({exe})"))
}

/// Reads the next whole line. The start of a line is left for the next call.
fn next_line(log: &mut BufReader<File>, line: &mut String) -> std::io::Result<bool> {
    line.clear();
    let start = log.stream_position()?;
    log.read_line(line)?;
    if line.ends_with('\n') {
        return Ok(true);
    }
    log.seek(SeekFrom::Start(start))?;
    Ok(false)
}

/// The line as it is printed, if it passes the filters.
fn shown(args: &Tail, line: &str) -> Option<String> {
    let Some((entry, _)) = audit::parse(line.trim_end()) else {
        let line = output::escaped(line.trim_end());
        return Some(format!("not a line of the audit log: {line}\n"));
    };
    let Entry { op, outcome, namespace, consumer, .. } = &entry;
    let credential = credential(&entry);
    let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|it| it == value);
    let passes = is(&args.op, op)
        && is(&args.outcome, outcome)
        && args.consumer.as_ref().is_none_or(|it| Some(it.as_str()) == consumer.as_deref())
        && (is(&args.credential, &credential)
            || is(&args.credential, namespace.as_deref().unwrap_or_default()));
    if !passes {
        return None;
    }
    if !output::is_terminal() {
        return Some(line.to_owned());
    }
    let caller = caller(&entry);
    let time = entry.ts.to_string();
    let time = time.get(.."2026-11-23T18:17:36".len()).unwrap_or(&time).replace('T', " ");
    let text = format!("{time}Z  {outcome:8} {op:7} {credential:32} {caller}");
    Some(output::escaped(text.trim_end()).into_owned() + "\n")
}
