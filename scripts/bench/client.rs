//! What the Rust client costs: reads of one credential through it, through the least that a
//! client written by hand has to do, or through a bare socket that understands nothing.
//!
//! Each thread has one request in flight. It prints one line of JSON.
#![allow(clippy::print_stdout, clippy::print_stderr)] // its result is what it prints

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    match unix::run(&argh::from_env()) {
        Ok(report) => {
            println!("{report}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-client: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
mod unix {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use argh::FromArgs;
    use intentframe_credentials::client::VaultClient;
    use intentframe_credentials::{CredentialRef, Secret};

    /// Reads one credential, again and again, and prints how often that went.
    #[derive(FromArgs)]
    pub struct Options {
        /// the service's socket
        #[argh(option)]
        socket: PathBuf,
        /// the credential, as NAMESPACE/KEY
        #[argh(positional)]
        credential: String,
        /// how many threads, each with one request in flight (1)
        #[argh(option, default = "1")]
        threads: usize,
        /// how long to count (2)
        #[argh(option, default = "2.0")]
        seconds: f64,
        /// how long to run before counting (0.2)
        #[argh(option, default = "0.2")]
        warmup: f64,
        /// through a bare socket instead of the client
        #[argh(switch)]
        raw: bool,
        /// through the least of a client instead: the answer's head and JSON are parsed
        #[argh(switch)]
        by_hand: bool,
        /// a connection, and a client, for each call
        #[argh(switch)]
        fresh: bool,
    }

    type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

    pub fn run(options: &Options) -> Outcome<String> {
        let (namespace, key) = options.credential.split_once('/').ok_or("name NAMESPACE/KEY")?;
        let at = CredentialRef::parse(namespace, key)?;
        let client = VaultClient::new(&options.socket);
        let path = format!("/v1/credentials/{namespace}/{key}");
        let (counting, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let ready = Barrier::new(options.threads + 1);
        let (counts, seconds) = thread::scope(|scope| {
            let threads: Vec<_> = (0..options.threads)
                .map(|_| {
                    let (client, at, path, ready) = (&client, &at, &path, &ready);
                    let (counting, done) = (&counting, &done);
                    scope.spawn(move || -> Outcome<u64> {
                        let mut call = caller(options, client, at, path);
                        let first = call();
                        ready.wait();
                        first?;
                        let mut count = 0;
                        while !done.load(Ordering::Relaxed) {
                            call()?;
                            count += u64::from(counting.load(Ordering::Relaxed));
                        }
                        Ok(count)
                    })
                })
                .collect();
            ready.wait();
            thread::sleep(Duration::from_secs_f64(options.warmup));
            let began = Instant::now();
            counting.store(true, Ordering::Relaxed);
            thread::sleep(Duration::from_secs_f64(options.seconds));
            done.store(true, Ordering::Relaxed);
            let seconds = began.elapsed().as_secs_f64();
            let counts: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            (counts, seconds)
        });
        let mut total = 0;
        for count in counts {
            total += count.map_err(|_| "a thread panicked")??;
        }
        let rate = f64::from(u32::try_from(total)?) / seconds;
        Ok(format!("{{\"requests\":{total},\"seconds\":{seconds:.3},\"rate\":{rate:.1}}}"))
    }

    /// One read, in the way asked for.
    fn caller<'a>(
        options: &'a Options,
        client: &'a VaultClient,
        at: &'a CredentialRef,
        path: &str,
    ) -> Box<dyn FnMut() -> Outcome<()> + 'a> {
        if options.raw || options.by_hand {
            let exchange = if options.raw { exchange } else { exchange_by_hand };
            let closing = if options.fresh { "Connection: close\r\n" } else { "" };
            let request = format!("GET {path} HTTP/1.1\r\nHost: credential-vault\r\n{closing}\r\n");
            let mut kept = None;
            return Box::new(move || {
                let mut stream = match kept.take() {
                    Some(stream) => stream,
                    None => UnixStream::connect(&options.socket)?,
                };
                exchange(&mut stream, request.as_bytes())?;
                kept = (!options.fresh).then_some(stream);
                Ok(())
            });
        }
        Box::new(move || {
            let fresh;
            let client = if options.fresh {
                fresh = VaultClient::new(&options.socket);
                &fresh
            } else {
                client
            };
            client.get(at)?.map(|_| ()).ok_or_else(|| "there is no such credential".into())
        })
    }

    /// Sends a request, and takes the value out of its answer.
    fn exchange_by_hand(stream: &mut UnixStream, request: &[u8]) -> Outcome<()> {
        #[derive(serde::Deserialize)]
        struct Answer {
            value: String,
        }

        stream.write_all(request)?;
        let mut answer = Vec::with_capacity(4096);
        loop {
            let mut some = [0; 4096];
            let count = stream.read(&mut some)?;
            if count == 0 {
                return Err("the connection ended".into());
            }
            answer.extend_from_slice(&some[..count]);
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut head = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(start) = head.parse(&answer)? else { continue };
            let length =
                head.headers.iter().find(|it| it.name.eq_ignore_ascii_case("content-length"));
            let length: usize = std::str::from_utf8(length.ok_or("no length")?.value)?.parse()?;
            if answer.len() < start + length {
                continue;
            }
            if head.code != Some(200) {
                return Err("the answer is no 200".into());
            }
            let Answer { value } = serde_json::from_slice(&answer[start..start + length])?;
            std::hint::black_box(Secret::new(value));
            return Ok(());
        }
    }

    /// Sends a request and reads its answer, which is short and comes in one piece.
    fn exchange(stream: &mut UnixStream, request: &[u8]) -> Outcome<()> {
        stream.write_all(request)?;
        let mut answer = [0; 4096];
        let count = stream.read(&mut answer)?;
        let answer = &answer[..count];
        if answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"}") {
            Ok(())
        } else {
            Err("the answer is no complete 200".into())
        }
    }
}
