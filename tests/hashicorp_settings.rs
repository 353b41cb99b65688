//! Settings of the hashicorp backend: addresses, TLS, agents, namespaces, timeouts. And no log
//! has a secret.
#![cfg(unix)]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::fs;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use intentframe_credentials::{CredentialRef, CredentialVault as _, SecretWatch};
use serde_json::json;

use hashicorp::bao::{self, Process, Server};
use hashicorp::proxy::{Fault, Proxy, When};
use hashicorp::{POLICY, Target, fetch, health, stored};
use support::{Place, Service, cannot_here, skip, wait_until};

/// Stores and reads once.
#[track_caller]
fn works(service: &Service) {
    stored(service, "openai", "key", "value");
    assert_eq!(fetch(service, "openai", "key").value(), "value");
    assert_eq!(health(service)["status"], "ok");
}

#[test]
fn a_unix_socket_is_an_address() {
    let Some(program) = bao::own_program() else { return };
    let place = Place::new();
    let socket = place.root().join("server.sock");
    let listener = format!("listener \"unix\" {{ address = \"{}\" }}", socket.display());
    let _server = Server::dev(&program, &listener);
    let setup = place
        .setup_with("hashicorp")
        .env("VAULT_ADDR", format!("unix://{}", socket.display()))
        .env("VAULT_TOKEN", "root");
    works(&setup.start());
}

/// The agent's address is preferred to the server's, and an agent adds its own token to requests
/// without one. It refuses requests that do not say that they are meant for Vault.
#[test]
fn an_agent_needs_no_token_of_ours() {
    let Some(target) = Target::new() else { return };
    let Some(program) = bao::own_program() else { return };
    let (token, socket) =
        (target.place.root().join("token"), target.place.root().join("agent.sock"));
    fs::write(&token, target.token_for(POLICY)).expect("writes");
    let config = target.place.root().join("agent.hcl");
    let text = format!(
        r#"vault {{ address = "{}" }}
        auto_auth {{
            method "token_file" {{ config = {{ token_file_path = "{}" }} }}
        }}
        api_proxy {{ use_auto_auth_token = true }}
        listener "unix" {{
            address = "{}"
            tls_disable = true
            require_request_header = true
        }}"#,
        target.server.address,
        token.display(),
        socket.display()
    );
    fs::write(&config, text).expect("writes");
    let arguments = ["proxy", &format!("-config={}", config.display())];
    let _agent = Process::start(&program, &arguments, target.place.root());
    // It listens before it has its token. Until then the server refuses what it passes on.
    wait_until("the agent has its token", || {
        let answer = Command::new("curl")
            .args(["--silent", "--max-time", "5", "--output", "/dev/null"])
            .args(["--write-out", "%{http_code}", "--header", "X-Vault-Request: true"])
            .arg("--unix-socket")
            .arg(&socket)
            .arg(format!("http://localhost/v1/{}/data/intentframe/nothing", target.mount))
            .output()
            .expect("curl is installed");
        answer.stdout == b"404"
    });
    let setup = target
        .bare_setup(&target.place)
        .env("VAULT_ADDR", "http://127.0.0.1:1")
        .env("VAULT_AGENT_ADDR", format!("unix://{}", socket.display()));
    let service = setup.argument("--wait-for-backend").start();
    works(&service);
    let renewal = health(&service)["renewal"].take();
    assert_eq!(renewal["state"], "idle", "the agent renews its token: {renewal}");
}

#[test]
fn a_namespace_of_the_server_is_used() {
    let Some(target) = Target::new() else { return };
    let team = target.name("team");
    if target.operate("POST", &format!("sys/namespaces/{team}"), Some(&json!({}))).0 == 404 {
        return cannot_here("this server has no namespaces");
    }
    target.server.mount_kv(&team, "secret", 2);
    let setup = target
        .setup(&target.place, &target.server.token)
        .env("VAULT_KV_MOUNT", "secret")
        .env("VAULT_NAMESPACE", format!("{team}/"));
    works(&setup.start());
    let path = "secret/data/intentframe/openai";
    let inside = target.done("GET", &format!("{team}/{path}"), None);
    assert_eq!(inside["data"]["data"]["key"], "value");
    target.done("DELETE", &format!("{team}/sys/mounts/secret"), None);
    target.done("DELETE", &format!("sys/namespaces/{team}"), None);
}

#[test]
fn mount_and_prefix_can_be_any_path() {
    let Some(target) = Target::new() else { return };
    let (deep, old) = (format!("{}/kv", target.name("team")), target.name("kv1"));
    target.mount_kv(&deep, 2);
    let setup = target
        .setup(&target.place, &target.server.token)
        .env("VAULT_KV_MOUNT", format!("/{deep}/"))
        .env("VAULT_PATH_PREFIX", "hosts/one");
    works(&setup.start());
    let answer = target.done("GET", &format!("{deep}/data/hosts/one/openai"), None);
    assert_eq!(answer["data"]["data"]["key"], "value");

    target.mount_kv(&old, 1);
    let setup = target.setup(&target.place, &target.server.token).env("VAULT_KV_MOUNT", &old);
    let mut service = setup.spawn();
    assert_eq!(service.wait().code(), Some(2));
    assert!(service.log().contains("no KV engine of version 2"), "{}", service.log());
}

#[test]
fn timeout_and_retries_are_as_configured() {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let setup = target.setup(&target.place, &target.token_for(POLICY));
    let service = setup.clone().env("VAULT_CLIENT_TIMEOUT", "700ms").start();
    let gate = proxy.all(Fault::Hold(When::Before), "GET", "/data/");
    let start = Instant::now();
    assert_eq!(fetch(&service, "openai", "key").status, 503);
    let took = start.elapsed();
    assert!((600..2000).contains(&took.as_millis()), "{took:?}");
    gate.clear();
    drop(service);

    for retries in [0, 1, 3] {
        let service = setup.clone().env("VAULT_MAX_RETRIES", retries.to_string()).start();
        let busy = proxy.all(Fault::too_many_requests(None), "GET", "/data/");
        assert_eq!(fetch(&service, "openai", "key").status, 503);
        assert_eq!(busy.hits(), 1 + retries);
        busy.clear();
    }

    // Retry-After is honoured as long as there is time for it.
    let service = setup.start();
    let _busy = proxy.next(1, Fault::too_many_requests(Some(1)), "GET", "/data/");
    let start = Instant::now();
    assert_eq!(fetch(&service, "openai", "key").status, 404);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

/// An embedder that masks secrets in its log learns of each token that a login returns, for as
/// long as the token is held.
#[test]
fn a_secret_watch_learns_of_tokens() {
    let Some(target) = Target::new() else { return };
    let role = target.approle("r", json!({ "token_ttl": "1h" }));
    let told = Arc::<Mutex<Vec<(String, Weak<()>)>>>::default();
    let telling = Arc::clone(&told);
    let watch = SecretWatch::new(move |secret| {
        let held = Arc::new(());
        let mut told = telling.lock().expect("no panic");
        told.push((secret.expose().to_owned(), Arc::downgrade(&held)));
        held
    });
    let ids = [("VAULT_ROLE_ID", &*role.role_id), ("VAULT_SECRET_ID", &*role.secret_id)];
    let vault = target.watched_vault(&ids, Some(watch));
    let at = CredentialRef::parse("openai", "key").expect("valid");
    let held = || -> Vec<String> {
        let told = told.lock().expect("no panic");
        let held = told.iter().filter(|(_, held)| held.strong_count() > 0);
        held.map(|(secret, _)| secret.clone()).collect()
    };
    assert!(vault.get(&at).expect("asks").is_none());
    let [first] = &held()[..] else { panic!("one token is held") };
    assert_ne!(*first, role.secret_id, "the secret ID was held for the login only");
    target.revoke_tokens_of("r");
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
    /// `None` where there is no `openssl` command.
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

    /// Returns the address of a listener with this certificate, and its configuration.
    fn listener(&self, certificate: &str, more: &str) -> (String, String) {
        let port = bao::free_port();
        let (file, key) = (format!("{certificate}.pem"), format!("{certificate}.key"));
        let (file, key) = (self.path(&file), self.path(&key));
        let text = format!(
            "listener \"tcp\" {{
                address = \"127.0.0.1:{port}\"
                tls_cert_file = \"{file}\"
                tls_key_file = \"{key}\"
                {more}
            }}\n"
        );
        (format!("https://127.0.0.1:{port}"), text)
    }
}

#[test]
fn tls_is_spoken_and_the_server_is_verified() {
    let Some(program) = bao::own_program() else { return };
    let place = Place::new();
    let Some(certificates) = Certificates::make(place.root()) else {
        return skip("the TLS test needs the openssl command");
    };
    let listener = |certificate: &str, more: &str| certificates.listener(certificate, more);
    let (address, first) = listener("server", "");
    let (elsewhere, second) = listener("elsewhere", "");
    let ca = certificates.path("ca.pem");
    let (mutual, third) = listener(
        "server",
        &format!(
            "tls_require_and_verify_client_cert = true
            tls_client_ca_file = \"{ca}\""
        ),
    );
    let _server = Server::dev(&program, &[first, second, third].concat());
    let setup_at = |address: &str| {
        let setup = place.setup_with("hashicorp").env("VAULT_ADDR", address);
        setup.env("VAULT_TOKEN", "root")
    };

    works(&setup_at(&address).env("VAULT_CACERT", &ca).start());
    // VAULT_CACERT_BYTES is preferred to the file, and names are verified as addresses are.
    let by_name = address.replace("127.0.0.1", "localhost");
    let setup = setup_at(&by_name).env("VAULT_CACERT", certificates.path("other-ca.pem"));
    works(&setup.env("VAULT_CACERT_BYTES", certificates.text("ca.pem")).start());
    works(&setup_at(&elsewhere).env("VAULT_SKIP_VERIFY", "true").start());
    let trusting = setup_at(&mutual).env("VAULT_CACERT", &ca);
    let identified = trusting
        .clone()
        .env("VAULT_CLIENT_CERT", certificates.path("client.pem"))
        .env("VAULT_CLIENT_KEY", certificates.path("client.key"));
    works(&identified.start());

    // Another authority, another host, and a client without a certificate.
    let refused = [
        (setup_at(&address), "VAULT_CACERT"),
        (setup_at(&address).env("VAULT_CACERT", certificates.path("other-ca.pem")), "VAULT_CACERT"),
        (setup_at(&elsewhere).env("VAULT_CACERT", certificates.path("ca.pem")), "VAULT_ADDR"),
        (trusting, "VAULT_CLIENT_CERT"),
    ];
    for (setup, remedy) in refused {
        let mut service = setup.spawn();
        assert_eq!(service.wait().code(), Some(5), "{}", service.log());
        let log = service.log();
        assert!(log.contains("certificate") && log.contains(remedy), "{log}");
    }

    // Bad settings are errors that name the variable.
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

/// Passes connections on to a server as they are, until the test cuts them.
struct Wire {
    address: String,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(server: &str) -> Self {
        let server = server.replace("https://", "");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("https://{}", listener.local_addr().expect("it listens"));
        let streams = Arc::<Mutex<Vec<TcpStream>>>::default();
        let open = Arc::clone(&streams);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&server).expect("the server listens");
                let again = |stream: &TcpStream| stream.try_clone().expect("a second handle");
                for (mut from, mut to) in [(again(&client), again(&server)), (server, client)] {
                    open.lock().expect("no panic").push(again(&from));
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, streams }
    }

    fn cut(&self) {
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A rotated client certificate is presented from the next connection on. Files that cannot be
/// used fail that connection only.
#[test]
fn client_certificates_are_read_for_each_new_connection() {
    let Some(program) = bao::own_program() else { return };
    let place = Place::new();
    let Some(certificates) = Certificates::make(place.root()) else {
        return skip("the TLS test needs the openssl command");
    };
    certificates.issue("next", "extendedKeyUsage=clientAuth").expect("it was there before");
    // The same key, but from an authority that the server does not trust.
    let stranger = "x509 -req -in client.csr -CA other-ca.pem -CAkey other-ca.key \
                    -CAcreateserial -days 2 -extfile client.ext -out stranger.pem";
    certificates.openssl(stranger).expect("it was there before");
    let ca = certificates.path("ca.pem");
    let more = "tls_require_and_verify_client_cert = true\ntls_client_ca_file = ";
    let (address, listener) = certificates.listener("server", &format!("{more}\"{ca}\""));
    let _server = Server::dev(&program, &listener);
    let wire = Wire::to(&address);
    let install = |chain: &str, key: &str| {
        fs::copy(certificates.path(chain), certificates.path("installed.pem")).expect("copies");
        fs::copy(certificates.path(key), certificates.path("installed.key")).expect("copies");
    };
    install("client.pem", "client.key");
    let service = place
        .setup_with("hashicorp")
        .env("VAULT_ADDR", &wire.address)
        .env("VAULT_TOKEN", "root")
        .env("VAULT_CACERT", &ca)
        .env("VAULT_CLIENT_CERT", certificates.path("installed.pem"))
        .env("VAULT_CLIENT_KEY", certificates.path("installed.key"))
        .env("VAULT_MAX_RETRIES", "0")
        .start();
    works(&service);

    let bad = [
        ("stranger.pem", "client.key", "it requires another client certificate"),
        ("server.ext", "client.key", "VAULT_CLIENT_CERT is not in PEM"),
        ("client.pem", "server.ext", "VAULT_CLIENT_KEY is not a key in PEM"),
        ("next.pem", "client.key", "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY do not belong together"),
    ];
    for (chain, key, reason) in bad {
        install(chain, key);
        // The connection that is there goes on.
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        wire.cut();
        // In between, the server is not asked, since it failed.
        wait_until(reason, || {
            let answer = fetch(&service, "openai", "key");
            assert_eq!(answer.status, 503, "{}", answer.text());
            answer.text().contains(reason)
        });
        assert_eq!(health(&service)["status"], "degraded");
        install("next.pem", "next.key");
        wait_until("it works", || fetch(&service, "openai", "key").status == 200);
    }
    fs::remove_file(certificates.path("installed.key")).expect("it was there");
    wire.cut();
    wait_until("the missing file is named", || {
        let text = fetch(&service, "openai", "key").text();
        text.contains("VAULT_CLIENT_KEY: ") && text.contains("installed.key cannot be read")
    });
}

/// A redirect from a server without TLS to one with TLS is followed, and that server verified.
#[test]
fn a_redirect_to_tls_is_verified() {
    let Some(program) = bao::own_program() else { return };
    let place = Place::new();
    let Some(certificates) = Certificates::make(place.root()) else {
        return skip("the TLS test needs the openssl command");
    };
    let (address, listener) = certificates.listener("server", "");
    let server = Server::dev(&program, &listener);
    let proxy = Proxy::start(&server.address);
    let location = format!("Location: {address}/v1/secret/data/intentframe/openai\r\n");
    for (authority, is_known) in [("ca.pem", true), ("other-ca.pem", false)] {
        let service = place
            .setup_with("hashicorp")
            .env("VAULT_ADDR", &proxy.address)
            .env("VAULT_TOKEN", "root")
            .env("VAULT_MAX_RETRIES", "0")
            .env("VAULT_REDIRECT_HOSTS", "127.0.0.1")
            .env("VAULT_CACERT", certificates.path(authority))
            .start();
        stored(&service, "openai", "key", "value");
        let moved = proxy.next(1, Fault::answer(307, &location, b""), "GET", "/data/");
        let answer = fetch(&service, "openai", "key");
        assert_eq!(moved.hits(), 1);
        if is_known {
            assert_eq!(answer.value(), "value");
        } else {
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert!(answer.text().contains("certificate"), "{}", answer.text());
        }
    }
}
