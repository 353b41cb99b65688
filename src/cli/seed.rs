//! Which credentials the variables of a `.env` file stand for.

use intentframe_credentials::{CredentialRef, DeliveryMode, Secret, StoreRequest};

use super::dotenv::Variable;

#[derive(Debug, Default)]
pub struct Plan {
    /// The credentials to store.
    pub seeds: Vec<Seed>,
    /// For each variable that looks like a credential and is not stored, its name and why.
    pub skipped: Vec<String>,
    /// The names of all other variables.
    pub others: Vec<String>,
}

pub type Seed = (CredentialRef, StoreRequest);

/// The variables of API keys, and the namespace of each.
const API_KEYS: [(&str, &str); 2] =
    [("OPENAI_API_KEY", "openai"), ("ANTHROPIC_API_KEY", "anthropic")];

/// Decides for each variable whether it is stored, and as what.
pub fn plan(variables: &[Variable]) -> Plan {
    let mut plan = Plan::default();
    for variable in variables {
        let name = variable.name.as_str();
        let email = |half: &str| {
            let label = name.strip_prefix("EMAIL_")?.strip_suffix(half)?;
            Some(label).filter(|label| !label.is_empty())
        };
        let api_key = API_KEYS.iter().find(|(variable, _)| *variable == name);
        let seed = if let Some((_, namespace)) = api_key {
            let at = CredentialRef::parse(namespace, "api_key").expect("both names are valid");
            let env_name = Some(name.to_owned());
            request(variable, DeliveryMode::RuntimeEnv, env_name, &["uwe", "jarvis"])
                .map(|request| (at, request))
        } else if let Some(label) = email("_ADDRESS") {
            partner(variables, name, label, "PASSWORD").and_then(|password| {
                let at = mailbox(variable)?;
                Ok((at, request(password, DeliveryMode::ExecutorOnly, None, &["edi"])?))
            })
        } else if let Some(label) = email("_PASSWORD") {
            match partner(variables, name, label, "ADDRESS") {
                Ok(_) => continue,
                Err(reason) => Err(reason),
            }
        } else {
            plan.others.push(name.to_owned());
            continue;
        };
        match seed {
            Ok((at, _)) if plan.seeds.iter().any(|(earlier, _)| *earlier == at) => {
                plan.skipped.push(format!("{name}: an earlier variable has the same address"));
            }
            Ok(seed) => plan.seeds.push(seed),
            Err(reason) => plan.skipped.push(reason),
        }
    }
    plan
}

/// The other variable of a pair for an email account.
fn partner<'a>(
    variables: &'a [Variable],
    name: &str,
    label: &str,
    half: &str,
) -> Result<&'a Variable, String> {
    let partner = format!("EMAIL_{label}_{half}");
    let found = variables.iter().find(|it| it.name == partner);
    found.ok_or_else(|| format!("{name}: there is no {partner} to go with it"))
}

/// The password's credential.
fn mailbox(address: &Variable) -> Result<CredentialRef, String> {
    // The error does not repeat the address: somebody may have swapped it with the password.
    let namespace = format!("email.{}", value(address)?.expose());
    CredentialRef::parse(&namespace, "password").map_err(|_| {
        format!("{}: a namespace may have only letters, digits and _ . @ + -", address.name)
    })
}

fn request(
    variable: &Variable,
    delivery_mode: DeliveryMode,
    env_name: Option<String>,
    consumers: &[&str],
) -> Result<StoreRequest, String> {
    let value = value(variable)?.duplicate();
    let allowed_consumers = consumers.iter().copied().map(str::to_owned).collect();
    Ok(StoreRequest { value, delivery_mode, allowed_consumers, env_name, validator_id: None })
}

fn value(variable: &Variable) -> Result<&Secret, String> {
    let Variable { name, value } = variable;
    if value.is_empty() { Err(format!("{name}: it is empty")) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::super::dotenv;
    use super::*;

    fn planned(text: &str) -> Plan {
        let dotenv = dotenv::parse(text.as_bytes());
        assert!(dotenv.problems.is_empty());
        plan(&dotenv.variables)
    }

    #[test]
    fn seeds_follow_the_contract() {
        let plan = planned(
            "EMAIL_MY_WORK_PASSWORD=pw\nOPENAI_API_KEY=o\nANTHROPIC_API_KEY=a\n\
             EMAIL_MY_WORK_ADDRESS=you+x@gmail.com\nPATH=/bin\nEMAIL_ADDRESS=x\n",
        );
        let seen: Vec<_> = plan
            .seeds
            .iter()
            .map(|(at, it)| {
                (
                    at.to_string(),
                    it.value.expose(),
                    it.delivery_mode.as_str(),
                    it.env_name.as_deref(),
                    it.allowed_consumers.join(","),
                )
            })
            .collect();
        let both = "uwe,jarvis".to_owned();
        assert_eq!(
            seen,
            [
                ("openai/api_key".into(), "o", "runtime_env", Some("OPENAI_API_KEY"), both.clone()),
                ("anthropic/api_key".into(), "a", "runtime_env", Some("ANTHROPIC_API_KEY"), both),
                (
                    "email.you+x@gmail.com/password".into(),
                    "pw",
                    "executor_only",
                    None,
                    "edi".into()
                ),
            ]
        );
        assert!(plan.skipped.is_empty());
        assert_eq!(plan.others, ["PATH", "EMAIL_ADDRESS"]);
    }

    #[test]
    fn skipped_variables_are_reported_without_their_values() {
        let plan = planned(
            "OPENAI_API_KEY=\nEMAIL_A_ADDRESS=a@x\nEMAIL_B_PASSWORD=b\n\
             EMAIL_C_ADDRESS=sk canary\nEMAIL_C_PASSWORD=c\n\
             EMAIL_D_ADDRESS=\nEMAIL_D_PASSWORD=d\nEMAIL_E_ADDRESS=e@x\nEMAIL_E_PASSWORD=\n\
             EMAIL_F_ADDRESS=f@x\nEMAIL_F_PASSWORD=f\nEMAIL_G_ADDRESS=f@x\nEMAIL_G_PASSWORD=g\n",
        );
        assert_eq!(
            plan.skipped,
            [
                "OPENAI_API_KEY: it is empty",
                "EMAIL_A_ADDRESS: there is no EMAIL_A_PASSWORD to go with it",
                "EMAIL_B_PASSWORD: there is no EMAIL_B_ADDRESS to go with it",
                "EMAIL_C_ADDRESS: a namespace may have only letters, digits and _ . @ + -",
                "EMAIL_D_ADDRESS: it is empty",
                "EMAIL_E_PASSWORD: it is empty",
                "EMAIL_G_ADDRESS: an earlier variable has the same address",
            ]
        );
        assert_eq!(plan.seeds.len(), 1);
    }
}
