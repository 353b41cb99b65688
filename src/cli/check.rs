//! `check`: does the service answer, and has it all that is named?

use intentframe_credentials::CredentialRef;
use intentframe_credentials::client::{ClientError, VaultClient};
use serde::Serialize;

use super::credential;
use super::failure::Failure;
use super::output::{Output, escaped};

/// Whatever stands in the way of knowing that a credential is there makes it missing:
/// a caller that starts on this test must not start on a doubt.
pub fn run(client: &VaultClient, names: &[String], json: bool) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        missing: &'a [String],
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }

    if names.is_empty() {
        return Err(Failure::usage("name at least one credential to check, as NAMESPACE/KEY"));
    }
    let wanted = names.iter().map(|name| credential(name)).collect::<Result<Vec<_>, _>>()?;
    let (missing, error) = missing(client, wanted);
    let mut output = Output::stdout();
    if json {
        let error = error.as_ref().map(ToString::to_string);
        output.json(&Report { ok: missing.is_empty(), missing: &missing, error })?;
    } else {
        let lines: String = missing.iter().map(|name| escaped(name).into_owned() + "\n").collect();
        output.text(&lines)?;
    }
    match (missing.len(), error) {
        (0, _) => Ok(()),
        (_, Some(error)) => Err(Failure::from(error).into_not_found()),
        (count, None) => Err(Failure::not_found(format!(
            "the vault lacks {count} of {} credentials\n  `credential-vault store NAMESPACE/KEY` \
             adds one",
            names.len()
        ))),
    }
}

/// Those that the service does not say it has, and why it could not say.
fn missing(client: &VaultClient, wanted: Vec<CredentialRef>) -> (Vec<String>, Option<ClientError>) {
    let mut missing = Vec::new();
    let mut trouble: Option<ClientError> = None;
    for at in wanted {
        // A service that is gone, or hangs, is not asked again for each of the rest.
        let asked = match trouble {
            Some(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => Ok(false),
            _ => client.has(&at),
        };
        match asked {
            Ok(true) => {}
            Ok(false) => missing.push(at.to_string()),
            Err(error) => {
                missing.push(at.to_string());
                trouble = Some(error);
            }
        }
    }
    (missing, trouble)
}
