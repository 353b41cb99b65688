//! Which credentials the variables of a `.env` file stand for.

use intentframe_credentials::{CredentialRef, DeliveryMode, Secret, StoreRequest};

use super::dotenv::Variable;

#[derive(Debug, Default)]
pub struct Plan {
    /// The credentials to store.
    pub seeds: Vec<(CredentialRef, StoreRequest)>,
    /// For each variable that looks like a credential and is not stored, its name and why.
    pub skipped: Vec<String>,
    /// The names of all other variables.
    pub others: Vec<String>,
}

/// The variables of API keys, and the namespace of each.
const API_KEYS: [(&str, &str); 2] =
    [("OPENAI_API_KEY", "openai"), ("ANTHROPIC_API_KEY", "anthropic")];

const API_KEY_CONSUMERS: [&str; 2] = ["uwe", "jarvis"];

const EMAIL_CONSUMERS: [&str; 1] = ["edi"];

/// Decides for each variable whether it is stored, and as what.
pub fn plan(variables: &[Variable]) -> Plan {
    let mut plan = Plan::default();
    for variable in variables {
        let name = variable.name.as_str();
        let api_key = API_KEYS.iter().find(|(variable, _)| *variable == name);
        let result = if let Some((_, namespace)) = api_key {
            api_key_seed(namespace, variable).map(Some)
        } else if let Some(label) = email_label(name, "ADDRESS") {
            email_seed(&plan, variable, label, value_of(variables, label, "PASSWORD")).map(Some)
        } else if let Some(label) = email_label(name, "PASSWORD") {
            match value_of(variables, label, "ADDRESS") {
                Some(_) => Ok(None),
                None => Err(format!("{name}: there is no EMAIL_{label}_ADDRESS to go with it")),
            }
        } else {
            plan.others.push(name.to_owned());
            Ok(None)
        };
        match result {
            Ok(seed) => plan.seeds.extend(seed),
            Err(reason) => plan.skipped.push(reason),
        }
    }
    plan
}

/// The label in `EMAIL_<LABEL>_ADDRESS` or `_PASSWORD`.
fn email_label<'a>(name: &'a str, half: &str) -> Option<&'a str> {
    let label = name.strip_prefix("EMAIL_")?.strip_suffix(half)?.strip_suffix('_')?;
    (!label.is_empty()).then_some(label)
}

fn value_of<'a>(variables: &'a [Variable], label: &str, half: &str) -> Option<&'a Secret> {
    let of_label = |it: &&Variable| email_label(&it.name, half) == Some(label);
    variables.iter().find(of_label).map(|it| &it.value)
}

type Seed = (CredentialRef, StoreRequest);

fn api_key_seed(namespace: &str, variable: &Variable) -> Result<Seed, String> {
    if variable.value.is_empty() {
        return Err(format!("{}: it is empty", variable.name));
    }
    let at = CredentialRef::parse(namespace, "api_key").expect("both names are valid");
    let env_name = Some(variable.name.clone());
    Ok((at, request(&variable.value, DeliveryMode::RuntimeEnv, &API_KEY_CONSUMERS, env_name)))
}

fn email_seed(
    plan: &Plan,
    address: &Variable,
    label: &str,
    password: Option<&Secret>,
) -> Result<Seed, String> {
    let name = &address.name;
    let password_name = format!("EMAIL_{label}_PASSWORD");
    let password =
        password.ok_or_else(|| format!("{name}: there is no {password_name} to go with it"))?;
    if address.value.is_empty() {
        return Err(format!("{name}: it is empty"));
    }
    if password.is_empty() {
        return Err(format!("{password_name}: it is empty"));
    }
    // The error does not repeat the address: somebody may have swapped it with the password.
    let namespace = format!("email.{}", address.value.expose());
    let at = CredentialRef::parse(&namespace, "password")
        .map_err(|_| format!("{name}: a namespace may have only letters, digits and _ . @ + -"))?;
    if plan.seeds.iter().any(|(earlier, _)| *earlier == at) {
        return Err(format!("{name}: an earlier variable has the same address"));
    }
    Ok((at, request(password, DeliveryMode::ExecutorOnly, &EMAIL_CONSUMERS, None)))
}

fn request(
    value: &Secret,
    delivery_mode: DeliveryMode,
    consumers: &[&str],
    env_name: Option<String>,
) -> StoreRequest {
    StoreRequest {
        value: value.duplicate(),
        delivery_mode,
        allowed_consumers: consumers.iter().copied().map(str::to_owned).collect(),
        env_name,
        validator_id: None,
    }
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
