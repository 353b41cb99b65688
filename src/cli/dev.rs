//! `dev`: from a `.env` file to a running service for development.

use std::net::SocketAddr;
use std::num::NonZero;
use std::{fs, io};

use intentframe_credentials::daemon::Settings;
use intentframe_credentials::server::Endpoint;
use intentframe_credentials::{BackendOptions, Environment, Secret, mask_value, random, settings};
use zeroize::Zeroizing;

use super::dotenv::{self, Dotenv};
use super::logging::keep_out;
use super::output::{self, escaped, table};
use super::prelude::*;
use super::seed::{self, Plan};
use super::serve::{serve_until_signal, workers};

const DEFAULT_PORT: u16 = 8765;

/// Run a service for development. Values stay in memory and are seeded from .env.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "dev", help_triggers("-h", "--help"))]
#[argh(note = "The seeds are OPENAI_API_KEY, ANTHROPIC_API_KEY, and each pair of\n\
            EMAIL_<LABEL>_ADDRESS and EMAIL_<LABEL>_PASSWORD. Without a .env file, the\n\
            service is seeded from .env.example.")]
pub struct Dev {
    /// seed from this file instead of .env
    #[argh(option, arg_name = "path")]
    env_file: Option<PathBuf>,

    /// listen on loopback TCP instead of a socket; requests need the token that is printed
    #[argh(switch)]
    tcp: bool,

    /// the TCP port, with --tcp (8765 by default)
    #[argh(option, arg_name = "number")]
    port: Option<u16>,

    /// keep the metadata database in this directory (~/.intentframe/dev-data by default)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the number of threads that may wait for the backend
    #[argh(option, arg_name = "count")]
    workers: Option<NonZero<usize>>,
}

pub fn run(args: Dev, context: &Context) -> Result<(), Failure> {
    let environment = &context.environment;
    let endpoint = match args.port {
        port if args.tcp => Endpoint::LoopbackTcp(port.unwrap_or(DEFAULT_PORT)),
        Some(_) => return Err(Failure::usage("--port requires --tcp")),
        None => Endpoint::Unix(context.socket()?),
    };
    // INTENTFRAME_DATA_DIR is ignored: it names the directory of the real service, whose
    // database must not contain seeds.
    let data_dir = settings::dev_data_dir(args.data_dir.as_deref(), environment)?;
    let env_file = args.env_file.map(|path| settings::expand_tilde(&path, environment));
    let env_file = env_file.transpose()?;

    let (opening, dotenv) = read_env_file(env_file.as_deref())?;
    let plan = seed::plan(&dotenv.variables);
    for (_, request) in &plan.seeds {
        keep_out(&request.value, &context.secrets);
    }
    output::text(&(opening + &report(&dotenv, &plan)))?;

    // Nothing but the seeds is given out: any variable of this process may be a secret.
    let options = BackendOptions::new(Environment::default());
    let mut settings = Settings::new(endpoint.clone(), data_dir, "env", options);
    settings.workers = workers(args.workers, context)?;
    settings.seeds = plan.seeds;
    settings.forget_metadata_without_value = true;
    if args.tcp {
        settings.bearer = Some(random_token()?);
    }
    serve_until_signal(&settings, None, false, |daemon| {
        let token = settings.bearer.as_ref();
        output::text(&curl_lines(&endpoint, daemon.server().tcp_address(), token))
    })
}

/// 128 random bits in hexadecimal.
fn random_token() -> Result<Secret, Failure> {
    let bytes = random::bytes().map_err(Failure::other)?;
    Ok(Secret::new(format!("{:032x}", u128::from_ne_bytes(bytes))))
}

/// Reads `asked_for`, else `.env`, else `.env.example`. Also returns which one, for the user.
fn read_env_file(asked_for: Option<&Path>) -> Result<(String, Dotenv), Failure> {
    let file = asked_for.unwrap_or(Path::new(".env"));
    let seeding = format!("Seeding from {}.\n", escaped(&file.to_string_lossy()));
    for (file, said) in [(file, &*seeding), (Path::new(".env.example"), EXAMPLE)] {
        match fs::read(file).map(Zeroizing::new) {
            Ok(text) => return Ok((said.to_owned(), dotenv::parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && asked_for.is_none() => {}
            Err(error) => {
                return Err(Failure::usage(format!("cannot read {}: {error}", file.display())));
            }
        }
    }
    Ok((NO_FILE.to_owned(), Dotenv::default()))
}

const EXAMPLE: &str = "There is no .env here; seeding from .env.example, whose values are made up.\n\
    To use your own: cp .env.example .env, and edit it.\n";
const NO_FILE: &str = "There is neither .env nor .env.example here; the vault starts empty.\n\
    --env-file PATH selects another file.\n";

/// Lists the seeds and the variables that are skipped: names and masked values only.
fn report(dotenv: &Dotenv, plan: &Plan) -> String {
    let rows: Vec<_> = plan
        .seeds
        .iter()
        .map(|(at, request)| {
            [
                at.namespace().to_string(),
                at.key().to_owned(),
                request.delivery_mode.as_str().to_owned(),
                request.env_name.clone().unwrap_or_default(),
                request.allowed_consumers.join(","),
                mask_value(request.value.expose()),
            ]
        })
        .collect();
    let head = &["NAMESPACE", "KEY", "DELIVERY", "VARIABLE", "CONSUMERS", "VALUE"];
    let seeded = match rows.as_slice() {
        [] => "\nNothing is seeded.\n".to_owned(),
        rows => section("Seeded", table(head, rows).lines()),
    };
    let skipped = plan.skipped.iter().chain(&dotenv.problems).map(String::as_str);
    let others = Some(plan.others.join(", ")).filter(|names| !names.is_empty());
    seeded + &section("Skipped", skipped) + &section("Not credentials", others.as_deref())
}

/// A title with indented lines; nothing without lines.
fn section<'a>(title: &str, lines: impl IntoIterator<Item = &'a str>) -> String {
    let lines: String = lines.into_iter().map(|line| ["  ", line, "\n"].concat()).collect();
    if lines.is_empty() { lines } else { format!("\n{title}:\n{lines}") }
}

/// Requests to try the running service with. They can be pasted into a shell.
fn curl_lines(endpoint: &Endpoint, address: Option<SocketAddr>, token: Option<&Secret>) -> String {
    let curl = if let Some(address) = address {
        let token = token.map_or("", Secret::expose);
        format!("curl -H 'Authorization: Bearer {token}' http://{address}")
    } else {
        let socket = endpoint.to_string().replace('\'', r"'\''");
        format!("curl --unix-socket '{}' http://localhost", escaped(&socket))
    };
    format!(
        "\nServing. Try:\n  {curl}/health\n  {curl}/v1/credentials\n  {curl}/v1/credentials/openai/api_key\n\n"
    )
}
