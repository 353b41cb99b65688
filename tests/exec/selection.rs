//! Which credentials and variables a command gets, and what prevents its start.

use serde_json::json;

use crate::support::Place;
use crate::tools::{Ended, Vault};

/// The variables of the command, except those that every test sets.
#[track_caller]
fn variables(vault: &Vault, options: &[&str]) -> Vec<String> {
    let output = vault.run(&[options, &["--", "env"]].concat()).ok();
    let mut variables: Vec<_> = output
        .lines()
        .filter(|line| !line.starts_with("PATH=") && !line.starts_with("INTENTFRAME_VAULT_SOCKET="))
        .map(str::to_owned)
        .collect();
    variables.sort();
    variables
}

#[test]
fn options_select_by_consumer_name_and_namespace() {
    let vault = Vault::start();
    vault.put("a/one", "1", "A_ONE", &[]);
    vault.put("a/two", "2", "A_TWO", &["uwe", "jarvis"]);
    vault.put("b/one", "3", "B_ONE", &["edi"]);
    vault.put_json("b/secret", &json!({ "value": "4" }));
    let of = |options: &[&str]| variables(&vault, options);

    assert_eq!(of(&[]), ["A_ONE=1", "A_TWO=2", "B_ONE=3"]);
    assert_eq!(of(&["--consumer", "jarvis"]), ["A_ONE=1", "A_TWO=2"]);
    assert_eq!(of(&["--consumer=nobody"]), ["A_ONE=1"]);
    assert_eq!(of(&["--only", "a/two"]), ["A_TWO=2"]);
    assert_eq!(of(&["--only", "a/two", "--only=b/one"]), ["A_TWO=2", "B_ONE=3"]);
    assert_eq!(of(&["--namespace", "a"]), ["A_ONE=1", "A_TWO=2"]);
    assert_eq!(of(&["--namespace", "a", "--consumer", "edi"]), ["A_ONE=1"]);
    assert_eq!(of(&["--namespace", "b", "--only", "a/one"]), ["A_ONE=1", "B_ONE=3"]);
    assert_eq!(of(&["--namespace", "none"]), Vec::<String>::new());

    // A mapping adds a credential, and replaces its own variable.
    let mapped = ["--only", "a/one", "--env", "OTHER=b/one", "--env=MORE=b/one"];
    assert_eq!(of(&mapped), ["A_ONE=1", "MORE=3", "OTHER=3"]);
    assert_eq!(of(&["--only", "a/one", "--env", "OTHER=a/one"]), ["OTHER=1"]);
    let executor = ["--only", "a/one", "--allow-executor-only", "--env", "SECRET=b/secret"];
    assert_eq!(of(&executor), ["A_ONE=1", "SECRET=4"]);
    let both = ["--allow-executor-only", "--only", "b/secret", "--env", "SECRET=b/secret"];
    assert_eq!(of(&both), ["SECRET=4"]);
}

#[test]
fn a_named_credential_is_never_left_out_silently() {
    let vault = Vault::start();
    vault.put("a/one", "canary-1", "A_ONE", &["edi"]);
    vault.put_json("b/secret", &json!({ "value": "canary-2" }));
    let refused = |options: &[&str], code: i32| {
        vault.run(&[options, &["--", "echo", "started"]].concat()).refused(code)
    };
    let said = refused(&["--only", "a/none", "--env", "X=b/none"], 1);
    assert!(said.contains("a/none: the vault has no value"), "{said}");
    assert!(said.contains("b/none: the vault has no value"), "{said}");
    let said = refused(&["--only", "a/one", "--consumer", "uwe"], 2);
    assert!(said.contains("a/one: it is not for the consumer"), "{said}");
    for options in [["--only", "b/secret"], ["--env", "X=b/secret"]] {
        let said = refused(&options, 2);
        assert!(said.contains("b/secret: it is executor_only"), "{said}");
        assert!(said.contains("--allow-executor-only"), "{said}");
    }
    let said = refused(&["--only", "b/secret", "--allow-executor-only"], 2);
    assert!(said.contains("b/secret: no variable"), "{said}");
    assert!(refused(&["--env", "LD_PRELOAD=a/one"], 2).contains("\"LD_PRELOAD\""));
    assert!(refused(&["--env", "A-B=a/one"], 2).contains("\"A-B\""));
}

#[test]
fn every_problem_is_reported_before_anything_starts() {
    // The Python service accepts such rows.
    let place = Place::new();
    place.seed_database(5);
    let database = rusqlite::Connection::open(place.database()).expect("opens");
    for (row, name) in [
        (0, Some("LD_AUDIT")),
        (1, Some("BAD NAME")),
        (2, Some("")),
        (3, Some("GOOD")),
        (4, Some("GOOD")),
    ] {
        let set = "UPDATE credential_metadata
             SET delivery_mode = 'runtime_env', env_name = ?2 WHERE key = ?1";
        database.execute(set, (format!("key-{row:06}"), name)).expect("updates");
    }
    let mut setup = place.setup();
    for row in 0..5 {
        setup = setup.env(&format!("SEEDED_KEY_{row:06}"), "canary");
    }
    let vault = Vault { service: setup.start(), place };
    vault.put("more/nul", "canary\0", "WITH_NUL", &[]);

    let said = vault.run(&["--", "echo", "started"]).refused(2);
    for line in [
        "4 credentials cannot be delivered",
        "GOOD: it is the variable of seeded/key-000003 and of seeded/key-000004",
        "seeded/key-000000 in \"LD_AUDIT\": this variable steers",
        "seeded/key-000001 in \"BAD NAME\": the name of a variable has",
        "seeded/key-000002: no variable is named for it",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let nul = vault.run(&["--namespace", "more", "--", "echo", "started"]).refused(2);
    assert!(nul.contains("more/nul in WITH_NUL: its value has a NUL byte"), "{nul}");

    // The caller may take the risk of one name, though not of a name that is malformed.
    let named = |options: &[&str]| vault.run(&[options, &["--", "echo", "started"]].concat());
    let options = ["--only", "seeded/key-000000", "--allow-name", "LD_AUDIT_"];
    assert!(named(&options).refused(2).contains("--allow-name NAME"));
    let options = ["--only", "seeded/key-000001", "--allow-name", "BAD NAME"];
    assert!(named(&options).refused(2).contains("\"BAD NAME\""));
    let options = ["--only", "seeded/key-000000", "--allow-name", "LD_AUDIT", "--files"];
    let directory = vault.file("files");
    let options = [&options[..], &[directory.to_str().expect("UTF-8")]].concat();
    let listing = [&options[..], &["--", "sh", "-c", "ls $CREDENTIALS_DIRECTORY"]].concat();
    #[cfg(target_os = "linux")]
    assert_eq!(vault.run(&listing).ok(), "LD_AUDIT\n");

    // They do not matter if they are not selected.
    let options = ["--only", "seeded/key-000003", "--env", "FINE=seeded/key-000000"];
    assert_eq!(variables(&vault, &options), ["FINE=canary", "GOOD=canary"]);
    // A row without a value.
    vault.put("gone/key", "canary", "GONE", &[]);
    let sql = "UPDATE credential_metadata SET key = 'other' WHERE namespace = 'gone'";
    database.execute(sql, []).expect("updates");
    let said = vault.run(&["--namespace", "gone", "--", "echo", "started"]).refused(1);
    assert!(said.contains("gone/other: the vault has no value"), "{said}");
}

#[test]
fn names_that_steer_a_program_need_the_callers_word() {
    let vault = Vault::with_token();
    let proxy = ["--only", "app/token", "--env", "https_proxy=app/token"];
    let refused = vault.run(&[&proxy[..], &["--", "echo", "started"]].concat()).refused(2);
    assert!(refused.contains("\"https_proxy\": this variable steers"), "{refused}");
    let options = [&proxy[..], &["--allow-name", "https_proxy", "--allow-name", "UNUSED"]].concat();
    let expected = [format!("https_proxy={}", crate::tools::TOKEN)];
    assert_eq!(variables(&vault, &options), expected);
    // The word for one name is none for another.
    let other = ["--env", "GIT_ASKPASS=app/token"];
    let options = [&options[..], &other, &["--", "echo", "started"]].concat();
    assert!(vault.run(&options).refused(2).contains("\"GIT_ASKPASS\""));
}

#[test]
fn the_vaults_tokens_are_not_inherited_and_clean_removes_more() {
    let vault = Vault::with_token();
    let run = |options: &[&str]| {
        let mut command = vault.exec(&[options, &["--", "env"]].concat());
        for name in
            ["VAULT_TOKEN", "VAULT_SECRET_ID", "VAULT_ROLE_ID_FILE", "VAULT_ADDR", "HOME", "X"]
        {
            command.env(name, "own");
        }
        let output = Ended::of(&mut command).ok();
        let mut names: Vec<_> = output
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, _)| name.to_owned())
            .collect();
        names.sort();
        names
    };
    let socket = "INTENTFRAME_VAULT_SOCKET";
    assert_eq!(run(&[]), ["APP_TOKEN", "HOME", socket, "PATH", "VAULT_ADDR", "X"]);
    assert_eq!(run(&["--clean"]), ["APP_TOKEN", "HOME", "PATH"]);
    assert_eq!(
        run(&["--clean", "--keep", "X", "--keep=NOT_SET"]),
        ["APP_TOKEN", "HOME", "PATH", "X"]
    );
    assert!(run(&["--keep", "VAULT_TOKEN"]).contains(&"VAULT_TOKEN".to_owned()));

    // A credential may be delivered in such a variable.
    vault.put("app/vault", "another", "VAULT_TOKEN", &[]);
    let mut command = vault.exec(&["--", "printenv", "VAULT_TOKEN"]);
    assert_eq!(Ended::of(command.env("VAULT_TOKEN", "own")).ok(), "another\n");
}

#[test]
fn variables_that_are_set_are_replaced_only_on_demand() {
    let vault = Vault::with_token();
    let with = |options: &[&str], value: &str| {
        let mut command = vault.exec(&[options, &["--", "printenv", "APP_TOKEN"]].concat());
        Ended::of(command.env("APP_TOKEN", value))
    };
    let said = with(&[], "other").refused(2);
    assert!(said.contains("APP_TOKEN") && said.contains("--override"), "{said}");
    with(&["--mask"], "other").refused(2);
    with(&["--watch"], "other").refused(2);
    let token = format!("{}\n", crate::tools::TOKEN);
    assert_eq!(with(&[], crate::tools::TOKEN).ok(), token);
    assert_eq!(with(&["--override"], "other").ok(), token);
    assert_eq!(with(&["--clean"], "other").ok(), token);
}
