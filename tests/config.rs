//! The configuration file and `config`, at the command line and with a running service.
#![cfg(unix)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Ended, Place, wait_until};

/// A command with these variables only.
fn vault(arguments: &[&str], variables: &[(&str, &Path)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    Ended::of(&mut command)
}

fn file(place: &Place, name: &str, mode: u32, text: &str) -> PathBuf {
    let path = place.root().join(name);
    fs::create_dir_all(path.parent().expect("it has one")).expect("makes the directory");
    fs::write(&path, text).expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changes the mode");
    path
}

/// The service and its clients read the same file. `config` says where each setting is from.
#[test]
fn one_file_is_enough_for_the_service_and_its_clients() {
    let place = Place::new();
    let text = format!(
        "# the vault\nsocket = {:?}\ndata_dir = \"~/data\"\nbackend = \"env\"\nworkers = 2\n\
         preview = \"none\"\nlog_format = \"json\"\nvault_token = \"sk-canary-1\"\n\
         [validators]\ngithub = [\"/bin/check\", \"-q\"]\n",
        place.socket()
    );
    let path = file(&place, ".config/intentframe/vault.toml", 0o600, &text);
    let service = place.bare_setup().start();
    assert_eq!(service.get("/health").json()["backend"], "EnvVault");
    assert!(place.data_dir().exists());
    wait_until("the log is JSON", || service.log().contains("\"level\":\"INFO\""));
    assert!(!service.log().contains("canary"), "{}", service.log());

    let home = [("HOME", place.root())];
    vault(&["health"], &home).says("EnvVault");
    let level = [("HOME", place.root()), ("IF_VAULT_WORKERS", Path::new("7"))];
    let shown = vault(&["config", "--socket", "~/other", "--json"], &level).ok();
    let rows: Vec<Value> = serde_json::from_str(&shown).expect("JSON");
    let place_of = |line: u32| format!("{}:{line}", path.display());
    for (setting, value, from) in [
        ("socket", &*place.root().join("other").display().to_string(), "option"),
        ("data_dir", &*place.data_dir().display().to_string(), &*place_of(3)),
        ("workers", "7", "environment IF_VAULT_WORKERS"),
        ("preview", "none", &place_of(6)),
        ("vault_token", "[set]", &place_of(8)),
        ("vault_kv_mount", "secret", "default"),
        ("validators.github", "/bin/check -q", &place_of(9)),
    ] {
        let row = rows.iter().find(|row| row["setting"] == setting).expect(setting);
        assert_eq!((&row["value"], &row["from"]), (&value.into(), &from.into()), "{setting}");
    }
    assert!(!shown.contains("canary"), "{shown}");
    assert_eq!(vault(&["config"], &home).ok().lines().count(), rows.len());

    // A file that is named replaces the usual ones; an error of its setting says where that is.
    let named = file(&place, "named.toml", 0o644, "\npreview = \"canary\"\nsocket = \"~/none\"\n");
    let named = named.to_str().expect("UTF-8");
    vault(&["health", "--config", named], &home).failed(3, "none");
    let variables = [("HOME", place.root()), ("IF_VAULT_CONFIG", Path::new(named))];
    let refused =
        vault(&["serve", "--backend=env", "--data-dir=/dev/null/x"], &variables).refused(2);
    assert!(refused.contains(&format!("IF_VAULT_PREVIEW is set in {named}:2")), "{refused}");
    vault(&["health", "--config", "/dev/null/none"], &[]).failed(2, "the configuration");
    vault(&["--version", "--config", "/dev/null/none"], &[]).says("credential-vault");
}

#[test]
fn what_is_wrong_is_named_by_its_place_and_never_shown() {
    let place = Place::new();
    let attempt = |mode, text: &str| {
        let path = file(&place, "vault.toml", mode, text);
        vault(&["config", "--config", path.to_str().expect("UTF-8")], &[]).refused(2)
    };
    for (text, at, says) in [
        ("\n keyfile = \"canary\"", "2:2", "did you mean `key_file`?"),
        ("backend = \"env\"\nsokcet = \"canary\"", "2:1", "did you mean `socket`?"),
        ("nothing_like_it_here = 1", "1:1", "there are: socket,"),
        ("policy = 7\n", "1:10", "policy is a text in quotes"),
        ("workers = \"canary\"", "1:11", "workers is a number"),
        ("workers = 0x10", "1:11", "workers is a number"),
        ("\n\nvault_renew = \"canary\"", "3:15", "vault_renew is true or false"),
        ("vault_client_timeout = 1.5", "1:24", "a number of seconds"),
        ("policy = [\"canary\"]", "1:10", "policy is a text"),
        ("[validators]\nx = \"canary\"", "2:5", "is a name and its command"),
        ("[validators]\nx = [\"canary\", 1]", "2:16", "is a name and its command"),
        ("validators = \"canary\"", "1:14", "is a name and its command"),
        ("backend = \"canary", "1:", "invalid"),
        ("backend = canary", "1:11", ""),
        ("backend = \"canary\"\nbackend = \"canary\"", "2:1", "duplicate"),
        ("\"é\" = 1 canary", "1:7", ""),
    ] {
        let refused = attempt(0o600, text);
        assert!(refused.contains(&format!("vault.toml:{at}")), "{text:?}: {refused}");
        assert!(refused.contains(says), "{text:?}: {refused}");
    }
    for (mode, text, says) in [
        (0o640, "vault_token = \"canary\"", "vault_token_file"),
        (0o604, "vault_secret_id = \"canary\"", "run chmod 600"),
        (0o620, "", "other users may write to it; run chmod go-w"),
        (0o602, "", "other users may write to it"),
    ] {
        // A file of root's may be for a group.
        if mode == 0o640 && rustix::process::geteuid().is_root() {
            continue;
        }
        let refused = attempt(mode, text);
        assert!(refused.contains(says), "{mode:o}: {refused}");
    }
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/vault.toml");
    let all = fs::read_to_string(sample).expect("reads").replace("\n# ", "\n");
    let all: Vec<_> =
        all.lines().filter(|line| line.contains(" = ") || line.starts_with('[')).collect();
    let copy = file(&place, "sample.toml", 0o600, &all.join("\n"));
    let shown = vault(&["config", "--config", copy.to_str().expect("UTF-8")], &[]).ok();
    assert!(!shown.contains("\tdefault"), "every setting is in it: {shown}");
    let copy = file(&place, "vault.toml", 0o644, &fs::read_to_string(sample).expect("reads"));
    let shown = vault(&["config", "--config", copy.to_str().expect("UTF-8")], &[]).ok();
    assert!(shown.contains("vault.toml:"), "{shown}");
}

/// The XDG directories are for new installations; `~/.intentframe` stays in use where it is.
#[test]
fn xdg_directories_are_used_unless_there_is_an_older_place() {
    let place = Place::new();
    let home = place.root().to_owned();
    let [run, state] = ["run-dir", "state"].map(|name| home.join(name));
    let new = run.join("intentframe/credential-vault.sock");
    let variables: [(&str, &Path); 3] =
        [("HOME", &home), ("XDG_RUNTIME_DIR", &run), ("XDG_STATE_HOME", &state)];
    let start = |variables: &[(&str, &Path)], socket: &Path| {
        let setup = place.bare_setup().argument("--backend").argument("env");
        let setup = variables
            .iter()
            .fold(setup, |setup, (name, value)| setup.env(name, value.to_str().expect("UTF-8")));
        let service = setup.listening_at(socket.to_owned()).start();
        vault(&["health"], variables).says("EnvVault");
        service
    };
    drop(start(&variables, &new));
    assert!(state.join("intentframe/data/credentials.db").exists());
    assert!(!home.join(".intentframe").exists());

    // The data goes to its old default, which must not move the socket.
    drop(start(&variables[..2], &new));
    assert!(home.join(".intentframe/data").exists());
    vault(&["config"], &variables[..2]).says(new.to_str().expect("UTF-8"));

    let old = home.join(".intentframe/run/credential-vault.sock");
    drop(start(&variables[..1], &old));
    vault(&["config"], &variables).says(old.to_str().expect("UTF-8"));
}
