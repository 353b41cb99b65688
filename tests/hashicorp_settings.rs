//! What the hashicorp backend is told by the environment, as far as the server sees it:
//! addresses, TLS, agents, namespaces, time-outs; and that no log has a secret.

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use intentframe_credentials::backend::{HashiCorpOptions, HashiCorpVault};
use intentframe_credentials::{
    CredentialRef, CredentialVault as _, Environment, Secret, SecretWatch,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use hashicorp::vault_server::VaultServer;
use hashicorp::vault_server::faults::{Fault, When};
use hashicorp::{POLICY, Target, fetch, health, on_each_server, store, stored};
use support::{Place, Service, skip};

/// Stores and reads once.
#[track_caller]
fn works(service: &Service) {
    stored(service, "openai", "key", "value");
    assert_eq!(fetch(service, "openai", "key").value(), "value");
    assert_eq!(health(service)["status"], "ok");
}

#[test]
fn a_unix_address_is_served_and_every_request_says_what_it_is() {
    let target = Target::of(VaultServer::builder().unix_socket().requires_vault_request());
    let server = target.server();
    let place = Place::new();
    let token = target.token_for(POLICY);
    let setup = target.setup(&place, &token).env("VAULT_ADDR", &server.unix_address());
    works(&setup.start());
    let requests = server.requests();
    assert!(!requests.is_empty());
    assert!(requests.iter().all(|request| request.vault_request), "{requests:?}");
}

/// An agent's address wins over the server's, and an agent adds its own token to requests
/// that have none.
#[test]
fn an_agent_needs_no_token_of_ours() {
    on_each_server(|target| {
        let place = Place::new();
        let token = target.token_for(POLICY);
        let socket = place.root().join("agent.sock");
        let listener = UnixListener::bind(&socket).expect("listens");
        let header = format!("X-Vault-Token: {token}\r\n");
        forward(target, move || Ok(listener.accept()?.0), header);
        let setup = target
            .bare_setup(&place)
            .env("VAULT_ADDR", "http://127.0.0.1:1")
            .env("VAULT_AGENT_ADDR", &format!("unix://{}", socket.display()));
        let service = setup.start();
        works(&service);
        let renewal = health(&service)["renewal"].take();
        assert_eq!(renewal["state"], "idle", "the agent looks after its token: {renewal}");
    });
}

#[test]
fn a_namespace_of_the_server_is_used() {
    on_each_server(|target| {
        let place = Place::new();
        let team = target.name("team");
        if let Some(server) = target.test_server() {
            server.add_namespace(&team);
        } else {
            target.done("POST", &format!("sys/namespaces/{team}"), Some(&json!({})));
            let engine = json!({ "type": "kv", "options": { "version": "2" } });
            target.done("POST", &format!("{team}/sys/mounts/secret"), Some(&engine));
        }
        let setup = target
            .setup(&place, target.root_token())
            .env("VAULT_KV_MOUNT", "secret")
            .env("VAULT_NAMESPACE", &format!("{team}/"));
        let service = setup.start();
        support::wait_until("the engine is there", || {
            store(&service, "openai", "key", "value").status == 200
        });
        works(&service);
        drop(service);
        let path = "secret/data/intentframe/openai";
        if let Some(server) = target.test_server() {
            let (_, inside) = server.as_root_in(&team, "GET", path, None);
            assert_eq!(inside["data"]["data"]["key"], "value");
            assert_eq!(server.as_root("GET", path, None).0, 404);
        } else {
            let inside = target.done("GET", &format!("{team}/{path}"), None);
            assert_eq!(inside["data"]["data"]["key"], "value");
            target.done("DELETE", &format!("{team}/sys/mounts/secret"), None);
            target.done("DELETE", &format!("sys/namespaces/{team}"), None);
        }
    });
}

#[test]
fn mount_and_prefix_are_paths_of_ones_own() {
    let target = Target::of(VaultServer::builder().kv_mount("team/kv"));
    let place = Place::new();
    let setup = target
        .setup(&place, target.root_token())
        .env("VAULT_KV_MOUNT", "/team/kv/")
        .env("VAULT_PATH_PREFIX", "hosts/one");
    works(&setup.start());
    let (_, answer) = target.operate("GET", "team/kv/data/hosts/one/openai", None);
    assert_eq!(answer["data"]["data"]["key"], "value");

    let setup = target.setup(&place, target.root_token()).env("VAULT_KV_MOUNT", "kv1");
    let options = json!({ "type": "kv", "options": { "version": "1" } });
    target.done("POST", "sys/mounts/kv1", Some(&options));
    let mut service = setup.spawn();
    assert_eq!(service.wait().code(), Some(2));
    assert!(service.log().contains("no KV engine of version 2"), "{}", service.log());
}

#[test]
fn the_timeout_bounds_an_operation_and_retries_are_as_many_as_set() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let setup = target.setup(&place, &target.token_for(POLICY));
    let service = setup.clone().env("VAULT_CLIENT_TIMEOUT", "700ms").start();
    let gate = server.fault(Fault::Hang(When::Before)).on("GET", "secret/").until_cleared();
    let start = Instant::now();
    assert_eq!(fetch(&service, "openai", "key").status, 503);
    let took = start.elapsed();
    assert!((600..2000).contains(&took.as_millis()), "{took:?}");
    gate.clear();
    drop(service);

    for retries in [0, 1, 3] {
        let service = setup.clone().env("VAULT_MAX_RETRIES", &retries.to_string()).start();
        let busy = server.fault(Fault::too_many_requests_without_retry_after());
        let busy = busy.on("GET", "secret/").until_cleared();
        assert_eq!(fetch(&service, "openai", "key").status, 503);
        assert_eq!(busy.hits(), 1 + retries);
        busy.clear();
    }

    // What the server wishes is done, as long as there is time for it.
    let service = setup.start();
    let _busy =
        server.fault(Fault::too_many_requests(Duration::from_secs(1))).on("GET", "secret/").next(1);
    let start = Instant::now();
    assert_eq!(fetch(&service, "openai", "key").status, 404);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

/// Tokens and values are in no log, however talkative.
#[test]
fn no_log_has_a_secret() {
    let target = Target::ours();
    let place = Place::new();
    let role = target.approle("r", json!({ "token_ttl": "2s" }));
    let filters = "trace,ureq=trace,ureq_proto=trace,ureq_proto::util=trace,rustls=trace";
    let service = target.setup_with_role(&place, &role).env("RUST_LOG", filters).start();
    stored(&service, "openai", "key", "sk-canary-value");
    assert_eq!(fetch(&service, "openai", "key").value(), "sk-canary-value");
    target.server().wait_for_requests("POST", "auth/token/renew-self", 1);
    target.server().revoke_all();
    assert_eq!(fetch(&service, "openai", "key").value(), "sk-canary-value");
    let refused = Fault::forbidden();
    let refused = target.server().fault(refused).on("PATCH", "secret/").until_cleared();
    let _ = store(&service, "openai", "key", "sk-canary-value");
    refused.clear();
    let health = health(&service).to_string();
    let log = service.log();
    assert!(log.contains("logged in to Vault by AppRole"), "{log}");
    for secret in ["sk-canary", &role.secret_id, "hvs.", "X-Vault-Token"] {
        assert!(!log.contains(secret) && !health.contains(secret), "{secret}");
    }
}

/// Of the tokens that it logs in for nobody else knows: whoever wants to keep them out of a
/// log is told, for as long as each of them is held.
#[test]
fn who_watches_secrets_is_told_of_tokens() {
    let target = Target::ours();
    let role = target.approle("r", json!({ "token_ttl": "1h" }));
    let told = Arc::<Mutex<Vec<(String, Weak<()>)>>>::default();
    let telling = Arc::clone(&told);
    let options = HashiCorpOptions {
        address: Some(target.server().address()),
        role_id: Some(Secret::new(role.role_id.clone())),
        secret_id: Some(Secret::new(role.secret_id.clone())),
        secret_watch: Some(SecretWatch::new(move |secret| {
            let held = Arc::new(());
            let mut told = telling.lock().expect("no panic");
            told.push((secret.expose().to_owned(), Arc::downgrade(&held)));
            held
        })),
        ..HashiCorpOptions::default()
    };
    let vault = HashiCorpVault::new(options, &Environment::default()).expect("is set up");
    let at = CredentialRef::parse("openai", "key").expect("valid");
    let held = || -> Vec<String> {
        let told = told.lock().expect("no panic");
        let held = told.iter().filter(|(_, held)| held.strong_count() > 0);
        held.map(|(secret, _)| secret.clone()).collect()
    };
    assert!(vault.get(&at).expect("asks").is_none());
    let [first] = &held()[..] else { panic!("one token is held") };
    assert_ne!(*first, role.secret_id, "which was held for the login alone");
    target.server().revoke_all();
    assert!(vault.get(&at).expect("asks").is_none());
    let [second] = &held()[..] else { panic!("one token is held") };
    assert_ne!(first, second);
    vault.close();
}

// TLS.

/// Certificates, made for the test.
struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// `None` without the `openssl` command.
    fn make(directory: &Path) -> Option<Self> {
        let certificates = Self { directory: directory.to_owned() };
        certificates.authority("ca")?;
        certificates.authority("other-ca")?;
        certificates.issue("server", "subjectAltName=IP:127.0.0.1,DNS:localhost")?;
        certificates.issue("elsewhere", "subjectAltName=DNS:elsewhere.example")?;
        certificates.issue("client", "extendedKeyUsage=clientAuth")?;
        Some(certificates)
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("UTF-8").to_owned()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("it was made")
    }

    fn openssl(&self, arguments: &str) -> Option<()> {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .output()
            .ok()?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(())
    }

    fn authority(&self, name: &str) -> Option<()> {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ))
    }

    fn issue(&self, name: &str, extension: &str) -> Option<()> {
        fs::write(self.path(&format!("{name}.ext")), extension).expect("writes");
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
             -keyout {name}.key -out {name}.csr"
        ))?;
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile {name}.ext -out {name}.pem"
        ))
    }

    /// A server's configuration with that certificate; it may ask for the client's.
    fn server_config(&self, name: &str, ask_for_client: bool) -> Arc<ServerConfig> {
        let chain = self.certificates(&format!("{name}.pem"));
        let key = PrivateKeyDer::from_pem_slice(self.text(&format!("{name}.key")).as_bytes());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the usual ones");
        let builder = if ask_for_client {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(self.certificates("ca.pem"));
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().expect("an authority"))
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(
            builder.with_single_cert(chain, key.expect("a key")).expect("they belong together"),
        )
    }

    fn certificates(&self, name: &str) -> Vec<CertificateDer<'static>> {
        let text = self.text(name);
        CertificateDer::pem_slice_iter(text.as_bytes()).map(|one| one.expect("PEM")).collect()
    }
}

/// Listens with TLS in front of the server; its address.
fn tls_listener(target: &Target, config: Arc<ServerConfig>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = format!("https://{}", listener.local_addr().expect("it listens"));
    let accept = move || {
        let (tcp, _) = listener.accept()?;
        let tls = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
        Ok(StreamOwned::new(tls, tcp))
    };
    forward(target, accept, String::new());
    address
}

#[test]
fn tls_is_spoken_and_the_server_is_verified() {
    let place = Place::new();
    let Some(certificates) = Certificates::make(place.root()) else {
        return skip("the tests of TLS need the openssl command");
    };
    let target = Target::ours();
    let token = target.token_for(POLICY);
    let setup_at = |address: &str| target.setup(&place, &token).env("VAULT_ADDR", address);
    let address = tls_listener(&target, certificates.server_config("server", false));
    let elsewhere = tls_listener(&target, certificates.server_config("elsewhere", false));
    let mutual = tls_listener(&target, certificates.server_config("server", true));

    works(&setup_at(&address).env("VAULT_CACERT", &certificates.path("ca.pem")).start());
    // Its content wins over the file, and the name is checked as well as the address.
    let by_name = address.replace("127.0.0.1", "localhost");
    let setup = setup_at(&by_name).env("VAULT_CACERT", &certificates.path("other-ca.pem"));
    works(&setup.env("VAULT_CACERT_BYTES", &certificates.text("ca.pem")).start());
    works(&setup_at(&elsewhere).env("VAULT_SKIP_VERIFY", "true").start());
    let trusting = setup_at(&mutual).env("VAULT_CACERT", &certificates.path("ca.pem"));
    let identified = trusting
        .clone()
        .env("VAULT_CLIENT_CERT", &certificates.path("client.pem"))
        .env("VAULT_CLIENT_KEY", &certificates.path("client.key"));
    works(&identified.start());

    // Another authority's certificate, another host's, and a client that shows none.
    let refused = [
        (setup_at(&address), "VAULT_CACERT"),
        (
            setup_at(&address).env("VAULT_CACERT", &certificates.path("other-ca.pem")),
            "VAULT_CACERT",
        ),
        (setup_at(&elsewhere).env("VAULT_CACERT", &certificates.path("ca.pem")), "VAULT_ADDR"),
        (trusting, "VAULT_CLIENT_CERT"),
    ];
    target.server().clear_requests();
    for (setup, remedy) in refused {
        let mut service = setup.spawn();
        assert_eq!(service.wait().code(), Some(5), "{}", service.log());
        let log = service.log();
        assert!(log.contains("certificate") && log.contains(remedy), "{log}");
    }
    assert_eq!(target.server().requests().len(), 0, "no token went anywhere");

    // Settings that cannot be are errors that name them.
    let wrong = [
        ("VAULT_SKIP_VERIFY", "no-thanks".to_owned()),
        ("VAULT_CACERT", certificates.path("none.pem")),
        ("VAULT_CACERT_BYTES", "no PEM".to_owned()),
        ("VAULT_CLIENT_KEY", certificates.path("client.key")),
    ];
    for (name, value) in wrong {
        let mut service = setup_at(&address).env(name, &value).spawn();
        assert_eq!(service.wait().code(), Some(2), "{name}");
        let log = service.log();
        assert!(log.contains(name) || name == "VAULT_CACERT_BYTES", "{log}");
    }
}

/// Takes connections, and passes each request on to the server, with `header` added, and
/// each answer back, for as long as the test runs.
fn forward<S: Read + Write + Send + 'static>(
    target: &Target,
    accept: impl Fn() -> io::Result<S> + Send + 'static,
    header: String,
) {
    let server = target.address().replace("http://", "");
    thread::spawn(move || {
        while let Ok(mut client) = accept() {
            let (server, header) = (server.clone(), header.clone());
            thread::spawn(move || -> io::Result<()> {
                // Before the first request: a refused client must not reach the server.
                let mut buffered = Vec::new();
                let mut request = message(&mut client, &mut buffered)?;
                let (mut upstream, mut answers) = (TcpStream::connect(server)?, Vec::new());
                loop {
                    let line = request.windows(2).position(|w| w == b"\r\n").unwrap_or(0) + 2;
                    request.splice(line..line, header.bytes());
                    upstream.write_all(&request)?;
                    client.write_all(&message(&mut upstream, &mut answers)?)?;
                    client.flush()?;
                    request = message(&mut client, &mut buffered)?;
                }
            });
        }
    });
}

/// One message as it came. What came after it stays in `buffered`.
fn message(stream: &mut impl Read, buffered: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut chunk = [0; 4096];
    loop {
        let head = buffered.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(head) = head.map(|at| at + 4) {
            let text = String::from_utf8_lossy(&buffered[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(Ok(0), |length| length.trim().parse()).unwrap_or(0);
            if buffered.len() >= head + length {
                return Ok(buffered.drain(..head + length).collect());
            }
        }
        match stream.read(&mut chunk)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => buffered.extend_from_slice(&chunk[..count]),
        }
    }
}
