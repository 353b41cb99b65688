//! Which credentials the variables of a `.env` file stand for.

use intentframe_credentials::{CredentialRef, DeliveryMode, Secret, StoreRequest};

use super::dotenv::Variable;

/// What a file comes to.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is stored.
    pub seeds: Vec<(CredentialRef, StoreRequest)>,
    /// What looks like a credential and is not stored.
    pub skipped: Vec<Skipped>,
    /// The names of the variables that are no credentials.
    pub others: Vec<String>,
}

/// A variable that is not stored, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The variable's name.
    pub name: String,
    /// Why, and what to do.
    pub reason: String,
}

/// The services whose keys have a variable of their own, and their namespaces.
const API_KEYS: [(&str, &str); 2] =
    [("OPENAI_API_KEY", "openai"), ("ANTHROPIC_API_KEY", "anthropic")];

/// Who gets an API key.
const API_KEY_CONSUMERS: [&str; 2] = ["uwe", "jarvis"];

/// Who gets the password of a mailbox.
const EMAIL_CONSUMER: &str = "edi";

/// Sorts the variables out.
pub fn plan(variables: &[Variable]) -> Plan {
    let mut plan = Plan::default();
    for variable in variables {
        let name = variable.name.as_str();
        if let Some((_, namespace)) = API_KEYS.iter().find(|(variable, _)| *variable == name) {
            plan.add_api_key(namespace, variable);
        } else if let Some(label) = email_label(name, "ADDRESS") {
            plan.add_email(label, variable, value_of(variables, label, "PASSWORD"));
        } else if let Some(label) = email_label(name, "PASSWORD") {
            if value_of(variables, label, "ADDRESS").is_none() {
                plan.skip(name, format!("there is no EMAIL_{label}_ADDRESS to go with it"));
            }
        } else {
            plan.others.push(name.to_owned());
        }
    }
    plan
}

/// The label in `EMAIL_<LABEL>_ADDRESS`, or `_PASSWORD`.
fn email_label<'a>(name: &'a str, half: &str) -> Option<&'a str> {
    let label = name.strip_prefix("EMAIL_")?.strip_suffix(half)?.strip_suffix('_')?;
    (!label.is_empty()).then_some(label)
}

fn value_of<'a>(variables: &'a [Variable], label: &str, half: &str) -> Option<&'a Secret> {
    let of_label = |it: &&Variable| email_label(&it.name, half) == Some(label);
    variables.iter().find(of_label).map(|it| &it.value)
}

impl Plan {
    fn skip(&mut self, name: &str, reason: impl Into<String>) {
        self.skipped.push(Skipped { name: name.to_owned(), reason: reason.into() });
    }

    fn add_api_key(&mut self, namespace: &str, variable: &Variable) {
        if variable.value.is_empty() {
            return self.skip(&variable.name, "it is empty");
        }
        let at = CredentialRef::parse(namespace, "api_key").expect("both names are valid");
        let request = StoreRequest {
            value: variable.value.duplicate(),
            delivery_mode: DeliveryMode::RuntimeEnv,
            allowed_consumers: API_KEY_CONSUMERS.map(str::to_owned).to_vec(),
            env_name: Some(variable.name.clone()),
            validator_id: None,
        };
        self.seeds.push((at, request));
    }

    fn add_email(&mut self, label: &str, address: &Variable, password: Option<&Secret>) {
        let password_name = format!("EMAIL_{label}_PASSWORD");
        let Some(password) = password else {
            return self.skip(&address.name, format!("there is no {password_name} to go with it"));
        };
        if address.value.is_empty() {
            self.skip(&address.name, "it is empty");
            return self.skip(&password_name, format!("its {} is empty", address.name));
        }
        if password.is_empty() {
            return self.skip(&password_name, "it is empty");
        }
        // Which character is wrong is not told: somebody may have swapped the two halves.
        let namespace = format!("email.{}", address.value.expose());
        let Ok(at) = CredentialRef::parse(&namespace, "password") else {
            return self.skip(
                &address.name,
                "it has characters that a namespace may not have: letters, digits and _ . @ + - \
                 are allowed",
            );
        };
        if self.seeds.iter().any(|(earlier, _)| *earlier == at) {
            return self.skip(&address.name, "an earlier variable has the same address");
        }
        let request = StoreRequest {
            value: password.duplicate(),
            delivery_mode: DeliveryMode::ExecutorOnly,
            allowed_consumers: vec![EMAIL_CONSUMER.to_owned()],
            env_name: None,
            validator_id: None,
        };
        self.seeds.push((at, request));
    }
}

#[cfg(test)]
mod tests {
    use super::super::dotenv;
    use super::*;

    fn planned(text: &str) -> Plan {
        let dotenv = dotenv::parse(text.as_bytes());
        assert_eq!(dotenv.problems, []);
        plan(&dotenv.variables)
    }

    fn skipped(plan: &Plan) -> Vec<(&str, &str)> {
        plan.skipped.iter().map(|it| (it.name.as_str(), it.reason.as_str())).collect()
    }

    #[test]
    fn seeds_are_what_the_contract_says() {
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
        assert_eq!(plan.skipped, []);
        assert_eq!(plan.others, ["PATH", "EMAIL_ADDRESS"]);
    }

    #[test]
    fn what_is_skipped_is_told_without_its_value() {
        let plan = planned(
            "OPENAI_API_KEY=\nEMAIL_A_ADDRESS=a@x\nEMAIL_B_PASSWORD=b\n\
             EMAIL_C_ADDRESS=sk canary\nEMAIL_C_PASSWORD=c\n\
             EMAIL_D_ADDRESS=\nEMAIL_D_PASSWORD=d\nEMAIL_E_ADDRESS=e@x\nEMAIL_E_PASSWORD=\n\
             EMAIL_F_ADDRESS=f@x\nEMAIL_F_PASSWORD=f\nEMAIL_G_ADDRESS=f@x\nEMAIL_G_PASSWORD=g\n",
        );
        assert_eq!(
            skipped(&plan),
            [
                ("OPENAI_API_KEY", "it is empty"),
                ("EMAIL_A_ADDRESS", "there is no EMAIL_A_PASSWORD to go with it"),
                ("EMAIL_B_PASSWORD", "there is no EMAIL_B_ADDRESS to go with it"),
                (
                    "EMAIL_C_ADDRESS",
                    "it has characters that a namespace may not have: letters, digits and \
                     _ . @ + - are allowed"
                ),
                ("EMAIL_D_ADDRESS", "it is empty"),
                ("EMAIL_D_PASSWORD", "its EMAIL_D_ADDRESS is empty"),
                ("EMAIL_E_PASSWORD", "it is empty"),
                ("EMAIL_G_ADDRESS", "an earlier variable has the same address"),
            ]
        );
        assert_eq!(plan.seeds.len(), 1);
    }
}
