//! `--git-credential`, asked by git.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::Ended;
use crate::tools::{TOKEN, Vault};

/// What `git credential OPERATION` prints for a request, with the helper as the only source.
fn git(vault: &Vault, helper: &str, operation: &str, request: &str) -> Ended {
    let program = env!("CARGO_BIN_EXE_credential-vault");
    let helper = format!("credential.helper=!{program} exec {helper}");
    let mut git = Command::new("git");
    git.args(["-c", "credential.username=ann", "-c", &helper, "credential", operation]);
    git.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", vault.place.root());
    git.env("INTENTFRAME_VAULT_SOCKET", &vault.service.socket).env("GIT_TERMINAL_PROMPT", "0");
    git.current_dir(vault.place.root());
    git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut git = git.spawn().expect("git is installed");
    git.stdin.take().expect("piped").write_all(request.as_bytes()).expect("it reads");
    git.wait_with_output().expect("it ends").into()
}

#[test]
fn git_gets_a_password_for_the_hosts_that_are_named() {
    let vault = Vault::with_token();
    vault.put_json("app/key", &json!({ "value": "canary\nsecond line" }));
    let helper = "--git-credential git.example=app/token --git-credential git.example:8443=app/key";
    let fill = |request: &str| git(&vault, helper, "fill", request);

    let host = "protocol=https\nhost=git.example\n";
    let said = fill(host).ok();
    assert_eq!(said, format!("{host}username=ann\npassword={TOKEN}\n"));
    fill("protocol=https\nhost=GIT.example\n").says(&format!("password={TOKEN}\n"));
    for other in ["http\nhost=git.example", "https\nhost=evil.example", "https\nhost=git.example:1"]
    {
        let ended = fill(&format!("protocol={other}\n"));
        assert!(!ended.stdout.contains("canary") && ended.status.code() == Some(128), "{ended:?}");
    }
    // More than git's protocol can say.
    let ended = fill("protocol=https\nhost=git.example:8443\n");
    assert!(ended.refused(128).contains("line break"));

    // git has used the password, or found that it is wrong: nothing is stored or deleted.
    for operation in ["approve", "reject"] {
        let request = format!("{host}username=ann\npassword=canary-of-git\n");
        assert_eq!(git(&vault, helper, operation, &request).ok(), "");
    }
    assert_eq!(vault.service.get("/v1/credentials/app/token").value(), TOKEN);

    let missing = git(&vault, "--git-credential git.example=app/none", "fill", host);
    assert!(missing.refused(128).contains("there is no credential app/none"));
    vault.run(&["--git-credential", "git.example", "get"]).failed(2, "HOST=NAMESPACE/KEY");
    let with_command = ["--git-credential", "git.example=app/token", "--", "true"];
    vault.run(&with_command).failed(2, "runs no command");
}
