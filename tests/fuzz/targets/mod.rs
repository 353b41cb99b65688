//! What is fuzzed: each target takes any bytes, and panics if a promise is broken. `make fuzz`
//! looks for such bytes; `tests/corpus.rs` replays those in `corpus`.

#![allow(dead_code, reason = "each fuzzing program runs one of the targets")]

mod answers;
#[path = "../../../src/cli/dotenv.rs"]
mod dotenv;
pub mod export;
#[path = "../../../src/cli/seed.rs"]
mod seed;
mod service;

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use intentframe_credentials::caller::{Caller, Peer};
use intentframe_credentials::metadata::DATABASE;
use intentframe_credentials::peer::Process;
use intentframe_credentials::policy::{Operation, Policy};
use intentframe_credentials::router::{Call, RequestHead};
use intentframe_credentials::seal::{Key, KeyHeader, KeySource};
use intentframe_credentials::text::is_invisible;
use intentframe_credentials::{
    BackendOptions, CredentialRef, Environment, Namespace, Secret, create_vault,
};
use tempfile::tempdir;
use tiny_http::Method;

use service::Service;

/// A target, ready to run.
pub type Run = Box<dyn FnMut(&[u8])>;

/// A target's name, which is that of its corpus, and how it is made ready.
pub type Target = (&'static str, fn() -> Run);

pub const TARGETS: [Target; 6] = [
    ("connection", connection),
    ("dotenv", dotenv),
    ("export", export::export),
    ("name", name),
    ("policy", policy),
    ("sealed", sealed),
];

/// A number that depends on every byte of the input, below `bound`.
fn below(bound: usize, data: &[u8]) -> usize {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    usize::try_from(hasher.finish() % bound as u64).expect("it is below a usize")
}

fn lines(data: &[u8]) -> usize {
    data.split(|byte| *byte == b'\n').count()
}

/// The bytes of a connection: the answers are well-formed, never those of a panic, echo no value,
/// and do not depend on how the bytes are cut.
pub fn connection() -> Run {
    let service = Service::start();
    Box::new(move |data| {
        let (whole, whole_is_reset) = service.exchange(&[data]);
        let (first, second) = data.split_at(below(data.len() + 1, data));
        let (cut, cut_is_reset) = service.exchange(&[first, second]);
        // Who announces a body is refused at once, while it has not come.
        let expects = data.to_ascii_lowercase().windows(6).any(|it| it == b"expect");
        if !(expects || whole_is_reset || cut_is_reset) {
            assert_eq!(whole, cut, "the answers depend on the cut at {}", first.len());
        }
    })
}

/// A `.env` file: names are names, and set once; problems are on lines that are there.
pub fn dotenv() -> Run {
    Box::new(|data| {
        let file = dotenv::parse(data);
        let lines = lines(data);
        let mut names = HashSet::new();
        for variable in &file.variables {
            let name = variable.name.as_str();
            assert!(name.starts_with(|it: char| it.is_ascii_alphabetic() || it == '_'));
            assert!(name.bytes().all(|it| it.is_ascii_alphanumeric() || b"_.-".contains(&it)));
            assert!(names.insert(name), "{name} is set twice");
        }
        let mut last = 0;
        for problem in &file.problems {
            let number = problem.strip_prefix("line ").and_then(|it| it.split_once(": "));
            let number: usize = number.expect("a number").0.parse().expect("a number");
            assert!(last < number && number <= lines, "{problem}");
            last = number;
        }
        let plan = seed::plan(&file.variables);
        assert!(plan.seeds.len() + plan.skipped.len() + plan.others.len() <= names.len());
        assert!(plan.others.iter().all(|name| names.contains(name.as_str())));
        for reason in &plan.skipped {
            assert!(names.contains(reason.split(':').next().expect("a name")), "{reason}");
        }
        for (at, request) in &plan.seeds {
            assert!(CredentialRef::parse(at.namespace().as_str(), at.key()).is_ok());
            assert!(!request.value.is_empty());
        }
    })
}

/// `NAMESPACE/KEY` and a request's path: what is a name is what the contract says, and a path
/// leads to it or to an error, at most by one redirect.
pub fn name() -> Run {
    let service = Service::start();
    Box::new(move |data| {
        let text = String::from_utf8_lossy(data);
        let (namespace, key) = text.split_once('/').unwrap_or((&text, "k"));
        let is_namespace = namespace.starts_with(|it: char| it.is_ascii_alphanumeric())
            && namespace.bytes().all(|it| it.is_ascii_alphanumeric() || b"_.@+-".contains(&it));
        assert_eq!(Namespace::new(namespace).is_ok(), is_namespace);
        let is_key = !key.is_empty()
            && !key.contains(|it: char| it == '/' || it.is_control() || is_invisible(it));
        let at = CredentialRef::parse(namespace, key);
        assert_eq!(at.is_ok(), is_namespace && is_key);
        let mut path = format!("/v1/credentials/{text}");
        if let Ok(at) = at {
            assert_eq!(at.to_string(), format!("{namespace}/{key}"));
            let encoded: Vec<String> = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
            path = format!("/v1/credentials/{namespace}/{}?{text}", encoded.concat());
            assert!(matches!(resolve(&service, &path), Ok(Call::Get(found, None)) if found == at));
        } else if let Err((307, location)) = resolve(&service, &path) {
            let redirected = resolve(&service, &location.expect("a redirect says where to"));
            assert!(!matches!(redirected, Err((307, _))), "{path} leads in circles");
        }
    })
}

/// What a GET of the path asks for, or the status of its answer and the `Location`.
fn resolve(service: &Service, target: &str) -> Result<Call, (u16, Option<String>)> {
    let peer = Peer::Process(Caller::from(this_process()));
    let (content_type, host, bearer) = (None, Some("localhost"), None);
    let (method, is_of_web_page) = (Method::Get, false);
    let head =
        RequestHead { method, target, content_type, host, is_of_web_page, bearer, peer: &peer };
    service.router.resolve(&head).map_err(|answer| {
        assert!(matches!(answer.status, 200 | 307 | 400 | 404 | 405 | 422), "{target}");
        let location = answer.headers.iter().find(|(name, _)| *name == "Location");
        (answer.status, location.map(|(_, target)| target.clone().into_owned()))
    })
}

fn this_process() -> Process {
    let uid = rustix::process::geteuid().as_raw();
    Process { uid, gid: rustix::process::getegid().as_raw(), pid: None }
}

/// A policy file: a problem is on a line that is there, and a policy gives nothing to a stranger.
pub fn policy() -> Run {
    const OWNER: u32 = 4_000_000_000;
    let directory = tempdir().expect("a temporary directory");
    Box::new(move |data| {
        let path = directory.path().join("policy.toml");
        fs::write(&path, data).expect("writable");
        let policy = match Policy::load(&path, OWNER) {
            Ok(policy) => policy,
            Err(error) => {
                let text = error.to_string();
                let rest = text.strip_prefix(&format!("{}:", path.display()));
                match rest.and_then(|it| it.split(':').next()?.parse().ok()) {
                    Some(line) => assert!((1..=lines(data)).contains(&line), "{text}"),
                    None => assert!(str::from_utf8(data).is_err(), "{text}"),
                }
                return;
            }
        };
        for uid in [1, 1001, OWNER] {
            decide(&policy, &Caller::from(Process { uid, gid: uid, pid: Some(1) }));
        }
    })
}

fn decide(policy: &Policy, caller: &Caller) {
    let consumers: Vec<&str> = policy.consumers_of(caller).collect();
    let is_known = policy.is_owner(caller) || !consumers.is_empty();
    assert_eq!(policy.admits(caller), is_known);
    for operation in [Operation::Read, Operation::List, Operation::Write, Operation::Delete] {
        let somewhere = policy.decide(caller, operation, None, &[]);
        assert!(is_known || somewhere.is_err());
        for names in [&[][..], &["nobody".to_owned()]] {
            let Ok(grant) = policy.decide(caller, operation, Some("openai"), names) else {
                continue;
            };
            assert!(somewhere.is_ok() && is_known);
            match (grant.consumer, grant.rule) {
                (None, None) => assert!(policy.is_owner(caller)),
                (Some(name), Some(rule)) => {
                    assert!(
                        consumers.contains(&name) && (1..=policy.size().1).contains(&(rule as u64))
                    );
                    assert!(names.is_empty() || names.iter().any(|it| it == name));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A row of the sealed store, and a key header: nothing but the original opens, whatever is changed
/// in it, and the error names the credential.
pub fn sealed() -> Run {
    let directory = tempdir().expect("a temporary directory");
    let data_dir = directory.path().join("data");
    let mut options = BackendOptions::new(Environment::default());
    options.data_dir = Some(data_dir.clone());
    let vault = create_vault("sealed", &options).expect("registered");
    let at = CredentialRef::parse("openai", "api_key").expect("valid");
    vault.store(&at, &Secret::new("sk-canary-0123456789".to_owned())).expect("stores");
    let database = rusqlite::Connection::open(data_dir.join(DATABASE)).expect("opens");
    let row = database.query_row("SELECT blob FROM vault_sealed", [], |row| row.get(0));
    let row: Vec<u8> = row.expect("a row");
    let header = database.query_row("SELECT header FROM vault_seal", [], |row| row.get(0));
    let header: String = header.expect("a header");
    let source = KeySource::File(directory.path().join("vault.key"));
    let set = "UPDATE vault_sealed SET blob = ?1";
    Box::new(move |data| {
        for blob in [data, &changed(&row, data)] {
            database.execute(set, [blob]).expect("writes");
            match vault.get(&at) {
                Ok(value) => assert!(value.is_some() && *blob == row),
                Err(error) => assert!(error.to_string().contains("openai/api_key"), "{error}"),
            }
        }
        assert!(unwrapped(data, &source).is_none());
        if let Some(key) = unwrapped(&changed(header.as_bytes(), data), &source) {
            // JSON can be written in many ways, and the digits too.
            let header: KeyHeader = serde_json::from_str(&header).expect("the original");
            let context = ["value", header.id(), "openai", "api_key"];
            assert!(key.open(&row, &context).is_ok(), "another key");
        }
    })
}

/// The original with the data laid over it: a byte of it is added to one of the original.
fn changed(original: &[u8], data: &[u8]) -> Vec<u8> {
    let mut changed = original.to_vec();
    let start = below(original.len(), data);
    let places = changed[start..].iter_mut().zip(data);
    places.for_each(|(place, byte)| *place = place.wrapping_add(*byte));
    changed
}

/// The data key of a header.
fn unwrapped(header: &[u8], source: &KeySource) -> Option<Key> {
    serde_json::from_slice::<KeyHeader>(header).ok()?.data_key(source).ok()
}
