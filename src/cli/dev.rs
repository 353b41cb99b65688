//! `dev`: from a `.env` file to a running service for development.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use intentframe_credentials::daemon::Settings;
use intentframe_credentials::redact::RegisteredSecrets;
use intentframe_credentials::server::Endpoint;
use intentframe_credentials::{BackendOptions, Environment, mask_value, settings};

use super::dotenv::{self, Dotenv};
use super::seed::{self, Plan};
use crate::cli::logging::keep_out;

use super::args::Dev;
use super::failure::Failure;
use super::output::{Output, escaped, table};
use super::serve::{serve_until_signal, workers};
use super::supervised::Supervisor;

const DEFAULT_FILE: &str = ".env";
const EXAMPLE_FILE: &str = ".env.example";
const DEFAULT_PORT: u16 = 8765;

/// Tells what is seeded, then serves until told to stop.
pub fn run(
    args: &Dev,
    environment: &Environment,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    let endpoint = match (args.tcp, args.port) {
        (true, port) => Endpoint::LoopbackTcp(port.unwrap_or(DEFAULT_PORT)),
        (false, Some(_)) => return Err(Failure::usage("--port goes with --tcp")),
        (false, None) => Endpoint::Unix(
            settings::socket(args.socket.as_deref(), environment).map_err(Failure::usage)?,
        ),
    };
    // INTENTFRAME_DATA_DIR is not asked: it names the directory of the real service,
    // whose database must not hear of seeds.
    let data_dir =
        settings::dev_data_dir(args.data_dir.as_deref(), environment).map_err(Failure::usage)?;
    let workers = workers(args.workers)?;
    let env_file = args.env_file.as_deref().map(|path| settings::expand_tilde(path, environment));

    let (opening, dotenv) =
        read_env_file(env_file.transpose().map_err(Failure::usage)?.as_deref())?;
    let plan = seed::plan(&dotenv.variables);
    for (_, request) in &plan.seeds {
        keep_out(&request.value, secrets);
    }
    Output::stdout().text(&(opening + &report(&dotenv, &plan)))?;

    let options = BackendOptions::new(environment.clone());
    let mut settings = Settings::new(endpoint.clone(), data_dir, "env", options);
    settings.workers = workers;
    settings.seeds = plan.seeds;
    settings.forget_metadata_without_value = true;
    serve_until_signal(&settings, Supervisor::new(None)?, false, |daemon| {
        let address = daemon.server().tcp_address();
        Output::stdout().text(&curl_lines(&endpoint, address))
    })
}

/// Reads the file asked for, else `.env`, else `.env.example`; says which.
fn read_env_file(asked_for: Option<&Path>) -> Result<(String, Dotenv), Failure> {
    let file = asked_for.unwrap_or(Path::new(DEFAULT_FILE));
    let cannot = |file: &Path, error: &io::Error| {
        Failure::usage(format!("cannot read {}: {error}", file.display()))
    };
    match dotenv::read(file) {
        Ok(dotenv) => Ok((format!("Seeding from {}.\n", escaped(&file.to_string_lossy())), dotenv)),
        Err(error) if asked_for.is_none() && error.kind() == io::ErrorKind::NotFound => {
            let example = Path::new(EXAMPLE_FILE);
            match dotenv::read(example) {
                Ok(dotenv) => Ok((
                    format!(
                        "There is no {DEFAULT_FILE} here; seeding from {EXAMPLE_FILE}, whose \
                         values are made up.\nTo use your own: cp {EXAMPLE_FILE} {DEFAULT_FILE}, \
                         and edit it.\n"
                    ),
                    dotenv,
                )),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((
                    format!(
                        "There is neither {DEFAULT_FILE} nor {EXAMPLE_FILE} here; the vault \
                         starts empty.\nAnother file is named with --env-file PATH.\n"
                    ),
                    Dotenv::default(),
                )),
                Err(error) => Err(cannot(example, &error)),
            }
        }
        Err(error) => Err(cannot(file, &error)),
    }
}

/// What is seeded and what is not: names and masks only.
fn report(dotenv: &Dotenv, plan: &Plan) -> String {
    let mut text = String::new();
    if plan.seeds.is_empty() {
        text.push_str("\nNothing is seeded.\n");
    } else {
        let rows: Vec<_> = plan
            .seeds
            .iter()
            .map(|(at, request)| {
                [
                    at.namespace().to_string(),
                    at.key().to_owned(),
                    request.delivery_mode.to_string(),
                    request.env_name.clone().unwrap_or_default(),
                    request.allowed_consumers.join(","),
                    mask_value(request.value.expose()),
                ]
            })
            .collect();
        let head = ["NAMESPACE", "KEY", "DELIVERY", "VARIABLE", "CONSUMERS", "VALUE"];
        text.push_str("\nSeeded:\n");
        indent(&mut text, &table(head, &rows));
    }
    if !plan.skipped.is_empty() || !dotenv.problems.is_empty() {
        text.push_str("\nSkipped:\n");
        for skipped in &plan.skipped {
            line(&mut text, &format!("{}: {}", skipped.name, skipped.reason));
        }
        for problem in &dotenv.problems {
            line(&mut text, &problem.to_string());
        }
    }
    if !plan.others.is_empty() {
        text.push_str("\nNot credentials:\n");
        line(&mut text, &plan.others.join(", "));
    }
    text
}

fn line(text: &mut String, line: &str) {
    let _ = writeln!(text, "  {line}");
}

fn indent(text: &mut String, lines: &str) {
    for each in lines.lines() {
        line(text, each);
    }
}

/// Requests to try the running service with, that can be pasted into a shell.
fn curl_lines(endpoint: &Endpoint, address: Option<SocketAddr>) -> String {
    let curl = match (endpoint, address) {
        (Endpoint::Unix(path), _) => {
            let quoted = path.to_string_lossy().replace('\'', r"'\''");
            format!("curl --unix-socket '{}' http://localhost", escaped(&quoted))
        }
        (_, Some(address)) => format!("curl http://{address}"),
        (endpoint, None) => format!("curl http://{endpoint}"),
    };
    format!(
        "\nServing. Try:\n  {curl}/health\n  {curl}/v1/credentials\n  {curl}/v1/credentials/openai/api_key\n\n"
    )
}
